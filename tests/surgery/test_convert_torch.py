"""convert(model, "torch"): exactly torch.nn's classes, and the same outputs."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.layer import Layer
from tests.nn.every_layer import EVERY
from tests.surgery.models import WILD, made
from tests.surgery.test_convert_pairs import same_states, snapshot

# Layers that torch.nn lacks, or whose evaluation none of its layers computes.
WITHOUT = {
    "DomainBatchNorm1d", "DomainBatchNorm2d", "DomainBatchNorm3d", "HalfInstanceNorm2d",
    "LayerNorm2d", "Scale",
}  # fmt: skip


def ours_in(model: nn.Module) -> list[str]:
    return [
        name
        for name, m in model.named_modules()
        if any(cls.__module__.startswith("normkit") for cls in type(m).__mro__)
    ]


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize("act", [None, "relu", ("leaky_relu", 0.2)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_every_layer(name: str, act: Any) -> None:
    """No class of normkit is left, unless listed."""
    layer = EVERY[name].make(**({} if act is None else {"act": act}))
    model, x = nn.Sequential(layer), torch.randn(EVERY[name].shape) + 1
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        handle = nk.convert(model, "torch")
        assert not ours_in(model) and type(layer) is getattr(nn, name)
        model(x)
        assert not ours_in(model)
        return
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.3)
    expected = copy.deepcopy(model).eval()(x)
    before = snapshot(model)
    handle = nk.convert(model, "torch")
    if handle.skipped:
        assert ours_in(model) == ["0"] and handle.skipped[0].why and snapshot(model) == before
        lacking = getattr(nn, name, None) is None
        assert lacking and not name.startswith(("Ghost", "Frozen", "BatchRenorm"))
        return
    assert not ours_in(model) and name not in WITHOUT
    torch.testing.assert_close(model.eval()(x), expected)
    handle.undo()
    assert model[0] is layer and type(layer) is EVERY[name].cls
    assert torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize("name", sorted({*WILD} - {"parametrized"}))
def test_what_accelerate_did_is_taken_back(name: str) -> None:
    model, x = made(name)
    expected, classes = copy.deepcopy(model).eval()(x), [type(m) for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    nk.accelerate(model)
    accelerated = snapshot(model)
    handle = nk.convert(model, "torch")
    assert [type(m) for m in model.modules()] == classes and not handle.skipped
    assert same_states(model.state_dict(), state)
    torch.testing.assert_close(model.eval()(x), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"normkit" not in buffer.getvalue()
    model.train()
    handle.undo()
    assert snapshot(model) == accelerated


class Block(nn.Module):
    """Layers in attributes, a dictionary and a list, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nk.BatchNorm2d(4, act="relu")
        self.norms = nn.ModuleDict({"a": nk.GroupNorm(2, 4, act="gelu"), "b": self.norm})
        self.more = nn.ModuleList([nk.InstanceNorm2d(4, affine=True, act=("leaky_relu", 0.3))])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms["a"](self.norm(x))
        return self.more[0](self.norms["b"](y))


def test_activations_become_modules_of_their_own() -> None:
    model, x = Block(), torch.randn(3, 4, 5, 5)
    model(x)
    layer, calls = model.norm, []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    before, expected = snapshot(model), copy.deepcopy(model).eval()(x)
    calls.clear()
    handle = nk.convert(model, "torch")
    assert not ours_in(model) and "its own keys begin with 'norm.0'" in repr(handle)
    assert model.norm is model.norms["b"] and type(model.norm) is nn.Sequential
    assert model.norm[0] is layer and type(model.norm[1]) is nn.ReLU
    assert type(model.norms["a"][1]) is nn.GELU and model.more[0][1].negative_slope == 0.3
    assert {"norm.0.weight", "norms.a.0.bias", "more.0.0.weight"} <= model.state_dict().keys()
    torch.testing.assert_close(model.eval()(x), expected)
    assert len(calls) == 2
    model.train()
    handle.undo()
    assert snapshot(model) == before


