"""Batches of few samples: right within what is stated, or measured layer by layer, or refused."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import OptionError, StatisticsError
from normkit.nn import DomainBatchNorm2d
from tests.few import few
from tests.statistics.truth import population

EPS = 1e-5


class Pooled(nn.Module):
    """A branch that pools to one pixel beside one that does not, as in squeeze-and-excitation."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 6, 3), source.BatchNorm2d(6)
        self.squeeze, self.norm2 = nn.Conv2d(6, 6, 1), source.BatchNorm2d(6)
        self.last, self.norm3 = nn.Conv2d(6, 5, 3), source.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        gate = self.norm2(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid()
        out: Tensor = self.norm3(self.last(x * gate))
        return out


def pointwise(source: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), source.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1),
        source.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 8, 1),
        source.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), source.BatchNorm2d(4),
    )  # fmt: skip


def dense(source: Any) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(108, 8), source.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8),
        source.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3), source.BatchNorm1d(3),
    )  # fmt: skip


NETS: dict[str, Callable[[Any], nn.Module]] = {"1x1": pointwise, "pooled": Pooled, "dense": dense}


def images(count: int = 96, seed: int = 1) -> Tensor:
    """Brighter and darker ones, so that what is taken from each batch differs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 6, generator=g) * torch.rand(count, 1, 1, 1, generator=g)
    return x + torch.rand(count, 3, 1, 1, generator=g)


def off(found: Any, truth: dict[str, Any], name: str) -> tuple[float, float]:
    """Root mean square over channels: the mean's error in deviations, the variance's as a share."""
    mean, variance = truth[name]
    one, scale = found.layers[name], variance + EPS
    return (
        float(((one.mean - mean).square() / scale).mean().sqrt()),
        float(((one.variance - variance) / scale).square().mean().sqrt()),
    )


@pytest.mark.parametrize(
    ("net", "size", "source"),  # every pair of two of them
    few(
        (
            (net, size, (nn, nk)[(i + j) % 2])
            for (i, net), (j, size) in itertools.product(enumerate(NETS), enumerate((1, 3, 12, 32)))
        ),
        lambda net, size, source: size in (1, 32),  # each network with both packages
    ),
)
def test_written_within_what_is_stated(net: str, size: int, source: Any) -> None:
    """The sweep: on the same samples, whatever the batches, no layer is off by more than stated."""
    torch.manual_seed(0)
    model, x = NETS[net](source), images()
    x = x[: len(x) // size * size]
    truth = population(model, x)
    found = nk.recalibrate(model, x.split(size), samples=None, progress=False)
    assert (found.avoided_bias > 0) == (size < 10) and found.samples == len(x)
    for name, shift in found.shifts.items():
        one = found.layers[name]
        mean, variance = off(found, truth, name)
        assert max(mean, variance) <= shift.bias + 0.1 * shift.error, (name, mean, variance, shift)
        assert one.bias == 0 or (size >= 10 and one.bias >= 1 / size - 1e-9)
        assert one.count >= 2 and shift.error > 0.01
    if size < 10:
        assert found.bias == 0 and found.avoided_bias >= 1 / size - 1e-9
        assert "would be off by about" in repr(found) and found.error_passes > 1
    else:
        assert found.bias < 1 and "bias about" in repr(found)
    assert found.summary()["bias"] == found.bias


@pytest.mark.parametrize("net", NETS)
def test_iterators_of_few_are_refused(net: str) -> None:
    model, x = NETS[net](nk), images(64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for size in (1, 4):
        with pytest.raises(StatisticsError, match=rf"of {size} samples each.*Fix: pass a list"):
            nk.recalibrate(model, iter(x.split(size)), progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert nk.recalibrate(model, iter(x.split(16)), progress=False).passes == 1
    # Nothing is behind another layer here: any batches do.
    alone = nn.Sequential(nk.BatchNorm2d(3), nn.ReLU())
    assert nk.recalibrate(alone, iter(x.split(1)), progress=False).bias == 0


def test_small_last_batch_counts_for_its_share() -> None:
    """As a loader that drops nothing has it; what it loses, 1/1 of one sample in 65, is stated."""
    model = dense(nk)
    found = nk.recalibrate(model, images(65).split(16), samples=None, progress=False)
    assert found.passes == 1
    assert found.bias < 0.4
    (first, second) = (found.layers[name].bias for name in ("2", "5"))
    assert first == 0 and second >= (64 / 16 + 1) / 65 - 1e-9


@pytest.mark.parametrize("rest", [1, 5])
def test_small_last_batch_does_not_make_few(rest: int) -> None:
    """Batches of ten are enough, and one of the rest of the samples does not change that."""
    x = images(100 + rest)
    for batches in (iter(x.split(10)), x.split(10)):
        found = nk.recalibrate(pointwise(nk), batches, samples=None, progress=False)
        assert found.passes == 1 and found.bias > 1 / 10
    with pytest.raises(StatisticsError, match="at least 10 samples"):
        nk.recalibrate(pointwise(nk), iter(x.split(9)), samples=None, progress=False)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_batches_in_an_order_are_measured_layer_by_layer(make: Any) -> None:
    """Sorted by class: batches of any size then take away what lies between the classes."""
    torch.manual_seed(0)
    x = torch.cat([centre + torch.randn(500, 4) for centre in torch.randn(10, 4) * 5])
    model = nn.Sequential(make(4), nn.Linear(4, 4), make(4))
    truth = population(model, x)
    with nk.recalibrate(model, x.split(50), samples=None, progress=False) as found:
        assert found.avoided_bias > 0.6 and found.bias == 0 and found.error_passes == 0
        assert max(off(found, truth, "2")) < 1e-4
    with pytest.warns(UserWarning, match=r"later layers off by about .* shuffled batches"):
        once = nk.recalibrate(model, iter(x.split(50)), samples=None, progress=False)
    assert once.passes == 1 and max(off(once, truth, "2")) > 0.2
    mixed = x[torch.randperm(len(x))]
    assert nk.recalibrate(model, mixed.split(50), samples=None, progress=False).passes == 1


def test_losses_add_up_with_depth() -> None:
    torch.manual_seed(0)
    blocks = [layer for _ in range(10) for layer in
              (nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())]  # fmt: skip
    model, x = nn.Sequential(*blocks), torch.randn(1600, 8)
    truth = population(model, x)
    found = nk.recalibrate(model, x.split(16), samples=None, progress=False)
    assert found.passes == 1
    for name in list(truth)[1:]:
        assert max(off(found, truth, name)) < found.layers[name].bias, name
    assert found.layers["28"].bias > 2 * found.layers["4"].bias


def test_bias_of_one_batch() -> None:
    """No spread between batches shows it: it is that of the longest tails measured."""
    found = nk.recalibrate(dense(nk), images(64).split(64), samples=None, progress=False)
    assert [one.bias for one in found.layers.values()] == [0, 2.7 / 64, 2.7 / 64]


def test_error_in_a_pass_for_errors_names_its_batch() -> None:
    calls, last = 0, math.inf

    def forward(net: nn.Module, batch: Tensor) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            raise OSError("the disk is gone")
        return net(batch)

    batches = images(64).split(2)
    found = nk.recalibrate(dense(nk), batches, forward=forward, samples=None, progress=False)
    assert found.error_passes > 1
    calls, last = 0, calls - 2
    with pytest.raises(OSError, match="the disk is gone") as caught:
        nk.recalibrate(dense(nk), batches, forward=forward, samples=None, progress=False)
    assert "batch 30" in "".join(caught.value.__notes__), caught.value.__notes__


def test_layer_reached_in_a_later_pass_only() -> None:
    class Gate(nn.Module):
        """Calls a layer only with a mean that no batch has under its own statistics."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.a(x)
            return self.b(h) if h.mean().abs() > 1e-4 else h

    torch.manual_seed(0)
    for size in (4, 64):
        found = nk.recalibrate(
            Gate(), torch.randn(640, 4).split(size), layerwise=True, progress=False
        )
        assert "b (nn.BatchNorm1d)" in repr(found)
        assert found.interval("b")[0].isfinite().all()


