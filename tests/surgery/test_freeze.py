"""freeze and unfreeze: frozen layers through training, copies and wrappers."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from abc import ABC
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, update_bn

import normkit as nk
from normkit.nn import DomainBatchNorm2d
from normkit.nn.freezing import FrozenMixin, base_class, is_frozen
from normkit.nn.stats_spec import StatsSpec, stats_spec
from normkit.statistics import use_domain
from normkit.surgery import accelerate, freeze, unfreeze
from tests.few import few
from tests.surgery.models import Positive, Twice, made
from tests.surgery.test_accelerate import anatomy, saved


class Theirs(nn.BatchNorm2d, ABC):
    """A layer of somebody else's, with a module of its own inside."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.drop = nn.Dropout(0.5)

    def forward(self, input: Tensor) -> Tensor:
        return self.drop(super().forward(input))


class Registered(nn.BatchNorm2d):
    subclasses = 0

    def __init_subclass__(cls) -> None:
        Registered.subclasses += 1


class Own(nn.Module):
    """No batch normalization by descent, only by what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((3,), 0.5))
        self.register_buffer("running_var", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0) if self.training else self.running_mean
        return x - mean


for cls in (Theirs, Own):
    stats_spec.register(cls)(lambda layer: StatsSpec())


MAKE: dict[str, Callable[[], nn.Module]] = {
    "nn.BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "nn.BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "nn.BatchNorm3d": lambda: nn.BatchNorm3d(3),
    "nn.SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "nn.InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "BatchNorm1d": lambda: nk.BatchNorm1d(3),
    "BatchNorm2d": lambda: nk.BatchNorm2d(3, act="relu", average="debiased"),
    "BatchNorm3d": lambda: nk.BatchNorm3d(3),
    "SyncBatchNorm": lambda: nk.SyncBatchNorm(3),
    "GhostBatchNorm2d": lambda: nk.GhostBatchNorm2d(3, 2),
    "InstanceNorm2d": lambda: nk.InstanceNorm2d(3, track_running_stats=True),
    "Theirs": lambda: Theirs(3),
    "Own": Own,
}


def fitting(layer: nn.Module) -> Tensor:
    name = base_class(type(layer)).__name__
    rank = {"1d": 2, "2d": 4, "3d": 5}.get(name[-2:], 4 if name == "Theirs" else 2)
    return torch.randn(5, 3, 4, 4, 4)[(...,) + (0,) * (5 - rank)] + 1


@pytest.mark.parametrize("name", MAKE)
def test_frozen_layer_normalizes_alike_in_both_modes(name: str) -> None:
    layer = MAKE[name]()
    x = fitting(layer)
    if not name.startswith("nn.Sync"):  # trains on a GPU only
        layer(x)
    else:
        layer.running_mean.fill_(0.3)
    for inside in layer.children():  # their dropout goes on
        inside.p = 0.0
    state, before = copy.deepcopy(layer.state_dict()), anatomy(layer)
    expected = layer.eval()(2 * x)
    assert (
        not torch.equal(expected, copy.deepcopy(layer).train()(2 * x)) or name == "nn.SyncBatchNorm"
    )
    layer.train()
    handle = freeze(layer)
    assert len(handle.changed) == 1 and isinstance(layer, FrozenMixin)
    for _ in range(2):
        layer.train()
        assert torch.equal(layer(2 * x), expected)
        layer.eval().train().requires_grad_(False)
        assert all(inside.training for inside in layer.children())
    assert list(layer.state_dict()) == list(state)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])
    handle.undo()
    assert anatomy(layer) == before and layer.training


# Those with a batch normalization; the others are tested to be left.
NETWORKS = ["vgg", "mobile", "residual", "dense", "twice"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", ["alone", "before", "after"])
def test_networks_with_accelerate(name: str, order: str) -> None:
    model, x = made(name)
    twin, before = copy.deepcopy(model).eval(), anatomy(model)
    handles = []
    if order == "before":
        handles.append(accelerate(model))
    handles.append(freeze(model, affine=False))
    if order == "after":
        handles.append(accelerate(model))
    assert not any(handle.skipped for handle in handles)
    for net in (model, twin):
        net(x).square().sum().backward()
    torch.testing.assert_close(model(x), twin(x))
    grads = [[p.grad for p in net.parameters()] for net in (model, twin)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    # In any order: what is held and which class computes it are two things.
    for handle in handles:
        handle.undo()
    assert anatomy(model) == before and all(m.training for m in model.modules())


def test_frozen_layer_is_fused_with_its_activation() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    model(torch.randn(4, 3, 5, 5))
    freeze(model)
    assert accelerate(model).changed[0].fused == ("1",)
    assert is_frozen(model[0]) and isinstance(model[0], nk.BatchNorm2d)
    x, calls = torch.randn(4, 3, 5, 5), []
    expected = model[1](model[0](x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda m, y: calls.append(m))
        assert torch.equal(model(x), expected) and not calls


def test_handle_lists_changed_and_skipped_layers() -> None:
    parametrized = nn.BatchNorm2d(3)
    parametrize.register_parametrization(parametrized, "weight", Positive())
    stuck = nn.BatchNorm2d(3, momentum=0.0)
    stuck.running_mean.fill_(1)
    model = nn.ModuleDict({
        "bn": nn.BatchNorm2d(3), "stuck": stuck, "nobias": nk.BatchNorm2d(3, bias=False),
        "free": nn.BatchNorm2d(3, track_running_stats=False), "instance": nn.InstanceNorm2d(3),
        "lazy": nn.LazyBatchNorm2d(), "group": nn.GroupNorm(1, 3), "registered": Registered(3),
        "scripted": torch.jit.script(nn.BatchNorm2d(3)), "parametrized": parametrized,
        "constant": nk.FrozenBatchNorm2d(3),
    })  # fmt: skip
    model["bn"](torch.randn(2, 3, 4, 4))
    handle = freeze(model)
    assert {row.name: row.note for row in handle.changed} == {
        "bn": "statistics frozen, γ and β frozen",
        "stuck": "statistics frozen (momentum 0: never updated in training), γ and β frozen",
        "nobias": "statistics frozen (still at the initial mean 0 and variance 1), γ frozen",
    }
    assert {row.name: row.why for row in handle.skipped} == {
        "free": "has no running statistics", "instance": "has no running statistics",
        "lazy": "lazy and not yet initialized", "scripted": "scripted",
        "registered": "its class customizes subclassing or copying",
        "parametrized": "parametrized", "constant": "already constant",
    }  # fmt: skip
    assert Registered.subclasses == 0
    assert "  bn      nn.BatchNorm2d: statistics frozen, γ and β frozen\n" in repr(handle)
    assert not freeze(model).changed


def test_initial_banks_are_noted() -> None:
    layer = DomainBatchNorm2d(3, 3)
    with use_domain(layer, 1):
        layer(torch.randn(4, 3, 2, 2))
    note = freeze(layer, affine=False).changed[0].note
    assert note == "statistics frozen (bank 0, 2 still at the initial mean 0 and variance 1)"


def test_statistics_and_affine_separately() -> None:
    model, x = made("vgg")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    only = freeze(model, statistics=False)
    assert all(m.training and not m.weight.requires_grad for m in norms)
    assert not any(isinstance(m, FrozenMixin) for m in norms)
    only.undo()
    assert [p.requires_grad for p in model.parameters()] == flags
    only = freeze(model, affine=False)
    assert [p.requires_grad for p in model.parameters()] == flags
    kept = [m.running_mean.clone() for m in norms]
    model(x)
    assert all(torch.equal(m.running_mean, k) for m, k in zip(norms, kept, strict=True))
    only.undo()
    model(x)
    assert not any(torch.equal(m.running_mean, k) for m, k in zip(norms, kept, strict=True))
    freeze(model)
    handle = unfreeze(model, statistics=False)
    assert all(m.weight.requires_grad and m.bias.requires_grad and is_frozen(m) for m in norms)
    handle.undo()
    # The one that somebody else had stopped is fixed again too.
    assert not any(m.weight.requires_grad or m.bias.requires_grad for m in norms)
    unfreeze(model, affine=False)
    assert not any(isinstance(m, FrozenMixin) for m in norms) and not norms[0].weight.requires_grad


def test_undo_sets_the_last_requested_mode() -> None:
    """A model that was put into evaluation since must not be left with layers in training."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    handle = freeze(model)
    model.eval()
    handle.undo()
    assert not model[0].training
    handle = freeze(model)
    model.train()
    unfreeze(model)
    assert model[0].training
    handle.undo()  # nothing is left to undo
    assert model[0].training


