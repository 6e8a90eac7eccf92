"""A stream in order is noticed, a shuffled or shifted one is not."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.adaptation.order import ALPHA, LOOKS, Order, OrderWatch, f_tail


def stream(labels: Tensor, apart: float, seed: int, heavy: bool = False) -> Tensor:
    """Samples of 12 correlated channels, 2×2, whose mean depends on the label."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=generator)
    x = torch.randn(len(labels), 12, generator=generator)
    if heavy:
        x = x.sign() * (3 * x.abs()).exp()
    centres = apart * torch.randn(10, 12, generator=generator)
    means = (x + centres[labels]) @ mixing
    return means[:, :, None, None] + torch.randn(len(labels), 12, 2, 2, generator=generator)


def watch(x: Tensor, size: int, tests: int = 1) -> list[Order]:
    one = OrderWatch()
    results = [one.add(part, tests) for part in x.split(size)]
    return [each for each in results if each is not None]


LABELS = torch.arange(640) % 10


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("size", [2, 16, 100])
def test_shuffled_streams_are_seldom_taken_for_ordered(size: int, heavy: bool) -> None:
    alarms = 0
    for seed in range(40):
        order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(seed))
        results = watch(stream(LABELS[order], 1.0, seed, heavy), size)
        alarms += any(each.probability < ALPHA for each in results)
    # More than 3 of 40 have a probability of .0006 where each has one of ALPHA.
    assert alarms <= 3


def test_the_rate_is_what_it_says_and_not_zero_for_another_reason() -> None:
    at_first = []
    for seed in range(400):
        x = stream(torch.zeros(64, dtype=torch.long), 0.0, seed)
        first = watch(x, 16)[0]
        at_first.append(first.probability / 2)  # the first look may use half
    share = sum(p < 0.1 for p in at_first) / len(at_first)
    assert 0.06 < share < 0.14  # ± 2.7 standard errors


@pytest.mark.parametrize("size", [2, 16, 100])
def test_sorted_streams_are_noticed(size: int) -> None:
    for seed in range(5):
        results = watch(stream(LABELS.sort().values, 1.0, seed), size)
        assert any(each.ordered for each in results)


def test_a_sorted_stream_that_begins_with_one_label_for_long() -> None:
    labels = torch.arange(10).repeat_interleave(800)
    results = watch(stream(labels, 1.0, 0), 8)
    assert [each.groups for each in results] == [n for n in LOOKS if n <= 1000]
    assert [each.ordered for each in results] == [False] * 5 + [True] * 3


def test_a_shift_of_all_and_constant_channels_change_nothing() -> None:
    x = stream(LABELS, 1.0, 3)
    moved = watch(7 * x + 40, 16)
    for one, other in zip(watch(x, 16), moved, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    with_constant = torch.cat([x, torch.full_like(x, 0.1)], 1)
    for one, other in zip(watch(x, 16), watch(with_constant, 16), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    assert watch(torch.zeros(400, 3), 16) == []
    assert watch(torch.full((400, 3), torch.nan), 16) == []


def test_ratio_and_share_by_hand() -> None:
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    x = x.double() + torch.arange(4).repeat_interleave(10)[:, None] / 3
    groups = x.view(4, 10)
    between = 10 * groups.mean(1).var()
    within = groups.var(1).mean()
    (result,) = watch(x, 10)
    assert result.ratio == pytest.approx(float(between / within), rel=1e-5)
    excess = max(result.ratio - 1, 0)
    assert result.share == pytest.approx(excess / (excess + 10))
    assert result.probability == pytest.approx(min(1, 2 * f_tail(result.ratio, 3, 36)))


def test_tail_of_f() -> None:
    stats = pytest.importorskip("scipy.stats")
    for above, below, p in itertools.product((3, 10, 60), (28, 200, 5000), (1e-5, 1e-3, 0.05, 0.3)):
        ratio = float(stats.f.isf(p, above, below))
        assert 0.65 < f_tail(ratio, above, below) / p < 1.8


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1),
                         nn.BatchNorm2d(6)).eval()  # fmt: skip


def run(model: nn.Module, x: Tensor, size: int, **options: float) -> tuple[list[str], Order | None]:
    with warnings.catch_warnings(record=True) as caught, nk.adapt(model, **options) as handle:
        warnings.simplefilter("always")
        with torch.no_grad():
            for part in x.split(size):
                model(part)
    return [str(w.message) for w in caught], handle.order


def test_one_warning_that_tells_the_figure_and_the_way_out() -> None:
    texts, order = run(net(), stream(LABELS.sort().values, 1.0, 0), 32)
    assert len(texts) == 1
    assert order is not None
    assert order.ordered
    for part in ("looks ordered", "times that", "shuffle", "prior=256"):
        assert part in texts[0]
    texts, order = run(net(), stream(LABELS, 1.0, 0), 32)
    assert texts == []
    assert order is not None
    assert not order.ordered
    assert order.groups >= 4


def test_single_samples_are_compared_only_with_a_memory() -> None:
    x = stream(LABELS.sort().values, 1.0, 0)
    assert run(net(), x, 1) == ([], None)
    assert len(run(net(), x, 1, memory=100)[0]) == 1


def test_layers_called_several_times_for_a_batch_are_not_compared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(12)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x) + self.norm(10 + x)
            return y

    assert run(Twice().eval(), stream(LABELS, 1.0, 0), 32) == ([], None)


def test_reset_forgets_and_the_handle_prints_what_was_seen() -> None:
    model, x = net(), stream(LABELS, 1.0, 0)
    with nk.adapt(model) as handle:
        assert "order:" not in repr(handle)
        for part in x[:128].split(32):
            model(part)
        assert "4 batches" in repr(handle)
        handle.reset()
        assert handle.order is None
        for part in x[:96].split(32):
            model(part)
        assert handle.order is None


SIZES: list[Callable[[int], int]] = [lambda i: 5, lambda i: 3 + i % 40]


@pytest.mark.parametrize("size", SIZES)
def test_batches_of_any_sizes(size: Callable[[int], int]) -> None:
    for labels, noticed in ((LABELS, False), (LABELS.sort().values, True)):
        x, one, start, results = stream(labels, 1.0, 1), OrderWatch(), 0, []
        for i in range(200):
            part = x[start : start + size(i)]
            start += size(i)
            results.append(one.add(part, 1) if len(part) else None)
        assert any(each is not None and each.ordered for each in results) is noticed


@pytest.mark.parametrize("options", [{"memory": 1000.0}, {"memory": math.inf}, {"prior": 64.0}])
def test_a_stream_that_is_far_from_training_but_shuffled(options: dict[str, float]) -> None:
    """What comes to the second layer depends on the size of the batch, or on the time."""
    model = net()
    for seed in range(10):
        x = 30 * stream(LABELS[torch.randperm(640)], 1.0, seed) + 500
        sizes = [64] * 8 + [8] * 16
        with nk.adapt(model, **options) as handle, torch.no_grad():
            for part in x.split(sizes):
                model(part)
        assert handle.order is not None
        assert not handle.order.ordered


def test_trained_layers_do_not_look_like_an_ordered_stream() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*net(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    x = stream(LABELS[torch.randperm(640)], 1.0, 0)
    with nk.tent(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.3)) as handle:
        for part in x.split(16):
            model(part)
    assert handle.order is not None
    assert not handle.order.ordered