def test_regions_of_few_images_are_few_samples() -> None:
    """A detector's head sees hundreds of regions, which are not independent within an image."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.fc, self.norm2 = nk.BatchNorm2d(3), nn.Linear(3, 4), nk.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm2(self.fc(self.norm1(x).movedim(1, -1).flatten(0, 2)))
            return out

    found = nk.recalibrate(Head(), images(64).split(2), samples=None, progress=False)
    assert found.avoided_bias >= 1 / 2


def test_layers_behind_tracking_instance_norm() -> None:
    """Its own moments are of one sample each, in a batch of any size; evaluation has others."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    x = images(128)
    found = nk.recalibrate(model, x.split(32), samples=None, progress=False)
    assert found.avoided_bias >= 1
    with torch.no_grad():
        inner = model.eval()[3](model[2](model[1](model[0](x)))).double()
    torch.testing.assert_close(found.layers["4"].variance, inner.var((0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_depth_does_not_overflow(make: Any) -> None:
    """Behind a first pass that saw constants, later layers would divide by the root of ε."""
    torch.manual_seed(0)
    blocks = [(nn.Linear(4, 4), make(4)) for _ in range(8)]
    model = nn.Sequential(*(layer for block in blocks for layer in block))
    x = torch.randn(24, 4) * 5
    truth = population(model, x)
    found = nk.recalibrate(model, x.split(1), samples=None, progress=False)
    assert max(max(off(found, truth, name)) for name in truth) < 1e-3
    for name, (_, variance) in truth.items():
        got = model.get_submodule(name).running_var
        torch.testing.assert_close(got.double(), variance, rtol=2e-3, atol=1e-9)


def correlated() -> tuple[nn.Module, Tensor, dict[str, Any], torch.Generator]:
    """A model of three layers, a population, the truth, and what draws from the population."""
    g = torch.Generator().manual_seed(0)
    everything = torch.randn(4000, 8, generator=g) @ torch.randn(8, 8, generator=g) + 1
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8),
        nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8),
    )  # fmt: skip
    return model, everything, population(model, everything), g