def test_optimizer_does_not_update_frozen_gamma_and_beta() -> None:
    """Neither by momentum nor by weight decay nor by a gradient that was waiting."""
    model, x = made("vgg")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    freeze(model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [t.clone() for m in norms for t in m.state_dict().values()]
    conv = model[0][0].weight.detach().clone()
    for _ in range(3):
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
    assert all(
        torch.equal(a, b)
        for a, b in zip([t for m in norms for t in m.state_dict().values()], kept, strict=True)
    )
    assert not torch.equal(model[0][0].weight, conv)
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups


def pickled(model: nn.Module) -> nn.Module:
    found: nn.Module = pickle.loads(pickle.dumps(model, protocol=1))
    return found


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, saved, pickled])
@pytest.mark.parametrize("accelerated", [False, True])
def test_copies_stay_frozen(copied: Callable[[nn.Module], nn.Module], accelerated: bool) -> None:
    model, x = made("twice")
    if accelerated:
        accelerate(model)
    freeze(model)
    found = copied(model).train()
    assert [type(m) for m in found.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(found(x), model(x))
    unfreeze(found)
    assert not any(isinstance(m, FrozenMixin) for m in found.modules())
    if copied is not copy.copy:  # which shares the layers
        assert any(isinstance(m, FrozenMixin) for m in model.modules())


def test_shared_layer_is_frozen_once() -> None:
    model = Twice()
    handle = freeze(model)
    assert [row.name for row in handle.changed] == ["a.0"]
    assert model.a[0] is model.b[0] is model.c[0][1] and is_frozen(model.a[0])


def test_checkpoints_load_as_before() -> None:
    model, x = made("residual")
    other, _ = made("residual")
    freeze(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), other.eval()(x))
    other.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == list(other.state_dict())


