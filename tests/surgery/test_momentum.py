"""scale_momentum: averages forget as much per step with accumulation as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.nn import DomainBatchNorm2d
from normkit.nn.stats_spec import _BY_NAME, StatsSpec, stats_spec
from normkit.statistics import use_domain
from normkit.surgery import freeze, scale_momentum


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d, nn.InstanceNorm1d])
@pytest.mark.parametrize("k", [2, 8, 1000])
@pytest.mark.parametrize("m", [1e-6, 0.1, 0.5, 1.0])
def test_k_passes_forget_as_much_as_one(make: Any, k: int, m: float) -> None:
    """What is left of the start, after k passes of one batch, is what one pass would leave."""
    plain, scaled = (make(2, momentum=m, track_running_stats=True).double() for _ in range(2))
    x = torch.randn(8, 2, 5, dtype=torch.float64) + 3
    scale_momentum(scaled, k)
    plain(x)
    for _ in range(k):
        scaled(x)
    torch.testing.assert_close(scaled.running_mean, plain.running_mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(scaled.running_var, plain.running_var, rtol=1e-9, atol=0)


def test_unscaled_momentum_forgets_k_times() -> None:
    """What it is against does happen."""
    layer, x = nn.BatchNorm1d(2), torch.full((4, 2), 1.0)
    for _ in range(4):
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.full((2,), 1 - 0.9**4))


def test_a_debiased_average_weighs_steps_as_before() -> None:
    plain, scaled = (nk.BatchNorm1d(2, momentum=0.3, average="debiased").double() for _ in range(2))
    scale_momentum(scaled, 3)
    for i in range(5):
        x = torch.randn(8, 2, dtype=torch.float64) + i
        plain(x)
        for _ in range(3):
            scaled(x)
    torch.testing.assert_close(scaled.running_mean, plain.running_mean)
    torch.testing.assert_close(scaled.running_var, plain.running_var)


def test_skipped_layers_and_undo() -> None:
    model = nn.ModuleDict({
        "plain": nn.BatchNorm2d(3), "ours": nk.GhostBatchNorm2d(3, 2, momentum=0.5),
        "cumulative": nk.BatchNorm2d(3, average="cumulative"),
        "none": nn.BatchNorm2d(3, momentum=None),
        "still": nn.BatchNorm2d(3, momentum=0.0), "frozen": nn.BatchNorm2d(3),
        "odd": nn.BatchNorm2d(3, momentum=1.5), "untracked": nn.InstanceNorm2d(3),
        "domains": DomainBatchNorm2d(3, 2), "renorm": nk.nn.BatchRenorm2d(3),
    })  # fmt: skip
    freeze(model["frozen"])
    before = [m.momentum for m in model.values()]
    assert not scale_momentum(model, 1).changed
    handle = scale_momentum(model, 4)
    assert {row.name: row.note for row in handle.changed} == {
        "plain": "momentum 0.1 → 0.026", "ours": "momentum 0.5 → 0.159",
        "domains": "momentum 0.1 → 0.026", "renorm": "momentum 0.01 → 0.00251",
    }  # fmt: skip
    assert {row.name: row.why for row in handle.skipped} == {
        "cumulative": "cumulative: weighs all batches equally",
        "none": "cumulative: weighs all batches equally",
        "still": "its statistics are not updated", "frozen": "its statistics are not updated",
        "odd": "momentum 1.5 is not between 0 and 1",
    }  # fmt: skip
    with use_domain(model, 1):
        model["domains"](torch.full((2, 3, 4, 4), 1.0))
    torch.testing.assert_close(model["domains"].running_mean[1], torch.full((3,), 1 - 0.9**0.25))
    model["ours"].momentum = 0.7
    with pytest.warns(UserWarning, match="ours .*its momentum was changed again"):
        handle.undo()
    model["ours"].momentum = 0.5
    assert [m.momentum for m in model.values()] == before


@pytest.mark.parametrize("wrong", [0, -2, 2.0, True, None])
def test_invalid_micro_batches_are_refused(wrong: Any) -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(nk.OptionError, match="Fix: "):
        scale_momentum(layer, wrong)
    with pytest.raises(nk.TypeMismatchError, match="received a list with a "):
        scale_momentum([layer], 2)  # type: ignore[arg-type]
    assert layer.momentum == 0.1


class Registered(nn.Module):
    """A layer of another library, with running statistics and a momentum."""

    def __init__(self, **attributes: float) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        for key, value in attributes.items():
            setattr(self, key, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class SaysIt(Registered):
    pass


class RegisteredOfTorch(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


stats_spec.register(Registered)(lambda layer: StatsSpec())
stats_spec.register(SaysIt)(lambda layer: StatsSpec(momentum="decay"))
stats_spec.register(RegisteredOfTorch)(lambda layer: StatsSpec())


def test_momentum_of_unknown_meaning_stays() -> None:
    """Keras and its like call the share kept momentum; a scaled 0.99 would be 0.684."""
    model = nn.ModuleDict({
        "kept": Registered(momentum=0.99), "none": Registered(),
        "says": SaysIt(decay=0.1, momentum=0.9), "torch": RegisteredOfTorch(3),
        "plain": nn.BatchNorm2d(3), "ours": nk.BatchNorm2d(3),
    })  # fmt: skip
    handle = scale_momentum(model, 4)
    assert {row.name: row.note for row in handle.changed} == {
        "says": "decay 0.1 → 0.026", **dict.fromkeys(("torch", "plain", "ours"),
                                                     "momentum 0.1 → 0.026"),
    }  # fmt: skip
    why = {row.name: row.why for row in handle.skipped}
    assert "StatsSpec(momentum=...)" in why["kept"] and why["none"] == "has no momentum"
    assert model["kept"].momentum == 0.99 and model["says"].momentum == 0.9
    model["says"].decay = 0.5
    with pytest.warns(UserWarning, match="its decay was changed again"):
        handle.undo()
    assert model["plain"].momentum == model["torch"].momentum == 0.1


def test_layers_of_known_libraries_are_scaled() -> None:
    assert all(spec.momentum == "momentum" for spec in _BY_NAME.values())