@pytest.mark.slow
def test_errors_of_single_samples_cover() -> None:
    """Layer by layer with batches of one or two: as far off as said, later layers too.

    The spread under one common population, without what earlier layers pass on, and that of the
    first pass, which sees constants, fail.
    """
    model, everything, truth, g = correlated()
    ratios: dict[str, list[Tensor]] = {name: [] for name in truth}
    for trial in range(5):
        rows = torch.randint(len(everything), (120,), generator=g)
        with nk.recalibrate(
            model, everything[rows].split(1 + trial % 2), samples=None, progress=False
        ) as found:
            for name, (mean, variance) in truth.items():
                one = found.layers[name]
                ratios[name] += [
                    ((one.mean - mean) / one.mean_standard_error).abs(),
                    ((one.variance - variance) / one.variance_standard_error).abs(),
                ]
    for name, rows in ratios.items():
        ratio = torch.cat(rows)
        # 80 of each layer: of Student's t with 11 degrees of freedom, 95 % are below 2.2.
        assert (ratio < 2.2).double().mean() > 0.8 and ratio.median() > 0.4, (name, ratio)


@pytest.mark.parametrize("size", [10, 20])
def test_intervals_of_one_pass_cover(size: int) -> None:
    """They add the bias to the standard error, without which later layers are missed at ten."""
    model, everything, truth, g = correlated()
    hits: dict[str, list[Tensor]] = {name: [] for name in truth}
    for _ in range(8):
        rows = torch.randint(len(everything), (40 * size,), generator=g)
        with nk.recalibrate(
            model, everything[rows].split(size), samples=None, progress=False
        ) as found:
            assert found.passes == 1
            for name, pair in truth.items():
                for (low, high), value in zip(found.interval(name), pair, strict=True):
                    hits[name].append((low <= value) & (value <= high))
    for name, rows in hits.items():
        assert torch.cat(rows).double().mean() > 0.9, name


