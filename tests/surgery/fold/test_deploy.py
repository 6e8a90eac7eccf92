"""Preparing for production: what is changed, checked and timed, and weights of a folded model."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.surgery.fold import timing
from tests.surgery.fold.sweep import settle
from tests.surgery.fold.test_fold import Calls, bn, conv, outputs

X = torch.randn(3, 4, 6, 6)


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", range(1, 2))


def net() -> nn.Module:
    return settle(
        nn.Sequential(
            conv(bias=False), nk.BatchNorm2d(4, act="relu"), nk.GroupNorm(2, 4), nn.ReLU(), conv()
        )
    )  # fmt: skip


def test_folds_times_and_undoes() -> None:
    model = net()
    state, y = {k: v.clone() for k, v in model.state_dict().items()}, outputs(model, X)
    handle = nk.deploy(model, X)
    assert [row.name for row in handle.changed] == ["1"]
    assert [time.samples for time in handle.times] == [1, 3]
    assert all(time.before > 0 and time.after > 0 for time in handle.times)
    shown = str(handle)
    assert shown.startswith("deploy: 1 changed, 0 skipped")
    assert re.search(r"outputs on the example differ by \S+ if computed in float64", shown)
    assert re.search(r"evaluation of 1 sample: \S+ → \S+ ms \(\S+ ×\)", shown)
    assert torch.allclose(outputs(model, X), y, atol=1e-5)
    handle.undo()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert torch.equal(outputs(model, X), y)


def test_for_tools_leaves_no_layer_of_this_package() -> None:
    model = net()
    y = outputs(model, X)
    handle = nk.deploy(model, X, for_tools=True)
    assert {type(m).__module__.split(".")[0] for m in model.modules()} == {"torch"}
    assert len(handle.changed) == 2
    assert torch.allclose(outputs(model, X), y, atol=1e-5)
    handle.undo()
    assert type(model[2]) is nk.GroupNorm and torch.equal(outputs(model, X), y)


def test_a_model_that_takes_no_single_sample_is_timed_on_the_example() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ValueError("two or more")
            return self.body(x)

    assert [t.samples for t in nk.deploy(Pairs().eval(), X).times] == [3]


def test_a_model_that_cannot_be_copied_is_not_timed() -> None:
    model = net()
    model.generator = (n for n in ())
    handle = nk.deploy(model, X)
    assert handle.times == () and "not timed, as the model cannot be copied" in str(handle)


def test_what_goes_wrong_after_folding_undoes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = (m := net()), outputs(m, X)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    deploying = importlib.import_module("normkit.surgery.fold.deploy")
    monkeypatch.setattr(deploying, "compare_times", fail)
    with pytest.raises(RuntimeError, match="stop"):
        nk.deploy(model, X)
    assert type(model[1]) is nk.BatchNorm2d and torch.equal(outputs(model, X), y)
    with pytest.raises(nk.OptionError, match="model in evaluation mode"):
        nk.deploy(model.train(), X)


def test_times_of_two_calls_are_taken_in_turn() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    timing.time_in_turn(calls, seconds=0.0)
    assert order[:4] == ["a", "b", "a", "b"]


def residual() -> nn.Module:
    return Calls(lambda m, x: m.bn(m.conv(x), residual=x), conv=conv(bias=False),
                 bn=nk.BatchNorm2d(4, act="relu"))  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "net": net,
    "torch": lambda: nn.Sequential(conv(bias=False), bn(), nn.ReLU(), conv(), bn()),
    "residual": residual,
    "group without": lambda: nn.Sequential(nn.GroupNorm(2, 4, affine=False), bn()),
    "partly": lambda: nn.Sequential(conv(), nn.ReLU(), bn(), nn.Sigmoid(), conv(), bn()),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_a_folded_model_load_into_one_built_as_before(name: str) -> None:
    folded, model = settle(MODELS[name](), 1), settle(MODELS[name](), 2)
    handle = nk.fold(folded, X)
    assert handle.changed
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loaded = nk.load_folded(model, folded.state_dict())
    assert [row.name for row in loaded.changed] == [row.name for row in handle.changed]
    assert torch.equal(outputs(model, X), outputs(folded, X))
    loaded.undo()
    assert list(model.state_dict()) == list(before)


def test_entries_that_do_not_fit_are_refused() -> None:
    folded, model = net(), net()
    nk.fold(folded, X)
    state = folded.state_dict()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for wrong in (
        {k: v for k, v in state.items() if k != "4.weight"},
        {**state, "5.weight": torch.zeros(1)},
        {**state, "4.weight": torch.zeros(2, 4, 1, 1)},
        [1],
    ):
        with pytest.raises(nk.OptionError, match="Fix"):
            nk.load_folded(model, wrong)
        now = model.state_dict()
        assert list(now) == list(before) and all(torch.equal(now[k], v) for k, v in before.items())
    with pytest.raises(RuntimeError):  # torch's own refuses it too: nothing is loaded by half
        model.load_state_dict(state)