def test_update_bn_skips_frozen_layers() -> None:
    """It resets every layer and trains; a held one keeps what it has."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(64, 3) + 5
    model(x)
    freeze(model[0])
    kept = copy.deepcopy(model[0].state_dict())
    averaged = AveragedModel(model)
    update_bn([x, x + 1], averaged)
    for net in (model, averaged.module):
        for key, value in net[0].state_dict().items():
            assert torch.equal(value, kept[key])
    assert int(averaged.module[2].num_batches_tracked) == 2


@pytest.mark.parametrize(
    ("early", "ours"),
    few(itertools.product([True, False], repeat=2), lambda early, ours: early != ours),
)
def test_compiled(early: bool, ours: bool) -> None:
    model, x = made("short")
    if ours:
        accelerate(model)
    twin = copy.deepcopy(model).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if early:
        compiled(x)
        model.load_state_dict(twin.state_dict())
    handle = freeze(compiled if early else model)
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    handle.undo()
    torch.testing.assert_close(compiled(x), twin.train()(x))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("early", [True, False])
def test_distributed_data_parallel(early: bool) -> None:
    model, x = made("vgg")
    twin = copy.deepcopy(model).eval()
    if early:
        freeze(model)
    ddp = nn.parallel.DistributedDataParallel(model)
    if not early:
        freeze(ddp, affine=False)
    for _ in range(2):
        ddp.train()
        torch.testing.assert_close(ddp(x), twin(x))
        ddp(x).square().sum().backward()
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("strict", few([True, False], lambda strict: not strict))
def test_exported_traced_and_scripted(strict: bool) -> None:
    model, x = made("vgg")
    freeze(model)
    expected = model(x)
    graph = torch.fx.symbolic_trace(model).train()
    torch.testing.assert_close(graph(x), expected)
    program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), expected)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)


def test_conversion_to_sync_keeps_layers_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model(torch.randn(4, 3, 2, 2))
    freeze(model[0])
    nk.SyncBatchNorm.convert_sync_batchnorm(model).train()
    assert [isinstance(m, nk.SyncBatchNorm) for m in model] == [True, True]
    assert [m.training for m in model] == [False, True] and is_frozen(model[0])
    unfreeze(model)
    assert type(model[0]) is nk.SyncBatchNorm and model[0].training


def test_parametrization_after_freezing() -> None:
    """A class put over the held one: found to be so, and right again once it is taken away."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    handle = freeze(model)
    parametrize.register_parametrization(model[0], "weight", Positive())
    assert not model.train()[0].training and unfreeze(model).skipped[0].why == "parametrized"
    with pytest.warns(UserWarning, match="its class was changed again"):
        handle.undo()
    parametrize.remove_parametrizations(model[0], "weight")
    assert is_frozen(model[0])
    unfreeze(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_scale_of_a_parametrized_layer_is_trainable_again() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    parametrize.register_parametrization(model[0], "weight", Positive())
    freeze(model, statistics=False)
    assert not any(p.requires_grad for p in model.parameters())
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_non_finite_statistics_are_refused(broken: float) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].running_var[2] = broken
    before = anatomy(model)
    with pytest.raises(nk.StatisticsError, match=r"in 1\. Fix: .*normkit.recalibrate"):
        freeze(model)
    assert anatomy(model) == before and all(p.requires_grad for p in model.parameters())
    assert len(freeze(model, statistics=False).changed) == 3


