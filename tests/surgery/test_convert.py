"""convert: another kind of layer with the same weights and running statistics, and undo."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn import BatchRenorm2d, DomainBatchNorm1d, DomainBatchNorm2d
from normkit.nn.freezing import base_class, is_frozen
from normkit.statistics import use_domain
from normkit.surgery import accelerate, convert, freeze, new_state
from tests.surgery.models import Twice, made
from tests.surgery.test_accelerate import anatomy, saved, step

KINDS: list[Any] = ["batch", "sync", ("ghost", 2), "renorm", ("domain", 3), "frozen"]
# Exactly what a layer of the kind is, made by hand.
MAKE: dict[Any, Any] = {
    "batch": nk.BatchNorm2d, "sync": nk.SyncBatchNorm,
    ("ghost", 2): lambda c: nk.GhostBatchNorm2d(c, 2), "renorm": BatchRenorm2d,
    ("domain", 3): lambda c: DomainBatchNorm2d(c, 3), "frozen": nk.FrozenBatchNorm2d,
}  # fmt: skip


def used(model: nn.Module, to: Any) -> Any:
    return use_domain(model, 1) if to == ("domain", 3) else torch.enable_grad()


def trained(layer: Any, x: Tensor) -> Any:
    layer(x)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize("source", ["nn", "batch", "ghost", "renorm", "sync"])
@pytest.mark.parametrize("to", KINDS, ids=str)
def test_converted_layer_equals_a_constructed_one(source: str, to: Any) -> None:
    x = torch.randn(6, 3, 4, 4) + 2
    make = {"nn": nn.BatchNorm2d, "ghost": MAKE[("ghost", 2)], **MAKE}[source]
    layer = trained(make(3), x)
    layer.momentum = 0.3
    twin = MAKE[to](3)
    twin.load_state_dict(copy.deepcopy(layer.state_dict()))
    twin.momentum = 0.3
    before, state = anatomy(layer), copy.deepcopy(layer.state_dict())
    handle = convert(layer, to)
    if source == "sync" and to != "sync":
        assert (
            not handle.changed and "inputs of any number of spatial axes" in handle.skipped[0].why
        )
        return
    assert type(layer) is type(twin) and repr(layer) == repr(twin)
    assert list(layer.state_dict()) == list(twin.state_dict())
    for training in (True, True, False):
        layer.train(training), twin.train(training)
        with used(layer, to), used(twin, to):
            for a, b in zip(step(layer, x), step(twin, x), strict=True):
                assert torch.equal(a, b)
    for key, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)
    layer.train()
    handle.undo()
    running = {"_stats_updated", "_last"}
    after = [(name, i, cls, keys - running) for name, i, cls, keys in anatomy(layer)]
    assert after == [(n, i, c, k - running) for n, i, c, k in before]
    if to in (("domain", 3), "frozen"):
        torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
    layer(x)


@pytest.mark.parametrize("to", KINDS, ids=str)
@pytest.mark.parametrize("name", ["vgg", "residual", "twice", "mobile"])
def test_networks_convert_and_restore(name: str, to: Any) -> None:
    model, x = made(name)
    expected = copy.deepcopy(model).eval()(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    parameters, before = list(model.parameters()), anatomy(model)
    handle = convert(model, to)
    assert not handle.skipped
    assert [(n, i) for n, i, *_ in anatomy(model)] == [(n, i) for n, i, *_ in before]
    with used(model, to):
        torch.testing.assert_close(model.eval()(x), expected)
        copied = saved(model)
        torch.testing.assert_close(copied(x), expected)
        model.train()(x).square().sum().backward()
    if to != "frozen":
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    optimizer.step()
    handle.undo()
    assert [row[:3] for row in anatomy(model)] == [row[:3] for row in before]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    model(x)


def test_successive_conversions() -> None:
    """What a kind has of its own does not stay behind."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    x, handles = torch.randn(6, 3, 4, 4), []
    plain_keys = set(vars(model[0]))
    for to in [*KINDS[:4], ("ghost", 4), ("ghost", 6), "batch"]:
        handles.append(convert(model, to))
        if isinstance(model[0], nk.SyncBatchNorm):
            handles.pop().undo()  # nothing leads from there
            continue
        model(x)
    assert "ghost_size 6" in repr(handles[-2]) and not hasattr(model[0], "ghost_size")
    for handle in reversed(handles):
        handle.undo()
    assert type(model[0]) is nn.BatchNorm2d and set(vars(model[0])) == plain_keys


@pytest.mark.filterwarnings("ignore:convert changed nothing")
def test_domains_start_equal_and_share_gamma_and_beta() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 4))
    weight, mean = model[1].weight, model[1].running_mean.clone()
    handle = convert(model, ("domain", 2))
    assert type(model[1]) is DomainBatchNorm1d and model[1].weight is weight
    assert torch.equal(model[1].running_mean, torch.stack([mean, mean]))
    with use_domain(model, 1):
        model(torch.randn(8, 4))
    assert torch.equal(model[1].running_mean[0], mean)
    assert convert(model, "batch").skipped[0].why.startswith("has statistics for each domain")
    handle.undo()
    assert torch.equal(model[1].running_mean, mean) and not hasattr(model[1], "domains")


def test_activation_hooks_and_freezing_survive() -> None:
    model = nn.Sequential(nk.BatchNorm2d(3, act="relu", average="debiased"), nn.BatchNorm2d(3))
    x, seen = torch.randn(6, 3, 4, 4), []
    model(x)
    model[1].register_forward_hook(lambda *_: seen.append(1))
    freeze(model[1])
    kept = model[1].running_mean.clone()
    convert(model, ("ghost", 3))
    model.train()(x)
    assert (model[0].act, model[0].average, model[0].ghost_size) == ("relu", "debiased", 3)
    assert seen and is_frozen(model[1]) and base_class(type(model[1])) is nk.GhostBatchNorm2d
    assert torch.equal(model[1].running_mean, kept)
    handle = accelerate(model)
    assert not handle.skipped
    model(x)