def test_errors_from_too_few_samples_are_unknown() -> None:
    found = nk.recalibrate(dense(nk), images(12).split(1), samples=None, progress=False)
    assert math.isnan(found.error) and "unknown" in repr(found)
    with pytest.raises(StatisticsError, match="pass more and smaller batches"):
        found.interval("2")


def test_tolerance_heeds_the_bias() -> None:
    """Stopped at 10 %, the layers must not be off by 20 %: they are measured layer by layer."""
    x, model = images(900), dense(nk)
    found = nk.recalibrate(model, x.split(30), tolerance=0.9, progress=False)
    assert 1 / 30 <= found.bias < 0.9 and found.avoided_bias == 0
    found.undo()
    found = nk.recalibrate(model, x.split(30), samples=None, tolerance=0.1, progress=False)
    assert found.error < 0.1 and found.bias == 0 and found.avoided_bias > 0.1
    found.undo()
    before = model[2].running_mean.clone()
    with pytest.raises(UserWarning, match=r"tolerance=0.1 .*may put later .*; pass a list"):
        nk.recalibrate(model, iter(x.split(30)), tolerance=0.1, progress=False)
    assert torch.equal(model[2].running_mean, before)
    # With a few samples the errors of later layers are not known until the end.
    found = nk.recalibrate(model, x.split(3), samples=None, tolerance=0.2, progress=False)
    assert found.samples < 900 and found.error < 0.2


@pytest.mark.parametrize("tolerance", [1, 5, 1.0, 1e9])
def test_tolerance_of_everything_is_none(tolerance: float) -> None:
    with pytest.raises(OptionError, match="below 1"):
        nk.recalibrate(nn.BatchNorm1d(3), [torch.randn(20, 3)], tolerance=tolerance)


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_hardly_known_statistics_are_warned_of(make: Any) -> None:
    x = torch.randn(12, 3)
    with pytest.warns(UserWarning, match=r"those of 2 samples.*known to ± 140 %"):
        nk.recalibrate(make(3), [x[:2]], progress=False)
    with pytest.warns(UserWarning, match=r"those of 4 samples.*known to ± 82 %"):
        nk.recalibrate(make(3), x.split(4), samples=3, progress=False)
    layer = make(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            nk.recalibrate(layer, [x[:2]], progress=False)
        assert torch.equal(layer.running_mean, torch.zeros(3))
        one = nk.recalibrate(layer, [x], progress=False)
        three = nk.recalibrate(layer, x.split(4), progress=False)
    assert "1 batch, " in repr(one) and "standard error unknown from 1 batch" in repr(one)
    assert "from 3 batches, so itself known to ±50 %" in repr(three)


def test_domains_count_apart() -> None:
    """Banks of one layer: each with its own count of batches and bias."""
    model = nn.Sequential(DomainBatchNorm2d(3, 2), nn.Conv2d(3, 3, 1), DomainBatchNorm2d(3, 2))

    def forward(net: nn.Module, batch: tuple[Tensor, int]) -> Tensor:
        with nk.use_domain(net, batch[1]):
            out: Tensor = net(batch[0])
        return out

    batches = [(x, int(i > 2)) for i, x in enumerate(images(120).split(20))]
    found = nk.recalibrate(model, batches, forward=forward, samples=None, progress=False)
    assert model[2].num_batches_tracked.tolist() == [3, 3]
    assert 1 / 20 <= found.layers["2[1]"].bias < 0.5 and found.layers["0[1]"].bias == 0
    found.undo()
    assert model[2].num_batches_tracked.tolist() == [0, 0]