def test_activations_that_cannot_be_put_out() -> None:
    with pytest.warns(UserWarning, match=r"put it into torch.nn.Sequential\(layer\) first"):
        handle = nk.convert(layer := nk.BatchNorm2d(4, act="relu"), "torch")
    assert type(layer) is nk.BatchNorm2d and not handle.changed
    compiled = torch.compile(nk.BatchNorm2d(4, act="relu"), backend="eager")
    with pytest.warns(UserWarning, match="the model itself"):
        nk.convert(compiled, "torch")  # type: ignore[arg-type]
    hooked, listed = Block(), Block()
    hooked.norm.register_forward_hook(lambda *_: None)
    listed.also = [listed.norm]  # type: ignore[assignment]
    for model, why in ((hooked, "has hooks that see"), (listed, "refers to it, past its modules")):
        rows = nk.convert(model, "torch").skipped
        assert [row.name for row in rows] == ["norm"] and why in rows[0].why
        assert type(model.norm) is nk.BatchNorm2d and model.norm.act == "relu"


class WithResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nk.BatchNorm2d(4), nk.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x, residual=x))


def test_a_layer_called_with_a_residual() -> None:
    model, x = WithResidual(), torch.randn(3, 4, 5, 5)
    handle = nk.convert(model, "torch", batches=[x])
    assert [row.name for row in handle.changed] == ["last"]
    assert "called with a residual" in handle.skipped[0].why
    model(x)
    handle.undo()
    nk.convert(model, "torch")
    with pytest.raises(TypeError, match="residual"):  # and never a silent change
        model(x)


def test_frozen_layers_evaluate_until_the_next_train() -> None:
    model = nn.Sequential(nk.BatchNorm2d(4), nn.BatchNorm2d(4), nk.FrozenBatchNorm2d(4))
    x = torch.randn(3, 4, 5, 5)
    model(x)
    nk.freeze(model[:2])
    expected, before = model.train()(x), snapshot(model)
    handle = nk.convert(model, "torch")
    assert [type(m) for m in model] == [nn.BatchNorm2d] * 3
    torch.testing.assert_close(model(x), expected)
    assert repr(handle).count("constant in evaluation mode alone") == 3
    assert not any(p.requires_grad for p in model.parameters())
    handle.undo()
    assert snapshot(model) == before


def test_training_that_differs_is_noted() -> None:
    model = nn.ModuleDict({
        "ghost": nk.GhostBatchNorm2d(4, 2), "renorm": nk.BatchRenorm3d(4),
        "debiased": nk.BatchNorm1d(4, average="debiased"),
        "cumulative": nk.BatchNorm1d(4, average="cumulative"), "sync": nk.SyncBatchNorm(4),
    })  # fmt: skip
    notes = {row.name: row.note for row in nk.convert(model, "torch").changed}
    assert notes["ghost"] == "training takes the whole batch"
    assert notes["renorm"] == "training does not correct the batch"
    assert notes["debiased"] == "training averages exponentially and not debiased"
    assert notes["cumulative"] == "" and model["cumulative"].momentum is None
    assert type(model["sync"]) is nn.SyncBatchNorm and "GPU" in notes["sync"]


def test_tools_see_torch_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nk.BatchNorm2d(4, act="relu"), nn.Conv2d(4, 4, 1),
                          nk.GhostBatchNorm2d(4, 2), nn.ReLU())  # fmt: skip
    x = torch.randn(6, 3, 6, 6)
    model(x)
    expected = copy.deepcopy(model).eval()(x)
    nk.convert(model.eval(), "torch")
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), expected)
    traced = torch.fx.symbolic_trace(model)
    kinds = {type(m) for m in traced.modules() if not isinstance(m, torch.fx.GraphModule)}
    assert nn.BatchNorm2d in kinds and not any(issubclass(k, Layer) for k in kinds)
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1][0])
    torch.testing.assert_close(fused(x).relu(), model[:2](x), rtol=1e-4, atol=1e-5)
    names = [["0", "1.0", "1.1"], ["2", "3"]]
    quantizable = torch.ao.quantization.fuse_modules(copy.deepcopy(model), names)
    assert type(quantizable[0]) is torch.ao.nn.intrinsic.ConvReLU2d
    torch.testing.assert_close(quantizable(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
