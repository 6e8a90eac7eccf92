"""Masked layers: as each sequence alone, whatever the padding holds; modes, and tools."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import normkit as nk
from normkit.compat import release
from normkit.core import reference
from normkit.nn.stats_spec import why_unknown
from tests.few import few

LENGTHS = (7, 4, 2, 5)
SEQUENCES = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
MAKERS: dict[str, Callable[..., Any]] = {
    "MaskedBatchNorm1d": lambda **o: nk.MaskedBatchNorm1d(6, **o),
    "MaskedInstanceNorm1d": lambda **o: nk.MaskedInstanceNorm1d(6, affine=True, **o),
    "MaskedGroupNorm": lambda **o: nk.MaskedGroupNorm(2, 6, **o),
}
GARBAGE = [0.0, 1e4, float("nan"), float("inf")]


def _made(name: str, **options: Any) -> Any:
    layer = MAKERS[name](**options)
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def _padded(x: Tensor, garbage: float, mask: Tensor = SEQUENCES) -> Tensor:
    return torch.where(mask.unsqueeze(1), x, torch.tensor(garbage, dtype=x.dtype))


def _alone(name: str, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Each sequence without its padding, by the oracle; or all of them, one after another."""
    parts = [row[:, :length] for row, length in zip(x, LENGTHS, strict=True)]
    if name == "MaskedBatchNorm1d":
        together = reference.batch_norm(torch.cat(parts, 1)[None], weight, bias)[0]
        return list(together.split(LENGTHS, 1))
    if name == "MaskedInstanceNorm1d":
        return [reference.instance_norm(part[None], weight, bias)[0] for part in parts]
    return [reference.group_norm(part[None], 2, weight, bias)[0] for part in parts]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("name", MAKERS)
def test_as_each_sequence_alone(name: str, offset: float, garbage: float) -> None:
    layer = _made(name)
    values = torch.randn(4, 6, 7) * (0.1 if offset else 2) + offset
    x = _padded(values, garbage).requires_grad_()
    wide = _padded(values, 0.0).requires_grad_()
    y, dy = layer(x, mask=SEQUENCES), torch.randn(4, 6, 7)
    parts = _alone(name, wide, layer.weight, layer.bias)
    truth = torch.stack([nn.functional.pad(p, (0, 7 - p.shape[1])) for p in parts])
    torch.testing.assert_close(y, truth.float(), rtol=1e-4, atol=1e-4)
    assert not y[:, :, :][~SEQUENCES[:, None].expand_as(y)].any()
    got = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
    right = torch.autograd.grad(truth, [wide, layer.weight, layer.bias], dy.double())
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    assert not got[0][~SEQUENCES[:, None].expand_as(y)].any()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("act", [None, "silu"])
def test_residual_and_activation(name: str, act: str | None) -> None:
    layer = _made(name, act=act)
    x, r = _padded(torch.randn(4, 6, 7), 3.0), _padded(torch.randn(4, 6, 7), float("nan"))
    r.requires_grad_()
    y = layer(x, r, mask=SEQUENCES)
    plain = _made(name)
    plain.load_state_dict(layer.state_dict())
    z = plain(x, mask=SEQUENCES) + r
    expected = torch.where(SEQUENCES[:, None], nn.functional.silu(z) if act else z, 0.0)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert r.grad is not None and bool(torch.isfinite(r.grad).all())


@pytest.mark.parametrize("average", ["exponential", "cumulative", "debiased"])
def test_batch_averages_weigh_positions_that_count(average: str) -> None:
    layer = nk.MaskedBatchNorm1d(6, average=average)
    twin = nk.BatchNorm1d(6, average=average)
    for i in range(3):
        x = torch.randn(4, 6, 7) * (i + 1) + i
        layer(_padded(x, float("nan")), mask=SEQUENCES)
        twin(x.movedim(1, -1)[SEQUENCES])
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    x = torch.randn(4, 6, 7)
    got = layer.eval()(_padded(x, float("nan")), mask=SEQUENCES)
    torch.testing.assert_close(got, _padded(twin.eval()(x), 0.0))