def test_interruption_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made("vgg")
    before = anatomy(model)
    called: list[nn.Module] = []

    def failing(module: nn.Module) -> None:
        called.append(module)
        if len(called) == 3:
            raise KeyboardInterrupt
        freeze_layer(module)

    freeze_layer = freeze.__globals__["freeze_layer"]
    monkeypatch.setitem(freeze.__globals__, "freeze_layer", failing)
    with pytest.raises(KeyboardInterrupt):
        freeze(model)
    assert anatomy(model) == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("verb", [freeze, unfreeze])
def test_invalid_arguments_are_refused(verb: Callable[..., object]) -> None:
    for model, came in (
        ([nn.ReLU()], "a list with a "),
        (None, "None"),
        (Twice, "the class"),
    ):
        with pytest.raises(nk.TypeMismatchError, match=f"received {came}.*Fix: "):
            verb(model)
    with pytest.raises(nk.TypeMismatchError, match=r"before torch\.jit\.script"):
        verb(torch.jit.script(nn.BatchNorm2d(3)))
    with pytest.raises(nk.OptionError, match="Fix: "):
        verb(nn.BatchNorm2d(3), statistics=False, affine=False)


def test_registered_third_party_layer_is_frozen() -> None:
    """One registry: what is recalibrated is also frozen."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mu", torch.zeros(3))
            self.register_buffer("v", torch.full((3,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mu) / self.v.sqrt()

    model = nn.Sequential(Centred())
    assert not nk.freeze(model).changed
    stats_spec.register(Centred)(lambda layer: StatsSpec("mu", "v"))
    handle = nk.freeze(model)
    assert len(handle.changed) == 1 and is_frozen(model[0]) and not model.train()[0].training
    handle.undo()
    assert type(model[0]) is Centred
    model[0].v[0] = float("nan")
    with pytest.raises(nk.StatisticsError, match="NaN or infinity"):
        nk.freeze(model)
