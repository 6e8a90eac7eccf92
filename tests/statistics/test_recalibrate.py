"""recalibrate gives the statistics of the data, on every layer that remembers any."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.lab import models
from normkit.statistics import StatsSpec, stats_spec
from tests.releases import REFUSES_ZERO_EPS
from tests.statistics.truth import population, relative


def drifting(batches: int = 40, size: int = 16, shape: tuple[int, ...] = (3,)) -> list[Tensor]:
    """Batches whose mean moves from one to the next: variance between them as well as within."""
    g = torch.Generator().manual_seed(1)
    steps = torch.linspace(-1.6, 1.6, batches)
    return [torch.randn(size, *shape, generator=g) + step for step in steps]


def total(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = torch.cat(batches).double()
    axes = [0, *range(2, x.dim())]
    return x.mean(axes), x.var(axes)


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "torch 1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "torch 2d": (lambda: nn.BatchNorm2d(3), (3, 4, 5)),
    "torch 3d": (lambda: nn.BatchNorm3d(3), (3, 2, 3, 2)),
    "torch sync": (lambda: nn.SyncBatchNorm(3), (3, 4, 5)),
    "torch cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 5)),
    "1d": (lambda: nk.BatchNorm1d(3), (3,)),
    "1d length": (lambda: nk.BatchNorm1d(3), (3, 7)),
    "2d": (lambda: nk.BatchNorm2d(3, act="relu"), (3, 4, 5)),
    "3d": (lambda: nk.BatchNorm3d(3), (3, 2, 3, 2)),
    "cumulative": (lambda: nk.BatchNorm2d(3, average="cumulative"), (3, 4, 5)),
    "debiased": (lambda: nk.BatchNorm2d(3, average="debiased"), (3, 4, 5)),
    "ghost": (lambda: nk.GhostBatchNorm2d(3, ghost_size=4), (3, 4, 5)),
    "sync": (lambda: nk.SyncBatchNorm(3), (3, 4, 5)),
    "no affine": (lambda: nk.BatchNorm2d(3, affine=False), (3, 4, 5)),
}


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(n, f) for n, (_, shape) in LAYERS.items() for f in LAYOUTS[: 1 + (len(shape) == 3)]],
    ids=str,
)
def test_total_variance(name: str, layout: Any) -> None:
    """The variance between batches counts: torch.optim.swa_utils.update_bn leaves it out."""
    make, shape = LAYERS[name]
    batches = drifting(shape=shape)
    batches = [x.contiguous(memory_format=layout) for x in batches]
    model = nn.Sequential(make())
    found = nk.recalibrate(model, batches, samples=None)
    mean, variance = total(batches)
    assert variance.min() > 1.7  # of which 1 within batches
    torch.testing.assert_close(model[0].running_mean.double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(model[0].running_var.double(), variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.layers["0"].mean, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.layers["0"].variance, variance, rtol=1e-7, atol=0)
    values = sum(x.numel() for x in batches) // 3
    assert found.layers["0"].count == values
    assert (found.samples, found.batches, found.passes) == (640, 40, 1)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nk.BatchNorm2d])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_far_from_zero(make: Any, layout: Any) -> None:
    """At 1e4 ± 0.1, E[x²] − E[x]² in float32 gives variances below zero."""
    g = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(32, 3, 9, 9, generator=g) * 0.1 + 1e4).contiguous(memory_format=layout)
        for _ in range(20)
    ]
    x = torch.cat(batches).double()
    naive = x.float().square().mean((0, 2, 3)) - x.float().mean((0, 2, 3)).square()
    assert (naive - 0.01).abs().min() > 0.009  # 0, or far off: the test can fail
    model = nn.Sequential(make(3))
    nk.recalibrate(model, batches, samples=None)
    variance = x.var((0, 2, 3))
    torch.testing.assert_close(model[0].running_var.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [nn.InstanceNorm2d, nk.InstanceNorm2d])
def test_instance_norm_averages_over_samples(make: Any) -> None:
    """Its moments are each sample's own; what it remembers is their average."""
    batches = drifting(shape=(3, 4, 5))
    model = nn.Sequential(make(3, track_running_stats=True))
    found = nk.recalibrate(model, batches, samples=None)
    x = torch.cat(batches).double()
    torch.testing.assert_close(found.layers["0"].mean, x.mean((2, 3)).mean(0))
    torch.testing.assert_close(found.layers["0"].variance, x.var((2, 3)).mean(0))
    torch.testing.assert_close(model[0].running_var.double(), x.var((2, 3)).mean(0), rtol=1e-6,
                               atol=0)  # fmt: skip
    assert found.layers["0"].count == 640


