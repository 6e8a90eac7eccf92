"""accelerate: accelerated networks compute the same, and undo restores them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.surgery.models import WILD, ConvNormAct, Twice, lazy, made, vgg


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient; parameters collect theirs."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def assert_alike(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Two steps in training, one in evaluation: outputs, all gradients, all buffers."""
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(step(ours, x), step(theirs, x))
        grads = [[p.grad for p in m.parameters()] for m in (ours, theirs)]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def anatomy(model: nn.Module) -> list[tuple[str, int, type, set[str]]]:
    """Every place in the model: which object stands there, its class and its own attributes."""
    places = model.named_modules(remove_duplicate=False)
    return [(name, id(m), type(m), set(vars(m))) for name, m in places]


@pytest.mark.parametrize("name", WILD)
def test_accelerated_model_computes_the_same_and_undo_restores_it(name: str) -> None:
    model, x = made(name)
    twin = copy.deepcopy(model)
    before, tensors = anatomy(model), [id(t) for t in model.state_dict(keep_vars=True).values()]
    handle = nk.accelerate(model)
    assert handle.changed
    assert [(place, i) for place, i, *_ in anatomy(model)] == [(p, i) for p, i, *_ in before]
    assert [id(t) for t in model.state_dict(keep_vars=True).values()] == tensors
    assert list(model.state_dict()) == list(twin.state_dict())
    assert_alike(model, twin, x)
    weights = copy.deepcopy(dict(model.state_dict()))
    handle.undo()
    assert anatomy(model) == before
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)
    assert_alike(model, twin, x)


FUSED = {
    "vgg": ["0.2", "0.6", "0.10", "4"], "residual": ["0.2"],
    "mobile": ["0.2", "1.body.0.2", "2.body.0.2"],
    "dense": ["0.layer0.relu", "0.layer1.relu", "0.layer2.relu"], "unet": ["down.2", "inner.2"],
    "recurrent": ["between.1"], "transformer": [], "tapped": ["model.2", "model.5"],
    "twice": ["a.1"], "parametrized": ["2"],
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_layer_and_activation_are_fused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made(name)
    handle = nk.accelerate(model)
    assert sorted(p for row in handle.changed for p in row.fused) == sorted(FUSED[name])
    calls: list[nn.Module] = []
    for act in {model.get_submodule(place) for place in FUSED[name]}:
        kind = type(act)
        monkeypatch.setattr(kind, "forward", lambda m, y: calls.append(m) or F_OF[type(m)](m, y))
    if name in {"vgg", "mobile", "dense", "recurrent"}:  # those that call none by itself
        model(x)
        assert not calls


F_OF = {
    cls: cls.forward for cls in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.LeakyReLU)
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder_keeps_its_fast_path(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    twin, x = copy.deepcopy(model), torch.randn(2, 5, 16)
    nk.accelerate(model)
    torch.testing.assert_close(model(x), twin(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x))


def test_model_that_is_a_layer() -> None:
    layer = nn.BatchNorm2d(3)
    handle = nk.accelerate(layer)
    assert type(layer) is nk.BatchNorm2d
    assert handle.changed[0].name == "" and "(the model)" in repr(handle)
    handle.undo()
    assert type(layer) is nn.BatchNorm2d


def test_lazy_layers_before_and_after_first_input() -> None:
    torch.manual_seed(1)
    model = lazy()
    torch.manual_seed(1)
    twin = lazy()
    handle = nk.accelerate(model)
    assert type(model[1]) is nk.LazyBatchNorm2d
    x = torch.randn(4, 3, 8, 8)
    for net in (model, twin):
        torch.manual_seed(2)
        net(x)
    twin.load_state_dict(model.state_dict())
    assert type(model[1]) is nk.BatchNorm2d
    assert_alike(model.double(), twin.double(), x.double())
    handle.undo()
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]


def test_uninitialized_lazy_layers() -> None:
    model = lazy()
    before = anatomy(model)
    nk.accelerate(model).undo()
    assert anatomy(model) == before


def test_second_call_changes_nothing() -> None:
    model = vgg()
    first = nk.accelerate(model)
    inside = anatomy(model)
    second = nk.accelerate(model)
    assert not second.skipped and anatomy(model) == inside
    assert all(row.before is row.after for row in second.changed)
    second.undo()
    assert anatomy(model) == inside
    first.undo()
    first.undo()
    assert type(model[0][1]) is nn.BatchNorm2d


def test_normkit_layers_without_activation_are_fused() -> None:
    model = nn.Sequential(nk.GhostBatchNorm2d(3, 2), nn.ReLU(), nk.LayerNorm2d(3, act="silu"),
                          nn.ReLU(), nk.HalfInstanceNorm2d(3), nn.GELU())  # fmt: skip
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 4, 4)
    handle = nk.accelerate(model)
    assert [row.fused for row in handle.changed] == [("1",), ("5",)]
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, saved])
@pytest.mark.parametrize("name", ["vgg", "mobile", "twice"])
def test_copies_and_pickles(copied: Callable[[nn.Module], nn.Module], name: str) -> None:
    model, x = made(name)
    twin = copy.deepcopy(model)
    nk.accelerate(model)
    found = copied(model)
    assert [type(m) for m in found.modules()] == [type(m) for m in model.modules()]
    assert_alike(found, twin, x)


def test_existing_optimizer_keeps_working() -> None:
    model, x = made("vgg")
    twin = copy.deepcopy(model)
    pairs = [(m, torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)) for m in (model, twin)]
    handle = nk.accelerate(model)
    for i in range(4):
        if i == 3:
            handle.undo()
        for net, optimizer in pairs:
            optimizer.zero_grad()
            step(net, x)
            optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_to_apply_and_load_state_dict() -> None:
    model, x = made("residual")
    twin = copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    handle = nk.accelerate(model)
    seen: list[type] = []
    model.apply(lambda m: seen.append(type(m)))
    assert nk.BatchNorm2d in seen
    model.float().double()
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(state)
    assert_alike(model, twin, x)
    handle.undo()
    assert_alike(model, twin, x)


def test_sequential_keeps_its_interface() -> None:
    model = nn.Sequential(ConvNormAct(3, 4, nn.ReLU), nn.BatchNorm2d(4), nn.ReLU())
    twin, shown = copy.deepcopy(model), repr(model)
    nk.accelerate(model)
    assert repr(model) == shown and len(model) == 3 and isinstance(model[0], ConvNormAct)
    assert model[0].width == 4 and type(model[2]) is nn.ReLU
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model[:2](x), twin[:2](x))
    model.append(nn.Tanh())
    twin.append(nn.Tanh())
    model[2], twin[2] = nn.Sigmoid(), nn.Sigmoid()
    torch.testing.assert_close(model(x), twin(x))


def test_shared_layer_stays_shared() -> None:
    model = Twice()
    nk.accelerate(model)
    assert model.a[0] is model.b[0] is model.c[0][1]


def test_checkpointing_counts_a_batch_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    nk.accelerate(model)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    assert int(model[0].num_batches_tracked) == 1