def test_instance_averages_are_those_of_samples_with_values() -> None:
    layer = nk.MaskedInstanceNorm1d(6, track_running_stats=True)
    twin = copy.deepcopy(layer)
    x, mask = torch.randn(4, 6, 7), SEQUENCES.clone()
    mask[1] = False
    layer(_padded(x, float("nan"), mask), mask=mask)
    means, variances = [], []
    for k in (0, 2, 3):
        alone = nk.InstanceNorm1d(6, track_running_stats=True, momentum=1.0)
        alone(x[k : k + 1, :, : LENGTHS[k]])
        means.append(alone.running_mean)
        variances.append(alone.running_var)
    torch.testing.assert_close(layer.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))
    before = copy.deepcopy(layer.state_dict())
    layer(x, mask=torch.zeros(4, 7, dtype=torch.bool))
    torch.testing.assert_close(layer.state_dict(), before)
    assert twin.state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_mask_and_with_one_that_is_true(name: str) -> None:
    layer = _made(name)
    plain = getattr(nk, name.removeprefix("Masked"))(*([2] if "Group" in name else []), 6)
    if "Instance" in name:
        plain = nk.InstanceNorm1d(6, affine=True)
    plain.load_state_dict(layer.state_dict())
    assert isinstance(layer, type(plain))
    assert repr(layer) == f"Masked{plain!r}"
    x = torch.randn(4, 6, 7)
    assert torch.equal(layer(x), plain(x))
    torch.testing.assert_close(layer(x, mask=torch.ones_like(SEQUENCES)), plain(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_of_masks(name: str) -> None:
    layer, x = _made(name), torch.randn(4, 6, 7)
    assert torch.equal(layer(x, mask=SEQUENCES), layer(x, mask=SEQUENCES[:, None]))
    wrong = [SEQUENCES.T, SEQUENCES[:1], SEQUENCES[0], SEQUENCES[:, None].expand(4, 6, 7)]
    before = copy.deepcopy(layer.state_dict())
    for mask in wrong:
        with pytest.raises(nk.ShapeError, match=r"mask of .*; received mask of shape .* Fix: "):
            layer(x, mask=mask)
    for other in (SEQUENCES.long(), SEQUENCES.float(), SEQUENCES.tolist(), True):
        with pytest.raises(nk.TypeMismatchError, match=r"boolean tensor.* Fix: pass mask\.bool"):
            layer(x, mask=other)
    with pytest.raises(TypeError):
        layer(x, None, SEQUENCES)
    torch.testing.assert_close(layer.state_dict(), before)


def test_images_and_inputs_without_length_or_batch() -> None:
    mask = torch.rand(3, 4, 5) > 0.4
    x = torch.randn(3, 6, 4, 5)
    rows = x.movedim(1, -1)[mask]
    got = nk.MaskedBatchNorm2d(6)(x, mask=mask).movedim(1, -1)[mask]
    torch.testing.assert_close(got, nk.BatchNorm1d(6)(rows), rtol=1e-4, atol=1e-5)
    got = nk.MaskedInstanceNorm2d(6)(x, mask=mask)[1].movedim(0, -1)[mask[1]]
    alone = x[1].movedim(0, -1)[mask[1]].T[None]
    torch.testing.assert_close(got, nk.InstanceNorm1d(6)(alone)[0].T, rtol=1e-4, atol=1e-5)
    some = torch.tensor([True, False, True, True])
    z = torch.randn(4, 6)
    torch.testing.assert_close(
        nk.MaskedBatchNorm1d(6)(z, mask=some)[some], nk.BatchNorm1d(6)(z[some])
    )
    layer = nk.MaskedInstanceNorm1d(6)
    one = layer(x[0, :, 0], mask=torch.tensor([True, True, False, True, True]))
    both = layer(x[:1, :, 0], mask=torch.tensor([[True, True, False, True, True]]))
    torch.testing.assert_close(one, both[0])


def test_nothing_that_counts() -> None:
    none, x = torch.zeros(4, 7, dtype=torch.bool), torch.randn(4, 6, 7)
    for name in ("MaskedInstanceNorm1d", "MaskedGroupNorm"):
        leaf = x.clone().requires_grad_()
        y = _made(name)(leaf, mask=none)
        y.sum().backward()
        assert not y.any() and leaf.grad is not None and not leaf.grad.any()
    layer = nk.MaskedBatchNorm1d(6)
    before = copy.deepcopy(layer.state_dict())
    one = none.clone()
    one[2, 3] = True
    for mask in (none, one):
        with pytest.raises(nk.ShapeError, match="more than 1 value per channel when training"):
            layer(x, mask=mask)
    torch.testing.assert_close(layer.state_dict(), before)
    assert not layer.eval()(x, mask=none).any()
    single = SEQUENCES.clone()
    single[2, 1] = False
    with pytest.raises(nk.ShapeError, match="one position of sample 2"):
        nk.MaskedInstanceNorm1d(6)(x, mask=single)
    empty = torch.empty(0, 6, 7)
    for name, make in MAKERS.items():
        assert make()(empty, mask=none[:0]).shape == empty.shape, name


def test_where_nobody_looks_such_a_batch_updates_nothing() -> None:
    layer = nk.MaskedBatchNorm1d(6)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert not compiled(torch.randn(4, 6, 7), mask=torch.zeros(4, 7, dtype=torch.bool)).any()
    assert torch.equal(layer.running_mean, mean) and torch.equal(layer.running_var, var)


class Model(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(x, mask=mask)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch")
@pytest.mark.filterwarnings("ignore:.*is recorded in training mode:UserWarning")
@pytest.mark.parametrize(
    ("mode", "name", "training"),
    few(
        itertools.product(
            ["compiled", "exported", "traced", "graph", "pickled"], MAKERS, [True, False]
        ),
        lambda mode, name, training: mode != "compiled" or (training and "Batch" in name),
    ),
)
def test_in_every_mode(mode: str, name: str, training: bool) -> None:
    model = Model(_made(name, act="relu")).train(training)
    twin, x = copy.deepcopy(model), _padded(torch.randn(4, 6, 7), float("nan"))
    if mode == "compiled":
        torch._dynamo.reset()
        other: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    elif mode == "exported":
        other = torch.export.export(model, (x, SEQUENCES)).module()
    elif mode == "traced":
        other = torch.jit.trace(model, (x, SEQUENCES), check_trace=False)
        twin = copy.deepcopy(model)
    elif mode == "graph":
        other = torch.fx.symbolic_trace(model)
    else:
        other = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(other(x, SEQUENCES), twin(x, SEQUENCES))
    state = dict(other.state_dict())
    for key, value in twin.state_dict().items():
        if mode == "exported" and key not in state and release(torch.__version__) < (2, 8):
            continue  # a buffer that the graph does not read
        torch.testing.assert_close(state.get(key, state.get(f"_orig_mod.{key}")), value)


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_of_derivatives_and_vmap(name: str) -> None:
    layer = _made(name).double()
    x = _padded(torch.randn(4, 6, 7, dtype=torch.float64), 0.0).requires_grad_()

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional_call(layer, {"weight": w, "bias": b}, (x,), {"mask": SEQUENCES})

    inputs = (x, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    layer.eval()
    got = vmap(lambda x: call(x, layer.weight, layer.bias))(torch.stack([x, 2 * x]).detach())
    torch.testing.assert_close(got[1], layer(2 * x, mask=SEQUENCES).detach())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast(name: str, dtype: torch.dtype) -> None:
    layer, x = _made(name), _padded(torch.randn(4, 6, 7) * 3 + 30, 1e4)
    wide = copy.deepcopy(layer)(x.to(dtype).float(), mask=SEQUENCES)
    y = layer(x.to(dtype), mask=SEQUENCES)
    assert y.dtype == dtype
    limit = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), wide, rtol=limit, atol=limit)
    with torch.autocast("cpu", dtype=dtype):
        assert layer(x.to(dtype), mask=SEQUENCES).dtype == dtype


def test_squares_beyond_float32() -> None:
    x = torch.randn(4, 6, 7) * 1e25
    for name in MAKERS:
        layer = _made(name, **({"momentum": 0.0} if "Batch" in name else {}))
        got = layer(x, mask=SEQUENCES)
        torch.testing.assert_close(got, layer(x * 1e-24, mask=SEQUENCES), rtol=1e-4, atol=1e-4)


def test_channels_last_and_meta() -> None:
    mask, x = torch.rand(3, 4, 5) > 0.4, torch.randn(3, 6, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for layer in (nk.MaskedBatchNorm2d(6), nk.MaskedInstanceNorm2d(6), nk.MaskedGroupNorm(2, 6)):
        y = layer(last, mask=mask)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layer(x, mask=mask))
        meta = copy.deepcopy(layer).to("meta")
        assert meta(x.to("meta"), mask=mask.to("meta")).shape == x.shape


def _tagger(norm: nn.Module) -> nn.Module:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 6, 1), norm

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(self.conv(x), mask=mask)

    torch.manual_seed(0)
    return Tagger()


def _batches() -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(4, 2, 7) * i + i, "mask": SEQUENCES} for i in (1, 2, 3)]