def test_unbatched_instance_norm() -> None:
    model = nn.InstanceNorm1d(3, track_running_stats=True)
    x = torch.randn(3, 50)
    nk.recalibrate(model, [x], samples=None)
    torch.testing.assert_close(model.running_mean, x.mean(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [nn.BatchNorm2d, nk.BatchNorm2d])
def test_other_types(make: Any, dtype: torch.dtype) -> None:
    batches = [x.to(dtype) for x in drifting(shape=(3, 4, 5))]
    model = nn.Sequential(make(3)).to(dtype)
    found = nk.recalibrate(model, batches, samples=None)
    mean, variance = total(batches)
    torch.testing.assert_close(found.layers["0"].mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.layers["0"].variance, variance, rtol=1e-6, atol=0)
    assert model[0].running_var.dtype == dtype


def test_batch_order_does_not_matter() -> None:
    model = nn.Sequential(nk.BatchNorm1d(3), nn.Linear(3, 4), nk.BatchNorm1d(4))
    batches = drifting()
    first = nk.recalibrate(model, batches, samples=None)
    first.undo()
    second = nk.recalibrate(model, batches[::-1], samples=None)
    for name in ("0", "2"):
        for a, b in zip(first.layers[name][:2], second.layers[name][:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_later_layers_see_training_inputs() -> None:
    """By default each batch is normalized by its own moments before it goes on, as in training."""
    model = nn.Sequential(nk.BatchNorm1d(3), nn.Linear(3, 4), nk.BatchNorm1d(4))
    batches = drifting()
    with torch.no_grad():
        inner = [model[1](nn.functional.batch_norm(x, None, None, training=True)) for x in batches]
    found = nk.recalibrate(model, batches, samples=None)
    mean, variance = total(inner)
    torch.testing.assert_close(found.layers["2"].mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.layers["2"].variance, variance, rtol=1e-5, atol=0)


def net(source: Any = nk) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), source.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), source.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 12), source.BatchNorm1d(12), nn.ReLU(),
        nn.Linear(12, 3), source.BatchNorm1d(3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "size"),
    [(nn, 50), (nk, 3), (nk, 50), pytest.param(nn, 3, marks=pytest.mark.slow)],
)
def test_layerwise_is_exact_with_any_batch_size(source: Any, size: int) -> None:
    model = net(source)
    images = torch.randn(150, 2, 8, 8) * torch.rand(150, 1, 1, 1) + torch.rand(150, 2, 1, 1)
    truth = population(model, images)
    plain = nk.recalibrate(model, images.split(size), samples=None)
    rough = relative(plain, truth)
    plain.undo()
    found = nk.recalibrate(model, images.split(size), samples=None, layerwise=True)
    exact = relative(found, truth)
    # Its rule for when to stop: a tenth of the standard error, which is a few percent here.
    assert all(exact[name] < 0.1 * found.shifts[name].error + 1e-6 for name in truth), exact
    assert found.passes <= 5
    assert exact["1"] == pytest.approx(0, abs=1e-6)
    if size == 3:  # where it is done without being asked for
        assert plain.avoided_bias > 0.3 and plain.passes == found.passes
        assert rough == pytest.approx(exact, abs=1e-6)
    else:
        assert plain.passes == 1 and rough["8"] > 10 * exact["8"]


