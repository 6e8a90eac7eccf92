"""Rules that look at batches: each finds its fault, and says nothing of the healthy twin."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from normkit.doctor import Finding
from normkit.doctor.order import between_batches

Batches = list[tuple[Tensor, Tensor]]
CLASSES, SIDE = 4, 8


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of four classes that differ in brightness by quadrant, standardized."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for i, label in enumerate(labels.tolist()):
        x[i, 0, half * (label // 2) :, half * (label % 2) :] += 2
    return (x - x.mean()) / x.std(), labels


def split(x: Tensor, y: Tensor, size: int = 32) -> Batches:
    return list(zip(x.split(size), y.split(size), strict=True))


def net(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8) if norm is None else norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def fit(model: nn.Module, batches: Iterable[Any], epochs: int = 1) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def settle(model: nn.Module, batches: Batches) -> nn.Module:
    """Take the statistics that a long average would have."""
    nk.recalibrate(model, batches, progress=False)
    return model


TRAIN, TEST = split(*images(1_280)), split(*images(640, seed=1))


@pytest.fixture(scope="module")
def healthy() -> nn.Module:
    return settle(fit(net(), TRAIN, epochs=2), TRAIN)


def codes(model: nn.Module, *batches: Any) -> set[str]:
    return {one.rule for one in nk.diagnose(model, *batches).findings if one.severity != "note"}


def only(model: nn.Module, rule: str, *batches: Any) -> Finding:
    result = nk.diagnose(model, *batches)
    (found,) = result.of(rule)
    first = result.findings[0]
    assert first.severity == found.severity or first.rule == rule, result
    return found


def test_nothing_is_said_of_a_healthy_model(healthy: nn.Module) -> None:
    assert codes(healthy, TRAIN, TEST) == set()


def test_start_not_forgotten() -> None:
    model = fit(net(nn.BatchNorm2d(8, momentum=0.005)), TRAIN)
    found = only(model, "NK202", TRAIN, TEST)
    assert found.value == pytest.approx(0.995**40)
    assert found.gain is not None
    found.mend()
    assert not nk.diagnose(model, TRAIN).of("NK202")


def test_noisy_average(healthy: nn.Module) -> None:
    model = copy.deepcopy(healthy)
    few = split(*images(1_280), size=4)
    model[1].momentum = 0.4  # type: ignore[index, operator]
    with torch.no_grad():
        for x, _ in few:
            model.train()(x)
    assert "NK203" in codes(model, few)


@pytest.mark.parametrize(("count", "rest"), [(1_027, 3), (1_025, 1)])
def test_last_batch_is_incomplete(healthy: nn.Module, count: int, rest: int) -> None:
    data = TensorDataset(*images(count))
    found = only(healthy, "NK204", DataLoader(data, 32, shuffle=True))
    assert found.value == rest / 32
    assert codes(healthy, DataLoader(data, 32, shuffle=True, drop_last=True)) == set()
    assert codes(healthy, split(*images(count))) == {"NK204"}


def test_last_batch_of_one_value_stops_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    loader = DataLoader(TensorDataset(*images(1_025)), 32)
    settle(fit(model, TRAIN), TRAIN)
    assert only(model, "NK204", loader).severity == "error"
    with pytest.raises(ValueError):
        fit(model, loader)


def test_batches_in_order(healthy: nn.Module) -> None:
    x, y = images(1_280)
    order = y.argsort(stable=True)
    found = only(healthy, "NK205", split(x[order], y[order]))
    assert found.value is not None
    assert found.value > 0.5
    assert "labels" in found.says
    # Without labels the inputs show it.
    dark = [one * (0.2 + (i // 10)) for i, one in enumerate(x.split(32))]
    assert "inputs" in only(healthy, "NK205", dark).says


def test_share_between_batches_of_random_ones_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.arange(640) // 32
    sure = 0
    for _ in range(100):
        values = torch.randn(640, 3, dtype=torch.float64, generator=generator)
        share, significant = between_batches(values, batch)
        assert abs(share) < 0.05
        sure += significant
    assert sure == 0
    # A step of half a deviation from batch to batch: a fifth of the variance.
    shifted = torch.randn(640, 1, dtype=torch.float64, generator=generator)
    shifted += 0.5 * torch.randn(20, 1, dtype=torch.float64, generator=generator)[batch]
    share, significant = between_batches(shifted, batch)
    assert significant
    assert share == pytest.approx(0.2, abs=0.1)


def test_small_batches(healthy: nn.Module) -> None:
    found = only(net(nn.BatchNorm2d(8)), "NK206", split(*images(640), size=2))
    assert found.places == ("1",)
    assert not nk.diagnose(healthy, TRAIN).of("NK206")


def test_inputs_as_bytes(healthy: nn.Module) -> None:
    raw = [(40 * x + 120, y) for x, y in TRAIN]
    assert only(healthy, "NK207", raw).value > 1  # type: ignore[operator]
    first = nn.Sequential(nn.BatchNorm2d(1), healthy)
    assert not nk.diagnose(first, raw).of("NK207")


def test_precision_is_lost() -> None:
    model = net().bfloat16()
    model[0].bias.data += 200  # type: ignore[index, operator, union-attr]
    data = [(x.bfloat16(), y) for x, y in TRAIN]
    assert only(model, "NK208", data).places == ("1",)
    assert not nk.diagnose(model.float(), TRAIN).of("NK208")
    far = [((x + 300).bfloat16(), y) for x, y in TRAIN]
    (found,) = nk.diagnose(net().bfloat16(), far).of("NK208")
    assert found.places == ()
    assert found.value == pytest.approx(300 / 128 / 1.5, rel=0.3)


def test_input_is_not_finite(healthy: nn.Module) -> None:
    data = copy.deepcopy(TRAIN)
    data[3][0][0] = float("nan")
    found = only(healthy, "NK209", data, TEST)
    assert found.severity == "error"
    assert "finite" in found.says
    # What it does to the statistics follows from it, and no scale can be compared.
    model = copy.deepcopy(healthy)
    model[1].running_var[0] = torch.nan  # type: ignore[index, operator]
    assert codes(model, data, TEST) == {"NK209"}


def test_dropout_before_a_layer() -> None:
    def build(p: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Dropout(p), nn.Linear(32, 16), nn.BatchNorm1d(16),
            nn.ReLU(), nn.Linear(16, CLASSES),
        )  # fmt: skip

    found = only(fit(build(0.7), TRAIN, epochs=3), "NK210", TRAIN, TEST)
    assert found.places == ("4",)
    assert not nk.diagnose(fit(build(0.0), TRAIN, epochs=3), TRAIN).of("NK210")


def test_one_value() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.GroupNorm(8, 8), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip
    assert only(model, "NK211", TRAIN).severity == "error"
    model[2] = nn.GroupNorm(2, 8)
    assert not nk.diagnose(model, TRAIN).of("NK211")


def test_constant_channels(healthy: nn.Module) -> None:
    model = copy.deepcopy(healthy)
    model[0].weight.data[:4] = 0  # type: ignore[index, operator, union-attr]
    (found,) = nk.diagnose(model, TRAIN).of("NK212")
    assert found.value == 0.5
    assert not nk.diagnose(healthy, TRAIN).of("NK212")


class Twice(nn.Module):
    """One encoder for an image and its negative."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.encoder, self.shift = net(), shift

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x) + self.encoder(3 * self.shift + (1 + self.shift) * x)  # type: ignore[no-any-return]


