"""accelerate: modules it skips, its table, hooks, and failures."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit as nk
from tests.surgery.models import Positive, vgg


class Theirs(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Own(nn.Sequential):
    """A Sequential that does something else."""

    def forward(self, input: Tensor) -> Tensor:
        return self[0](input)


class Registered(nn.Sequential):
    subclasses = 0

    def __init_subclass__(cls) -> None:
        Registered.subclasses += 1


def pair() -> list[nn.Module]:
    return [nn.BatchNorm2d(3), nn.ReLU()]


X = torch.linspace(-2, 3, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def test_skipped_modules_are_listed() -> None:
    parametrized = nn.BatchNorm2d(3)
    parametrize.register_parametrization(parametrized, "weight", Positive())
    with_act = nn.BatchNorm2d(3)
    with_act.act = nn.Tanh()
    patched = nn.GroupNorm(1, 3)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.ModuleDict({
        "theirs": Theirs(3), "parametrized": parametrized, "sync": nn.SyncBatchNorm(3),
        "with_act": with_act, "patched": patched, "other": nn.LocalResponseNorm(2),
        "ours": nk.BatchNorm2d(3), "twice": nn.Sequential(with_act, nn.ReLU()),
    })  # fmt: skip
    before = [type(m) for m in model.modules()]
    handle = nk.accelerate(model)
    assert not handle.changed and [type(m) for m in model.modules()] == before
    assert {row.name: row.why for row in handle.skipped} == {
        "theirs": "a subclass with its own forward",
        "parametrized": "parametrized",
        "sync": "use normkit.SyncBatchNorm.convert_sync_batchnorm",
        "with_act": "has its own act",
        "patched": "its forward was replaced",
    }
    assert f"{Theirs.__module__}.Theirs skipped: a subclass" in repr(handle)


@pytest.mark.parametrize("make", [lambda: Own(*pair()), lambda: Registered(*pair())])
def test_customized_sequentials_are_not_fused(make: type[nn.Sequential]) -> None:
    model = make()
    twin, kind = copy.deepcopy(model), type(model)
    handle = nk.accelerate(model)
    assert type(model) is kind and handle.changed[0].fused == () and Registered.subclasses == 0
    torch.testing.assert_close(model(X), twin(X))


@pytest.mark.parametrize(
    "act",
    [nn.Hardtanh(0.0, 6.0), nn.Hardswish(), nn.GELU("tanh"), nn.Sigmoid(), nn.ELU(), nn.Identity()],
)
def test_other_activations_are_not_fused(act: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), act)
    twin = copy.deepcopy(model)
    handle = nk.accelerate(model)
    assert handle.changed[0].fused == () and not handle.skipped
    torch.testing.assert_close(model(X), twin(X))


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.3), nn.LeakyReLU(0), nn.LeakyReLU(-0.5)])
def test_leaky_relu_slopes(act: nn.LeakyReLU) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), act)
    twin = copy.deepcopy(model)
    nk.accelerate(model)
    for net in (model, twin):
        net(X).square().sum().backward()
    torch.testing.assert_close(model(X), twin(X))
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.1), nn.SiLU(), nn.GELU(), nn.Identity()])
def test_in_place_operations_on_the_result(act: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), act)
    twin = copy.deepcopy(model)
    nk.accelerate(model)
    for net in (model, twin):
        y = net(X)
        y += 1
        y.neg_().square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)


HOOKS = ["forward_pre", "forward", "full_backward_pre", "full_backward"]


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_see_the_same_calls(kind: str, early: bool, where: int) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    twin = copy.deepcopy(model)
    seen: dict[str, list[object]] = {"ours": [], "theirs": []}

    def watch(net: nn.Sequential, into: list[object]) -> None:
        getattr(net[where], f"register_{kind}_hook")(lambda _, *values: into.append(values))

    watch(twin, seen["theirs"])
    if early:
        watch(model, seen["ours"])
    handle = nk.accelerate(model)
    assert len(handle.skipped) == early
    if not early:
        watch(model, seen["ours"])
    for net in (model, twin):
        net(X.clone().requires_grad_()).square().sum().backward()
    assert seen["theirs"]
    torch.testing.assert_close(seen["ours"], seen["theirs"])


def test_global_hook_sees_all_modules() -> None:
    model = nn.Sequential(*pair())
    nk.accelerate(model)
    seen: list[type] = []
    watching = torch.nn.modules.module.register_module_forward_hook(
        lambda m, *_: seen.append(type(m))
    )
    model(X)
    watching.remove()
    assert seen[:2] == [nk.BatchNorm2d, nn.ReLU]


def test_undo_skips_layers_changed_since() -> None:
    model = nn.Sequential(*pair(), nn.GroupNorm(1, 3), nn.Conv2d(3, 3, 1))
    handle = nk.accelerate(model)
    parametrize.register_parametrization(model[0], "weight", Positive())
    model[2].act = "relu"
    model[3] = nn.Tanh()
    with pytest.warns(UserWarning, match=r"0 \(.*ParametrizedBatchNorm2d\): its class was changed"):
        handle.undo()
    assert isinstance(model[0], nk.BatchNorm2d) and type(model[2]) is nn.GroupNorm
    assert type(model) is nn.Sequential and not {"_act", "_act_option"} & set(vars(model[2]))
    handle.undo()


def test_convert_sync_batchnorm_after_accelerate() -> None:
    # PyTorch's own conversion does not know of activations in a layer, and finds none.
    for convert in (nn.SyncBatchNorm, nk.SyncBatchNorm):
        model = nn.Sequential(*pair()).eval()
        expected = model(X)
        nk.accelerate(model)
        torch.testing.assert_close(convert.convert_sync_batchnorm(model)(X), expected)


def test_failure_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vgg()
    before = [type(m) for m in model.modules()]
    turned: list[type] = []

    def failing(module: nn.Module, cls: type) -> None:
        turned.append(cls)
        if len(turned) == 4:
            raise RuntimeError("midway")
        object.__setattr__(module, "__class__", cls)

    monkeypatch.setattr("normkit.surgery.class_change.set_class", failing)
    with pytest.raises(RuntimeError, match="midway"):
        nk.accelerate(model)
    assert [type(m) for m in model.modules()] == before


@pytest.mark.parametrize(
    ("model", "came"),
    [
        ([nn.ReLU()], "a list with a "),
        (nn.BatchNorm2d, "the class"),
        (None, "None"),
    ],
)
def test_other_objects_are_refused(model: object, came: str) -> None:
    with pytest.raises(nk.TypeMismatchError, match=f"received {came}.*Fix: "):
        nk.accelerate(model)  # type: ignore[arg-type]


def test_scripted_modules() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    with pytest.raises(nk.TypeMismatchError, match=r"RecursiveScript.*before torch"):
        nk.accelerate(scripted)
    model = nn.Sequential(scripted, *pair())
    handle = nk.accelerate(model)
    assert [row.name for row in handle.changed] == ["1"]
    assert [(row.name, row.why) for row in handle.skipped] == [("0", "scripted")]
    model(X)


def test_quantization_modules_are_skipped() -> None:
    fused = torch.ao.nn.intrinsic.BNReLU2d(nn.BatchNorm2d(3), nn.ReLU())
    handle = nk.accelerate(nn.Sequential(fused))
    assert type(fused[0]) is nn.BatchNorm2d and handle.skipped[0].why == "a torch.ao module"


def test_long_table_is_truncated() -> None:
    handle = nk.accelerate(nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(30))))
    assert "… and 10 more" in repr(handle) and len(handle.changed) == 30