def test_recalibrated_at_the_positions_that_count() -> None:
    model, batches = _tagger(nk.MaskedBatchNorm1d(6)), _batches()
    nk.recalibrate(model, batches, progress=False)
    rows = torch.cat([model.conv(b["x"]).movedim(1, -1)[b["mask"]] for b in batches]).double()
    torch.testing.assert_close(model.norm.running_mean.double(), rows.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.norm.running_var.double(), rows.var(0), rtol=1e-3, atol=1e-4)
    nk.consistency(model, batches, progress=False)
    before = copy.deepcopy(model.state_dict())
    with nk.batch_statistics(model):
        got = model.eval()(**batches[1])
    torch.testing.assert_close(model.state_dict(), before)
    torch.testing.assert_close(got, model.train()(**batches[1]))


def test_frozen_converted_and_adapted() -> None:
    model, batches = _tagger(nk.MaskedBatchNorm1d(6)), _batches()
    model(**batches[0])
    handle = nk.freeze(model)
    expected = copy.deepcopy(model).eval()(**batches[1])
    torch.testing.assert_close(model.train()(**batches[1]), expected)
    handle.undo()
    with pytest.raises(nk.StatisticsError, match="by the positions of a mask"):
        nk.adapt(model)
    with pytest.raises(nk.TypeMismatchError, match="drop the mask"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.warns(UserWarning, match="by the positions of a mask"):
        nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model.norm) is nk.MaskedBatchNorm1d
    with pytest.raises(nk.TypeMismatchError, match="a batch normalization of"):
        nk.FrozenBatchNorm1d.from_batch_norm(model.norm)
    with pytest.warns(UserWarning, match="skipped norm"):
        handle = nk.convert(model, "batch")
    assert not handle.changed


def test_instance_statistics_are_named_and_left() -> None:
    layer = nk.MaskedInstanceNorm1d(6, track_running_stats=True)
    assert "unlike numbers of positions" in str(why_unknown(layer))
    model, batches = _tagger(layer), _batches()
    with pytest.raises(nk.StatisticsError, match="unlike numbers of positions"):
        nk.recalibrate(model, batches, progress=False)