def test_shared_layer() -> None:
    model = settle(fit(Twice(1.0), TRAIN), TRAIN)
    assert only(model, "NK213", TRAIN).places == ("encoder.1",)
    assert not nk.diagnose(settle(fit(Twice(0.0), TRAIN), TRAIN), TRAIN).of("NK213")


def test_evaluation_inputs_on_another_scale(healthy: nn.Module) -> None:
    found = only(healthy, "NK301", TRAIN, [(0.3 * x + 2, y) for x, y in TEST])
    assert found.gain is not None
    assert found.gain.helps


def test_domain_shift(healthy: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = [(x + 1.0 * torch.randn(x.shape, generator=generator), y) for x, y in TEST]
    noisy = [((x - x.mean()) / x.std(), y) for x, y in noisy]
    result = nk.diagnose(healthy, TRAIN, noisy)
    assert result.of("NK302")
    assert not nk.diagnose(healthy, TRAIN, TEST).of("NK302")


def test_batches_that_tell_the_labels() -> None:
    x, y = images(1_280)
    # Each batch has one bright class among many dark images: what is bright depends on the batch.
    data = []
    for i in range(40):
        shift = torch.full((32, 1, 1, 1), 4.0 * (i % 3))
        data.append((x[32 * i : 32 * i + 32] * 0.3 + shift, y[32 * i : 32 * i + 32]))
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
    fit(model, data, epochs=3)
    found = only(model, "NK303", data, data)
    assert found.value is not None
    assert found.value > 2


def test_evaluation_leaves_samples_out(healthy: nn.Module) -> None:
    data = TensorDataset(*images(1_010, seed=2))
    (found,) = nk.diagnose(healthy, TRAIN, DataLoader(data, 32, drop_last=True)).of("NK305")
    assert found.value == 18 / 1_010
    assert not nk.diagnose(healthy, TRAIN, DataLoader(data, 32)).of("NK305")


def test_batches_that_are_too_small_come_before_what_follows_from_them(healthy: nn.Module) -> None:
    model = net(nn.BatchNorm2d(8))
    pairs = split(*images(640), size=2)
    with torch.no_grad():
        for x, _ in pairs:
            model.train()(0.2 * x[:, :, :1, :1].expand_as(x))
    found = codes(model, [(0.2 * x[:, :, :1, :1].expand_as(x), y) for x, y in pairs])
    assert "NK206" in found
    assert "NK203" not in found