@pytest.mark.slow
def test_layerwise_is_exact_in_deep_network() -> None:
    """What is off in the first layer grows on its way: passes move more before they move less."""
    torch.manual_seed(0)
    model = models.build("resnet18", norm="torch-batch", width=4, size=16)
    images = torch.randn(64, 1, 16, 16) * torch.rand(64, 1, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for x in images.split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.sum((1, 2, 3)).gt(0).long()).backward()
        optimizer.step()
    found = nk.recalibrate(model, images.split(8), samples=None, layerwise=True)
    exact = relative(found, population(model, images))
    assert found.passes > 5
    assert all(exact[name] < 0.1 * found.shifts[name].error + 1e-6 for name in exact), exact


def test_layerwise_ends_when_batches_differ_between_passes() -> None:
    """A loader with a generator of its own: passes never agree better than samples do."""
    images = torch.randn(600, 2, 8, 8)
    loader = torch.utils.data.DataLoader(
        images,
        20,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),  # type: ignore[arg-type]
    )
    found = nk.recalibrate(net(), loader, samples=200, layerwise=True)
    assert 2 <= found.passes <= 5
    assert found.samples == 200


def test_layerwise_repeats_shuffled_batches() -> None:
    images = torch.randn(600, 2, 8, 8)
    loader = torch.utils.data.DataLoader(images, 20, shuffle=True)  # type: ignore[arg-type]
    seen: list[list[float]] = [[]]

    def forward(model: nn.Module, batch: Tensor) -> None:
        if len(seen[-1]) == 10:
            seen.append([])
        seen[-1].append(float(batch.sum()))
        model(batch)

    nk.recalibrate(net(), loader, samples=200, layerwise=True, forward=forward)
    assert len(seen) > 1
    assert all(one == seen[0] for one in seen)


def test_shared_layer_merges_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nk.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(5 * x + 1)

    batches = drifting()
    found = nk.recalibrate(model := Twice(), batches, samples=None)
    mean, variance = total([*batches, *(5 * x + 1 for x in batches)])
    torch.testing.assert_close(found.layers["norm"].mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.layers["norm"].variance, variance, rtol=1e-6, atol=0)
    assert found.layers["norm"].count == 2 * 640
    assert list(found.layers) == ["norm"]
    # As torch counts, which has an average move at every call.
    assert model.norm.num_batches_tracked == 80


def test_layer_in_two_places_is_listed_once() -> None:
    norm = nk.BatchNorm1d(3)
    found = nk.recalibrate(nn.Sequential(norm, norm), drifting(), samples=None)
    assert list(found.layers) == ["0"]
    assert found.layers["0"].count == 2 * 640


def test_model_that_is_a_layer() -> None:
    layer = nk.BatchNorm1d(3)
    found = nk.recalibrate(layer, drifting(), samples=None)
    torch.testing.assert_close(layer.running_mean.double(), total(drifting())[0], rtol=0, atol=1e-6)
    assert "(the model)" in repr(found)


def test_nan_is_replaced() -> None:
    for make in (nn.BatchNorm1d, nk.BatchNorm1d):
        model = nn.Sequential(make(3))
        model[0].running_mean.fill_(float("nan"))
        model[0].running_var.fill_(float("inf"))
        found = nk.recalibrate(model, drifting(), samples=None)
        assert torch.isfinite(model[0].running_var).all()
        assert "not finite" in repr(found)


