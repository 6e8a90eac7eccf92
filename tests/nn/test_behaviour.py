"""Drop-in in what surrounds the arithmetic: compile, export, transforms, copies, checkpoints."""

from __future__ import annotations

import copy
import io
import pickle
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.kernels import cpu
from tests.few import few

AVERAGES = ["exponential", "cumulative", "debiased"]


def network(m: ModuleType) -> nn.Sequential:
    """One of each namesake, from ``torch.nn`` or from normkit."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        m.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        m.GroupNorm(2, 8),
        nn.ReLU(),
        m.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.Flatten(2),
        m.LayerNorm(16),
        m.RMSNorm(16),
        nn.Flatten(),
        nn.Linear(128, 16),
        m.BatchNorm1d(16, momentum=None),
    )


def pair(training: bool) -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    theirs, ours = network(nn), network(nk)
    ours.load_state_dict(theirs.state_dict())
    # float64, so that what differs is a mistake and not rounding that the network amplifies.
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    return theirs.double().train(training), ours.double().train(training), x


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, key=key: f"{key}: {m}")
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("training", [True, False])
def test_a_training_step_is_the_same(training: bool) -> None:
    theirs, ours, x = pair(training)
    for _ in range(3):
        a, b = theirs(x), ours(x)
        torch.testing.assert_close(b, a)
        a.square().sum().backward()
        b.square().sum().backward()
    assert_same(ours, theirs)


@pytest.mark.parametrize("training", few([True, False], lambda training: training))
def test_compile_without_a_break(training: bool) -> None:
    theirs, ours, x = pair(training)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for n in (4, 4, 3) if training else (4,):  # another size is compiled anew
        a, b = theirs(x[:n]), compiled(x[:n])
        torch.testing.assert_close(b, a)
        a.square().sum().backward()
        b.square().sum().backward()
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("act", "average"),
    [(("leaky_relu", 0.1), "cumulative"), ("relu", "debiased"), ("silu", "exponential")],
    ids=str,
)
def test_compile_what_torch_lacks(act: object, average: str) -> None:
    layer = nk.BatchNorm2d(4, act=act, average=average)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x, r = torch.randn(2, 6, 4, 3, 3).unbind()
        torch.testing.assert_close(compiled(x, r), twin(x, r))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    "layer",
    [
        nk.GhostBatchNorm2d(4, 2), nk.LayerNorm2d(4), nk.HalfInstanceNorm2d(4), nk.Scale(4),
        nk.FrozenBatchNorm2d(4), nk.SyncBatchNorm(4), nk.nn.DomainBatchNorm2d(4, 1),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_compile_the_others(layer: nn.Module) -> None:
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    x = torch.randn(4, 4, 3, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.slow
def test_compile_by_inductor() -> None:
    theirs, ours, x = pair(True)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True)
    torch.testing.assert_close(compiled(x), theirs(x))


@pytest.mark.filterwarnings("ignore:.*leave the graph counting:UserWarning")
@pytest.mark.parametrize(("training", "strict"), [(True, False), (False, True)])
def test_export(training: bool, strict: bool) -> None:
    _, ours, x = pair(training)
    twin = copy.deepcopy(ours)
    program = torch.export.export(ours, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), twin(x))


def test_export_with_a_batch_of_any_size() -> None:
    _, ours, x = pair(False)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(program.module()(x), ours(x))


@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_an_ensemble(training: bool) -> None:
    models = [network(nk).train(training) for _ in range(3)]
    params, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(4, 3, 4, 4)
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(params, buffers)
    for y, model in zip(found, models, strict=True):
        torch.testing.assert_close(y, model(x))
    for key in buffers:
        for row, model in zip(buffers[key], models, strict=True):
            torch.testing.assert_close(row, model.state_dict()[key])


def test_gradients_by_transform_and_per_sample() -> None:
    theirs, ours, x = pair(False)

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor, m: nn.Module) -> torch.Tensor:
        return functional_call(m, p, (x[None],)).square().sum()

    def per_sample(m: nn.Module) -> dict[str, torch.Tensor]:
        p = {k: v.detach() for k, v in m.named_parameters()}
        return vmap(torch.func.grad(lambda p, x: loss(p, x, m)), (None, 0))(p, x)

    a, b = per_sample(theirs), per_sample(ours)
    for key in a:
        torch.testing.assert_close(b[key], a[key])


def test_forward_mode() -> None:
    theirs, ours, x = pair(False)
    v = torch.randn_like(x)
    torch.testing.assert_close(jvp(ours, (x,), (v,)), jvp(theirs, (x,), (v,)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        a, b = (torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (theirs, ours))
    torch.testing.assert_close(b, a)


def test_copies_and_pickles() -> None:
    _, ours, x = pair(True)
    ours[1].act = ("leaky_relu", 0.3)
    ours(x)
    ours.eval()
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(saved, weights_only=False),
    ):
        assert twin[1].act == ("leaky_relu", 0.3)
        torch.testing.assert_close(twin(x), ours(x))


def test_checkpoints_of_each_load_into_the_other() -> None:
    theirs, ours, x = pair(True)
    ours(x)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for plain, frozen in ((nn.BatchNorm2d(3), nk.FrozenBatchNorm2d(3)),):
        frozen.load_state_dict(plain.state_dict())


def test_an_old_checkpoint_without_the_counter_loads() -> None:
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    nk.BatchNorm2d(3).load_state_dict(state)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("average", AVERAGES)
def test_checkpointed_layers_move_their_statistics_once(reentrant: bool, average: str) -> None:
    plain = nn.Sequential(
        nk.BatchNorm2d(3, act="silu", average=average),
        nk.InstanceNorm2d(3, track_running_stats=True),
        nk.GhostBatchNorm2d(3, 2),
    )
    saved = copy.deepcopy(plain)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    for _ in range(3):
        plain(x).square().sum().backward()
        expected, x.grad = x.grad, None
        checkpoint(saved, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(x.grad, expected)
        x.grad = None
    assert int(saved[0].num_batches_tracked) == 3
    torch.testing.assert_close(saved.state_dict(), plain.state_dict())


def test_torchs_own_layer_moves_twice_under_a_checkpoint() -> None:
    """What the test above guards against does happen."""
    layer = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert int(layer.num_batches_tracked) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_torch_gives(dtype: torch.dtype) -> None:
    theirs, ours, x = network(nn), network(nk), torch.randn(4, 3, 4, 4)
    with torch.autocast("cpu", dtype=dtype):
        for a, b in zip(theirs, ours, strict=True):
            expected, got = a(x), b(x)
            assert got.dtype == expected.dtype
            x = expected.detach()
            if x.dtype != torch.float32 and isinstance(a, nn.LayerNorm):
                x = x.float()  # nn.RMSNorm warns of mixed types


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: type) -> None:
    theirs, ours, x = pair(True)
    with mode():
        torch.testing.assert_close(ours(x), theirs(x))


def test_meta_tensors() -> None:
    with torch.device("meta"):
        model, x = network(nk), torch.empty(4, 3, 4, 4)
    y = model(x)
    y.sum().backward()
    assert y.shape == (4, 16) and y.device.type == "meta"


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "InstanceNorm2d", "InstanceNorm3d"])
def test_lazy_forms(name: str) -> None:
    layer = getattr(nk, f"Lazy{name}")(affine=True, act="relu")
    assert isinstance(layer, getattr(nn, f"Lazy{name}"))
    ranks = {"1": (4, 5), "2": (4, 5, 3, 3), "3": (4, 5, 2, 3, 3)}
    x = torch.randn(ranks[name[-2]])
    y = layer(x)
    assert type(layer) is getattr(nk, name)
    assert layer.num_features == 5 and layer.act == "relu"
    assert bool((y >= 0).all())
    layer(x).sum().backward()


def test_views_slices_and_expansions() -> None:
    base = torch.randn(6, 4, 7, 9)
    odd = {
        "transposed": base.transpose(2, 3),
        "strided": base[::2, :, ::2, 1::3],
        "channels of a slice": base[:, 1:3],
        "expanded": base[:1].expand(6, 4, 7, 9),
        "reversed axes": base.permute(3, 2, 1, 0),
    }
    for name, x in odd.items():
        c = x.shape[1]
        for a, b in (
            (nn.BatchNorm2d(c), nk.BatchNorm2d(c)),
            (nn.GroupNorm(1, c), nk.GroupNorm(1, c)),
            (nn.InstanceNorm2d(c), nk.InstanceNorm2d(c)),
            (nn.LayerNorm(x.shape[2:]), nk.LayerNorm(x.shape[2:])),
        ):
            xa, xb = (x.detach().clone(memory_format=torch.preserve_format) for _ in range(2))
            xa, xb = xa.requires_grad_(), xb.requires_grad_()
            ya, yb = a(xa), b(xb)
            torch.testing.assert_close(yb, ya, msg=lambda m, n=name: f"{n}: {m}")
            dy = torch.randn(1).expand_as(ya)  # what sum().backward() hands down
            ya.backward(dy)
            yb.backward(dy)
            torch.testing.assert_close(xb.grad, xa.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "BatchNorm2d", "GhostBatchNorm2d", "LayerNorm2d", "Scale", "FrozenBatchNorm2d",
        "HalfInstanceNorm2d", "SyncBatchNorm", "DomainBatchNorm2d", "BatchRenorm2d",
    ],
)  # fmt: skip
def test_empty_batches(name: str, training: bool) -> None:
    more = {"GhostBatchNorm2d": (2,), "DomainBatchNorm2d": (1,)}.get(name, ())
    layer = getattr(nk.nn, name)(3, *more)
    layer.train(training)
    before = copy.deepcopy(layer.state_dict())
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.shape == x.shape
    for p in layer.parameters():
        assert p.grad is not None and not p.grad.any()
    for key, value in layer.state_dict().items():
        if not key.endswith("num_batches_tracked"):  # PyTorch counts an empty batch too
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("way", ["fused", "portable"])
def test_an_activation_behind_may_write_over_the_output(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "portable":
        monkeypatch.setattr(cpu, "fused", None)
    for layer in (nk.InstanceNorm2d(3), nk.RMSNorm(4), nk.BatchNorm2d(3), nk.LayerNorm2d(3)):
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        torch.nn.Sequential(layer, torch.nn.ReLU(inplace=True))(x).sum().backward()
        assert x.grad is not None


def test_modified_in_place_after_the_layer() -> None:
    """As with nn.ReLU, an output that backward needs must not be written over unnoticed."""
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = nk.BatchNorm2d(3, act="relu")(x, residual=torch.ones_like(x))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = nk.BatchNorm2d(3)(x)
    y += 1
    y.sum().backward()


def test_convert_sync_keeps_everything() -> None:
    shared = nk.BatchNorm2d(4, act="relu", average="debiased")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.BatchNorm2d(4), shared).eval()
    keys, params = list(model.state_dict()), list(model.parameters())
    converted = nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    assert model[1] is model[3] and isinstance(model[1], nk.SyncBatchNorm)
    assert (model[1].act, model[1].average) == ("relu", "debiased")
    assert isinstance(model[2], nk.SyncBatchNorm) and not model[2].training
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), params, strict=True))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(nk.BatchNorm2d(3))) is nn.SyncBatchNorm


def test_former_attribute_names_in_pickles_are_read() -> None:
    layer = nk.BatchNorm2d(4, act="relu")
    state = layer.__getstate__() if hasattr(layer, "__getstate__") else dict(vars(layer))
    state = dict(state or vars(layer))
    state["_act_given"] = state.pop("_act_option")
    former = object.__new__(nk.BatchNorm2d)
    former.__setstate__(state)
    assert former.act == "relu"
    assert nk.SyncBatchNorm.convert_sync_batchnorm(former).act == "relu"