@pytest.mark.filterwarnings("ignore:convert changed nothing")
def test_skipped_layers_are_listed() -> None:
    class Theirs(nn.BatchNorm2d):
        pass

    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.ModuleDict({
        "deep": nk.SyncBatchNorm(3), "theirs": Theirs(3), "lazy": nn.LazyBatchNorm2d(),
        "patched": patched, "group": nn.GroupNorm(1, 3), "instance": nn.InstanceNorm2d(3),
        "forgetful": nn.BatchNorm2d(3, track_running_stats=False),
    })  # fmt: skip
    before = [type(m) for m in model.modules()]
    expected = {
        "deep": "there is no frozen form for inputs of any number of spatial axes; batches= shows "
        "how many they have",
        "theirs": "a subclass defined elsewhere",
        "lazy": "lazy and not yet initialized",
        "patched": "its forward was replaced", "forgetful": "has no running statistics",
    }  # fmt: skip
    handle = convert(model, "frozen")
    assert {row.name: row.why for row in handle.skipped} == expected and not handle.changed
    assert [type(m) for m in model.modules()] == before
    model["theirs"], model["deep"] = nn.BatchNorm2d(3), nn.BatchNorm3d(3)
    handle = convert(model, "batch")
    assert [row.name for row in handle.changed] == ["deep", "theirs", "instance", "forgetful"]
    model["forgetful"].act = "relu"
    convert(model["theirs"], "renorm")
    with pytest.warns(
        UserWarning, match=r"theirs \(normkit.BatchRenorm2d\): its class was changed"
    ):
        handle.undo()
    assert "_act" not in vars(model["forgetful"]) and type(model["deep"]) is nn.BatchNorm3d


def test_undo_in_another_order_names_what_was_changed_since() -> None:
    model = nn.Sequential(nk.GhostBatchNorm2d(3, 2))
    first, second = convert(model, ("ghost", 4)), convert(model, ("ghost", 8))
    with pytest.warns(UserWarning, match="skipped 0 .*its ghost_size was changed again"):
        first.undo()
    assert model[0].ghost_size == 8
    second.undo()
    assert model[0].ghost_size == 4


def test_statistics_that_are_not_finite_are_not_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].running_var[0] = torch.nan
    with pytest.raises(nk.StatisticsError, match="NaN or infinity in 1"):
        convert(model, "frozen")
    assert [type(m) for m in model] == [nn.BatchNorm2d, nn.BatchNorm2d]
    assert len(convert(model, "renorm").changed) == 2


def test_shared_layer_is_converted_once() -> None:
    model = Twice()
    assert len(convert(model, "renorm").changed) == 1
    assert model.a[0] is model.b[0] is model.c[0][1] and isinstance(model.a[0], BatchRenorm2d)


def test_interruption_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made("vgg")
    before, turned = anatomy(model), []
    turn = new_state.set_class

    def failing(module: nn.Module, cls: type) -> None:
        turned.append(cls)
        if len(turned) == 3:
            raise KeyboardInterrupt
        turn(module, cls)

    monkeypatch.setattr(new_state, "set_class", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(model, ("ghost", 4))
    assert anatomy(model) == before


@pytest.mark.parametrize(
    "wrong", ["groups", "ghost", ("ghost", 0), ("ghost", 2.0), ("ghost", True), ("batch", 2),
              "domain", ("domain",), None, 3, ["ghost", 2], ("ghost", None)], ids=str
)  # fmt: skip
def test_unknown_kinds_are_refused(wrong: Any) -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(nk.OptionError, match="Fix: "):
        convert(layer, wrong)
    assert type(layer) is nn.BatchNorm2d
    with pytest.raises(nk.TypeMismatchError, match="received a list with a "):
        convert([layer], "batch")  # type: ignore[arg-type]


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:(convert|unfreeze) changed nothing")
def test_within_distributed_data_parallel() -> None:
    """It lists parameters and buffers when it is made."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nk.BatchNorm2d(4, act="relu"))
    ddp, x = nn.parallel.DistributedDataParallel(inner), torch.randn(6, 3, 8, 8)
    for to in ("group", "instance", "torch", "sync", ("domain", 1), "group"):
        before = [b for b, _ in ddp.named_buffers()]
        handle = convert(ddp, to)
        for _ in range(2):
            ddp(x).square().sum().backward()
        assert all(p.grad is not None for p in ddp.parameters())
        handle.undo()
        assert [b for b, _ in ddp.named_buffers()] == before
        ddp(x).square().sum().backward()
    handle = convert(ddp, "frozen")
    assert not handle.changed and ["second step" in r.why for r in handle.skipped] == [True] * 2
    patient = nn.parallel.DistributedDataParallel(inner, find_unused_parameters=True)
    assert len(convert(patient, "frozen").changed) == 2
    for _ in range(3):
        patient(x).square().sum().backward()
    constant = nn.Sequential(nn.Conv2d(3, 4, 3), nk.FrozenBatchNorm2d(4))
    wrapped = nn.parallel.DistributedDataParallel(constant)
    for tool in (lambda: convert(wrapped, "batch"), lambda: nk.unfreeze(wrapped)):
        assert ["average gradients" in row.why for row in tool().skipped] == [True]
    assert type(constant[1]) is nk.FrozenBatchNorm2d and convert(constant, "batch").changed