def test_registered_third_party_layers() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("m", torch.zeros(3))
            self.register_buffer("v", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.m) / (self.v + 1e-5).sqrt()

    class Derived(ChannelsLast):
        pass

    assert stats_spec(ChannelsLast()) is None

    @stats_spec.register(ChannelsLast)
    def _(layer: ChannelsLast) -> StatsSpec:
        return StatsSpec("m", "v", values=lambda _, x: x.movedim(-1, 1))

    model = nn.Sequential(Derived())
    batches = [x.movedim(1, -1) for x in drifting(shape=(3, 4, 5))]
    nk.recalibrate(model, batches, samples=None)
    mean, variance = total(drifting(shape=(3, 4, 5)))
    torch.testing.assert_close(model[0].m.double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(model[0].v.double(), variance, rtol=1e-6, atol=0)


def test_tolerance_stops_early() -> None:
    g = torch.Generator().manual_seed(3)
    batches = [torch.randn(20, 3, generator=g) for _ in range(2000)]
    model = nn.Sequential(nk.BatchNorm1d(3))
    coarse = nk.recalibrate(model, batches, samples=None, tolerance=0.1)
    fine = nk.recalibrate(model, batches, samples=None, tolerance=0.02)
    assert coarse.error < 0.1 and fine.error < 0.02
    # The error falls with the root of the number; var(x²) = 2 asks for 5,000 and 200.
    assert 100 <= coarse.samples <= 600
    assert 3000 <= fine.samples <= 9000
    assert f"{fine.samples:,} samples" in repr(fine)


@pytest.mark.parametrize("eps", [1e-5] if REFUSES_ZERO_EPS else [1e-5, 0.0])
def test_constant_channel_has_no_error(eps: float) -> None:
    batches = [x * torch.tensor([1.0, 0.0, 1.0]) for x in drifting(200)]
    found = nk.recalibrate(nn.BatchNorm1d(3, eps=eps), batches, samples=None, tolerance=0.2)
    assert found.error < 0.2
    assert found.layers[""].variance[1] == 0


def test_samples_stop_before_tolerance() -> None:
    found = nk.recalibrate(nn.BatchNorm1d(3), drifting(), samples=100, tolerance=1e-6)
    assert found.samples == 112  # 7 batches of 16: the batch that reaches it counts whole


def test_memory_is_bounded() -> None:
    """Thousands of batches are kept in at most 128 units."""
    g = torch.Generator().manual_seed(4)
    batches = [torch.randn(2, 3, generator=g) for _ in range(3001)]
    found = nk.recalibrate(nn.BatchNorm1d(3), batches, samples=None)
    mean, variance = total(batches)
    torch.testing.assert_close(found.layers[""].mean, mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.layers[""].variance, variance, rtol=1e-7, atol=0)
    assert found.layers[""].count == 6002
    low, high = found.interval("")[0]
    assert ((low < mean) & (mean < high)).all()


def test_empty_batches_are_ignored() -> None:
    batches = drifting()
    batches.insert(3, torch.zeros(0, 3))
    found = nk.recalibrate(nn.Sequential(nk.BatchNorm1d(3)), batches, samples=None)
    torch.testing.assert_close(found.layers["0"].variance, total(batches)[1], rtol=1e-6, atol=0)


def test_compiled_model_matches_eager() -> None:
    plain = net()
    images = torch.randn(60, 2, 8, 8)
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    inside = copy.deepcopy(plain)
    inside.compile(backend="eager")
    with torch.no_grad():
        compiled(images), inside(images)
    expected = nk.recalibrate(plain, images.split(20), samples=None)
    for model in (compiled, inside):
        found = nk.recalibrate(model, images.split(20), samples=None)
        for name in expected.layers:
            torch.testing.assert_close(found.layers[name].mean, expected.layers[name].mean)
            torch.testing.assert_close(found.layers[name].variance, expected.layers[name].variance)


def test_accelerated_models() -> None:
    """A fused Sequential calls its layers one by one while they are watched."""
    plain, fused = net(nn), net(nn)
    fused.load_state_dict(plain.state_dict())
    nk.accelerate(fused)
    images = torch.randn(60, 2, 8, 8)
    expected = nk.recalibrate(plain, images.split(20), samples=None)
    found = nk.recalibrate(fused, images.split(20), samples=None)
    for name in expected.layers:
        torch.testing.assert_close(found.layers[name].mean, expected.layers[name].mean)


def test_in_inference_mode() -> None:
    model = nn.Sequential(nk.BatchNorm1d(3))
    with torch.inference_mode():
        found = nk.recalibrate(model, drifting(), samples=None)
    torch.testing.assert_close(model[0].running_mean.double(), total(drifting())[0], rtol=0,
                               atol=1e-6)  # fmt: skip
    found.undo()
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    model.train()(torch.randn(4, 3))  # and it trains on
