"""What fold refuses before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import normkit as nk
from normkit.surgery.fold import trial
from tests.surgery.fold.sweep import settle
from tests.surgery.fold.test_fold import TRAPS

X = torch.randn(2, 3, 5, 5)


def net() -> nn.Module:
    return settle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


def compiled() -> nn.Module:
    model = net()
    model[0].compile(backend="eager")
    return model


class Sizes(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).shape


REFUSED: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "training": (lambda: net().train(), X, nk.OptionError, "call model.eval() first"),
    "scripted": (lambda: torch.jit.script(net()), X, nk.TypeMismatchError, "not scripted"),
    "class": (lambda: nn.Conv2d, X, nk.TypeMismatchError, "an instance"),
    "swapped": (lambda: X, net(), nk.TypeMismatchError, "swap the two"),
    "parallel": (lambda: nn.DataParallel(net()).eval(), X, nk.OptionError, "one in DataParallel"),
    "averaged": (lambda: AveragedModel(net()).eval(), X, nk.OptionError, "one in AveragedModel"),
    "compiled": (lambda: torch.compile(net(), backend="eager"), X, nk.OptionError, "compiled one"),
    "compiled part": (compiled, X, nk.OptionError, "a compiled one at 0"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)).eval(), X,
             nk.StatisticsError, "lazy and without input"),
    "meta": (lambda: net().to("meta"), X, nk.StatisticsError, "on the meta device"),
    "no tensor": (net, "images", nk.DataError, "tensor"),
    "list of samples": (net, [{"x": X}, {"x": X}], nk.TypeMismatchError, "samples"),
    "output": (lambda: Sizes(*net()).eval(), X, nk.StatisticsError, "output holds a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out(name: str) -> None:
    make, example, error, text = REFUSED[name]
    model = make()
    with pytest.raises(error, match=re.escape(text)):
        nk.fold(model, example)


def test_global_hooks_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(nk.OptionError, match="hooks for the calls of all modules"):
            nk.fold(net(), X)
    finally:
        handle.remove()


def test_an_error_of_the_model_is_its_own_and_changes_nothing() -> None:
    model = net()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        nk.fold(model, torch.randn(2, 5, 4, 4))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def wrong_weights(monkeypatch: pytest.MonkeyPatch, only_whole: bool) -> None:
    """Let a merge be wrong; ``only_whole``: so that the check of each fold does not see it."""
    make = trial.merge_step

    def wrong(name: str, module: Any, rest: Any, hosts: Any) -> Any:
        wider = {k: (h, m._replace(weight=1.1 * m.weight)) for k, (h, m) in hosts.items()}
        return make(name, module, rest, wider)

    monkeypatch.setattr(trial, "merge_step", wrong)
    if only_whole:
        monkeypatch.setattr(trial, "replay", lambda *_: [torch.zeros(1)])


def test_a_fold_that_is_wrong_is_reverted_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_weights(monkeypatch, only_whole=False)
    model = net()
    with pytest.warns(UserWarning, match="folded, it differs by"):
        handle = nk.fold(model, X)
    assert not handle.changed and type(model[1]) is nn.BatchNorm2d


def test_a_model_that_is_wrong_as_a_whole_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_weights(monkeypatch, only_whole=True)
    model = net()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(nk.StatisticsError, match="computes what the model did"):
        nk.fold(model, X)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def test_a_model_that_is_wrong_in_its_own_type_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = model(X)
    make = trial.Fold.step

    def wrong(fold: Any) -> Any:
        host, merged = fold.merge.hosts["0"]
        fold.merge.hosts["0"] = host, merged._replace(weight=1.1 * merged.weight)
        return make(fold)

    monkeypatch.setattr(trial.Fold, "step", wrong)
    with pytest.raises(nk.StatisticsError, match="computes what the model did"):
        nk.fold(model, X)
    assert torch.equal(model(X), before) and type(model[1]) is nn.BatchNorm2d


class Asks(nn.Module):
    """A model whose code asks a layer that could be folded for its size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, : self.body[1].num_features]


def test_a_model_whose_code_needs_the_layer_is_undone() -> None:
    model = Asks().eval()
    before = model(X)
    with pytest.raises(nk.StatisticsError, match=r"num_features.*ask a folded layer"):
        nk.fold(model, X)
    assert torch.equal(model(X), before)


class Casts(nn.Module):
    """A model whose code demands float32, as some for images of bytes do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(torch.float32))


def test_a_model_that_cannot_run_in_float64_is_checked_in_its_type() -> None:
    model = Casts().eval()
    before = model(X)
    handle = nk.fold(model, X)
    assert len(handle.changed) == 1
    assert torch.allclose(model(X), before, atol=1e-5)


def test_random_state_buffers_and_modes_are_as_before() -> None:
    model = net()
    model.append(nn.Dropout(0.5).train())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    handle = nk.fold(model, X)
    assert torch.equal(torch.rand(3), expected) and len(handle.changed) == 1
    assert model[2].training and not model[0]._forward_hooks


def test_weights_that_a_hook_computes_and_tensors_kept_are_as_before() -> None:
    model = net().append(nn.Conv2d(4, 4, 1))
    prune.l1_unstructured(model[2], "weight", 0.5)
    weight = model[2].weight
    nk.fold(model, X)
    assert model[2].weight is weight and weight.dtype == torch.float32
    keeping = settle(TRAPS["output kept"][0]())
    with pytest.warns(UserWarning, match="code that keeps it after the pass"):
        nk.fold(keeping, torch.randn(2, 4, 5, 5))
    assert not hasattr(keeping, "kept")
