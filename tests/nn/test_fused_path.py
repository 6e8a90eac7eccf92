"""A usual forward pass is one call into the fused kernels; anything else takes the slow path."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.compat import release
from normkit.kernels import cpu, fused
from normkit.nn.layer import Layer
from tests.pairwise import pairwise
from tests.tolerances import AVERAGES

pytestmark = pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")

Make = Callable[[], nn.Module]


def _with_stats(make: Make) -> Make:
    """The layer in evaluation mode, with random running statistics."""

    def made() -> nn.Module:
        layer = make()
        layer.running_mean = torch.randn(layer.running_mean.shape)
        layer.running_var = torch.rand(layer.running_var.shape) + 0.5
        return layer.eval()

    return made


def _of_domain(domain: int, **options: Any) -> nn.Module:
    layer = nk.nn.DomainBatchNorm2d(3, 2, **options)
    layer.domain = domain
    return layer


# A layer and the shape of its input.
USUAL: dict[str, tuple[Make, tuple[int, ...]]] = {
    "BatchNorm1d of rank 2": (lambda: nk.BatchNorm1d(5), (7, 5)),
    "BatchNorm1d of rank 3": (lambda: nk.BatchNorm1d(5), (7, 5, 3)),
    "BatchNorm2d": (lambda: nk.BatchNorm2d(3), (4, 3, 5, 6)),
    "BatchNorm2d without a bias": (lambda: nk.BatchNorm2d(3, bias=False), (4, 3, 5, 6)),
    "BatchNorm2d without affine": (lambda: nk.BatchNorm2d(3, affine=False), (4, 3, 5, 6)),
    "BatchNorm2d without running statistics": (
        lambda: nk.BatchNorm2d(3, track_running_stats=False),
        (4, 3, 5, 6),
    ),
    "BatchNorm2d in evaluation": (_with_stats(lambda: nk.BatchNorm2d(3)), (4, 3, 5, 6)),
    "BatchNorm2d in evaluation without running statistics": (
        lambda: nk.BatchNorm2d(3, track_running_stats=False).eval(),
        (4, 3, 5, 6),
    ),
    "BatchNorm3d": (lambda: nk.BatchNorm3d(3), (2, 3, 4, 5, 6)),
    "cumulative BatchNorm2d in evaluation": (
        _with_stats(lambda: nk.BatchNorm2d(3, average="cumulative")),
        (4, 3, 5, 6),
    ),
    "GhostBatchNorm2d in evaluation": (
        _with_stats(lambda: nk.GhostBatchNorm2d(3, ghost_size=2)),
        (4, 3, 5, 6),
    ),
    "SyncBatchNorm in evaluation": (_with_stats(lambda: nk.SyncBatchNorm(3)), (4, 3, 5, 6)),
    "BatchRenorm2d in evaluation": (
        _with_stats(lambda: nk.nn.BatchRenorm2d(3)),
        (4, 3, 5, 6),
    ),
    "DomainBatchNorm2d": (lambda: _of_domain(1), (4, 3, 5, 6)),
    "DomainBatchNorm2d with its own affine": (
        lambda: _of_domain(1, share_affine=False),
        (4, 3, 5, 6),
    ),
    "DomainBatchNorm2d in evaluation": (_with_stats(lambda: _of_domain(0)), (4, 3, 5, 6)),
    "FrozenBatchNorm2d": (_with_stats(lambda: nk.FrozenBatchNorm2d(3)), (4, 3, 5, 6)),
    "GroupNorm": (lambda: nk.GroupNorm(2, 6), (4, 6, 5, 3)),
    "GroupNorm of rank 2": (lambda: nk.GroupNorm(2, 6), (4, 6)),
    "InstanceNorm1d": (lambda: nk.InstanceNorm1d(3), (4, 3, 5)),
    "InstanceNorm2d": (lambda: nk.InstanceNorm2d(3, affine=True), (4, 3, 5, 6)),
    "InstanceNorm3d": (lambda: nk.InstanceNorm3d(3), (2, 3, 4, 5, 6)),
    "InstanceNorm2d in evaluation": (
        _with_stats(lambda: nk.InstanceNorm2d(3, track_running_stats=True)),
        (4, 3, 5, 6),
    ),
    "LayerNorm of rank 1": (lambda: nk.LayerNorm(8), (8,)),
    "LayerNorm of rank 2": (lambda: nk.LayerNorm(8), (4, 8)),
    "LayerNorm of rank 3": (lambda: nk.LayerNorm(8), (4, 3, 8)),
    "LayerNorm of rank 4": (lambda: nk.LayerNorm((3, 8)), (2, 5, 3, 8)),
    "LayerNorm of every axis": (lambda: nk.LayerNorm((4, 3, 8)), (4, 3, 8)),
    "LayerNorm without a bias": (lambda: nk.LayerNorm(8, bias=False), (4, 3, 8)),
    "LayerNorm without affine": (lambda: nk.LayerNorm(8, elementwise_affine=False), (4, 3, 8)),
    "LayerNorm2d": (lambda: nk.LayerNorm2d(6), (2, 6, 4, 4)),
    "RMSNorm": (lambda: nk.RMSNorm(8), (4, 3, 8)),
    "RMSNorm with an eps": (lambda: nk.RMSNorm((3, 8), eps=1e-3), (2, 4, 3, 8)),
}


@contextmanager
def slow_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "layer", lambda *_: None)
        yield


@contextmanager
def fused_only() -> Iterator[None]:
    def steps(*_: Any, **__: Any) -> None:
        raise AssertionError("took the slow path")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "_normalize", staticmethod(steps))
        yield


def _randomized(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def _run(layer: nn.Module, x: Tensor, residual: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Output, gradients and what the layer remembers."""
    x = x.detach().requires_grad_()
    leaves = [x, *layer.parameters()]
    if residual is not None:
        residual = residual.detach().requires_grad_()
        leaves.append(residual)
    y = layer(x) if residual is None else layer(x, residual)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy), *layer.buffers()]


OPTIONS = (
    (None, "relu", ("leaky_relu", -0.5), "silu", "gelu"),
    (False, True),
    (torch.float32, torch.float64, torch.bfloat16),
)
FULL = list(itertools.product(USUAL, *OPTIONS))


# Every pair of activation, residual and type, and each layer with some of them in turn.
_VARIATIONS = pairwise(OPTIONS)
PAIRWISE = [
    (name, *_VARIATIONS[(2 * i + k) % len(_VARIATIONS)])
    for i, name in enumerate(USUAL)
    for k in range(2)
]


def test_pairwise_cases_hold_every_pair_of_options() -> None:
    for i, j in itertools.combinations(range(3), 2):
        found = {(case[1 + i], case[1 + j]) for case in PAIRWISE}
        assert found == set(itertools.product(OPTIONS[i], OPTIONS[j]))
    assert {case[0] for case in PAIRWISE} == set(USUAL) and len(PAIRWISE) < len(FULL) / 10


@pytest.mark.parametrize("case", PAIRWISE, ids=lambda case: "-".join(map(str, case)))
def test_fused_path_and_slow_path_give_the_same_bits(case: tuple[Any, ...]) -> None:
    _check_bits(*case)


@pytest.mark.slow  # every combination; those above hold every pair of options
@pytest.mark.parametrize("name", USUAL)
def test_every_combination_gives_the_same_bits(name: str) -> None:
    for rest in itertools.product(*OPTIONS):
        _check_bits(name, *rest)


def _check_bits(name: str, act: Any, with_residual: bool, dtype: torch.dtype) -> None:
    make, shape = USUAL[name]
    layer = _randomized(make())
    if dtype == torch.float64:  # else its averages would be of another type than the sums
        layer = layer.double()
    layer.act = act
    x, dy = torch.randn(2, *shape).to(dtype).unbind()
    residual = torch.randn(shape).to(dtype) if with_residual else None
    other = copy.deepcopy(layer)
    for _ in range(2):
        with fused_only():
            fast = _run(layer, x, residual, dy)
        with slow_path():
            slow = _run(other, x, residual, dy)
        for a, b in zip(fast, slow, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("name", USUAL)
def test_channels_last_is_kept(name: str) -> None:
    make, shape = USUAL[name]
    if len(shape) != 4 or name.startswith(("LayerNorm of", "RMSNorm")):
        return
    layer = make()
    x, dy = (
        t.contiguous(memory_format=torch.channels_last) for t in torch.randn(2, *shape).unbind()
    )
    other = copy.deepcopy(layer)
    with fused_only():
        found = _run(layer, x, None, dy)
    with slow_path():
        expected = _run(other, x, None, dy)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class _Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


class _Other(Tensor):
    pass


X = (4, 3, 5, 6)


def _with(change: Callable[[Any], object]) -> Make:
    def made() -> nn.Module:
        layer = nk.BatchNorm2d(3)
        change(layer)
        return layer

    return made


def _set(name: str, value: Any) -> Make:
    return _with(lambda layer: setattr(layer, name, value))


def _uncounted() -> nn.Module:
    layer = nk.BatchNorm2d(3, momentum=None)
    layer.num_batches_tracked = None
    return layer


def _put(name: str, value: Any) -> Make:
    """Set an attribute past its check, as it comes in layers converted from torch.nn."""
    return _with(lambda layer: vars(layer).update({name: value}))


# A layer, its input and residual: none of them for the fused path.
UNUSUAL: dict[str, tuple[Make, Callable[[], tuple[Any, Any]]]] = {
    **{
        f"rank {len(shape)}": (
            lambda: nk.BatchNorm2d(3),
            lambda shape=shape: (torch.randn(shape), None),  # type: ignore[misc]
        )
        for shape in [(), (3,), (4, 3), (4, 3, 5), (4, 3, 5, 6, 7)]
    },
    "no tensor": (lambda: nk.BatchNorm2d(3), lambda: (None, None)),
    "a list": (lambda: nk.BatchNorm2d(3), lambda: ([1.0], None)),
    "a subclass": (lambda: nk.BatchNorm2d(3), lambda: (torch.randn(X).as_subclass(_Other), None)),
    "other channels": (lambda: nk.BatchNorm2d(3), lambda: (torch.randn(4, 2, 5, 6), None)),
    "other channels, no affine": (
        lambda: nk.BatchNorm2d(3, affine=False),
        lambda: (torch.randn(4, 2, 5, 6), None),
    ),
    "integers": (lambda: nk.BatchNorm2d(3), lambda: (torch.ones(X, dtype=torch.int64), None)),
    "an empty batch": (lambda: nk.BatchNorm2d(3), lambda: (torch.randn(0, 3, 5, 6), None)),
    "a single value": (lambda: nk.BatchNorm2d(3), lambda: (torch.randn(1, 3, 1, 1), None)),
    "another device": (lambda: nk.BatchNorm2d(3), lambda: (torch.empty(X, device="meta"), None)),
    "a residual of another shape": (
        lambda: nk.BatchNorm2d(3),
        lambda: (torch.randn(X), torch.randn(1, 3, 5, 6)),
    ),
    "a residual of another type": (
        lambda: nk.BatchNorm2d(3),
        lambda: (torch.randn(X), torch.randn(X).double()),
    ),
    "a residual that is none": (lambda: nk.BatchNorm2d(3), lambda: (torch.randn(X), 1.0)),
    "eps of 0": (_set("eps", 0.0), lambda: (torch.randn(X), None)),
    "eps below 0": (_set("eps", -1e-5), lambda: (torch.randn(X), None)),
    "eps of None": (_put("eps", None), lambda: (torch.randn(X), None)),
    "eps of NaN": (_put("eps", float("nan")), lambda: (torch.randn(X), None)),
    "no count to average by": (_uncounted, lambda: (torch.randn(X), None)),
    "a tensor as momentum": (_put("momentum", torch.tensor(0.1)), lambda: (torch.randn(X), None)),
    "a debiased average of too large a momentum": (
        _with(lambda layer: vars(layer).update(_average="debiased", momentum=2.0)),
        lambda: (torch.randn(X), None),
    ),
    "parts of two sizes": (
        lambda: nk.GhostBatchNorm2d(3, 3),
        lambda: (torch.randn(5, 3, 5, 6), None),
    ),
    "parts of one value": (lambda: nk.GhostBatchNorm1d(3, 1), lambda: (torch.randn(4, 3), None)),
    "no mean": (_set("running_mean", None), lambda: (torch.randn(X), None)),
    "no variance": (_set("running_var", None), lambda: (torch.randn(X), None)),
    "a mean of another type": (
        _set("running_mean", torch.zeros(3).double()),
        lambda: (torch.randn(X), None),
    ),
    "a variance of another size": (
        _set("running_var", torch.ones(4)),
        lambda: (torch.randn(X), None),
    ),
    "a counter of floats": (
        _set("num_batches_tracked", torch.tensor(0.0)),
        lambda: (torch.randn(X), None),
    ),
    "a parametrized weight": (
        _with(lambda layer: parametrize.register_parametrization(layer, "weight", _Double())),
        lambda: (torch.randn(X), None),
    ),
    "a pruned weight": (
        _with(lambda layer: prune.random_unstructured(layer, "weight", 1)),
        lambda: (torch.randn(X), None),
    ),
    "a weight of another size": (
        _with(lambda layer: layer.register_parameter("weight", nn.Parameter(torch.ones(4)))),
        lambda: (torch.randn(X), None),
    ),
    "a bias of integers": (
        _with(
            lambda layer: layer.register_parameter(
                "bias", nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
            )
        ),
        lambda: (torch.randn(X), None),
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_fused_path_refuses_without_side_effects(name: str) -> None:
    make, given = UNUSUAL[name]
    layer: Any = make()
    buffers = list(layer.buffers())
    kept, versions = [b.clone() for b in buffers], [b._version for b in buffers]
    assert layer._fused_forward(*given()) is None
    assert all(torch.equal(a, b) for a, b in zip(buffers, kept, strict=True))
    assert [b._version for b in buffers] == versions
    assert not layer._stats_updated


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_calls_match_the_slow_path(name: str) -> None:
    make, given = UNUSUAL[name]

    def ended() -> tuple[nn.Module, Any]:
        torch.manual_seed(1)
        layer = make()
        try:
            x, residual = given()
            return layer, layer(x) if residual is None else layer(x, residual)
        except Exception as error:
            return layer, (type(error), str(error))

    layer, found = ended()
    with slow_path():
        other, expected = ended()
    if isinstance(expected, Tensor):
        assert found.device == expected.device and type(found) is type(expected)
        if found.device.type == "cpu":
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    else:
        assert found == expected
    for a, b in zip(layer.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("rank", range(7))
def test_fused_path_takes_the_same_ranks(name: str, rank: int) -> None:
    make, shape = USUAL[name]
    # Its own sizes as far as they go, else more axes at the end, or before the normalized ones.
    if "LayerNorm of" in name or "RMSNorm" in name or "LayerNorm with" in name:
        sizes = (2,) * max(rank - len(shape), 0) + shape[max(len(shape) - rank, 0) :]
    else:
        sizes = (*shape, 2, 2, 2, 2, 2)[:rank]
    x = torch.randn(sizes)

    def ended() -> type:
        try:
            return type(make()(x))
        except Exception as error:
            return type(error)

    found = ended()
    with slow_path():
        assert found is ended()


def test_counter_is_updated_in_place() -> None:
    layer, x = nk.BatchNorm2d(3), torch.randn(X)
    counter = layer.num_batches_tracked
    version = counter._version
    layer(x), layer(x)
    assert layer.num_batches_tracked is counter and int(counter) == 2
    assert counter._version > version
    # Without a counter the moments move all the same.
    layer.num_batches_tracked = None
    before = layer.running_mean.clone()
    with fused_only():
        layer(x + 1)
    assert not torch.equal(layer.running_mean, before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nk.LayerNorm(6), (6,)),
        (nk.LayerNorm(6), (2, 3, 6)),
        (nk.LayerNorm((3, 6)), (2, 2, 3, 6)),
        (nk.RMSNorm((3, 6)), (2, 2, 3, 6)),
    ],
    ids=str,
)
@pytest.mark.parametrize("act", [None, ("leaky_relu", 0.3), "silu"], ids=str)
def test_rows_of_any_rank_have_two_derivatives_and_no_views(
    layer: Any, shape: tuple[int, ...], act: Any
) -> None:
    layer = copy.deepcopy(layer).double()
    layer.act = act
    x, residual = (t.requires_grad_() for t in torch.randn(2, *shape).double().unbind())
    with fused_only():
        y = layer(x, residual)
    assert y.grad_fn.name() == "NormalizeBackward"
    leaves = {type(node).__name__ for node, _ in y.grad_fn.next_functions if node is not None}
    assert leaves == {"AccumulateGrad"}

    parameters = list(layer.parameters())
    names = [n for n, _ in layer.named_parameters()]

    def f(x: Tensor, residual: Tensor, *values: Tensor) -> Tensor:
        found = functional_call(layer, dict(zip(names, values, strict=True)), (x, residual))
        assert isinstance(found, Tensor)
        return found

    torch.autograd.gradcheck(f, (x, residual, *parameters), fast_mode=True)
    torch.autograd.gradgradcheck(f, (x, residual, *parameters), fast_mode=True, atol=1e-4)


STRIDED: dict[str, tuple[Make, Callable[[], Tensor]]] = {
    "rows, transposed": (lambda: nk.LayerNorm(8), lambda: torch.randn(4, 8, 3).transpose(1, 2)),
    "rows, every other value": (lambda: nk.LayerNorm(8), lambda: torch.randn(4, 3, 16)[..., ::2]),
    "rows of images": (
        lambda: nk.LayerNorm(3), lambda: torch.randn(4, 3, 5, 6).permute(0, 2, 3, 1)
    ),
    "rows, one for all": (lambda: nk.LayerNorm(8), lambda: torch.randn(8).expand(4, 3, 8)),
    "samples, every other": (lambda: nk.BatchNorm2d(3), lambda: torch.randn(8, 3, 5, 6)[::2]),
    "images, nearly channels-last": (
        lambda: nk.BatchNorm2d(3), lambda: torch.randn(4, 5, 12, 3)[:, :, ::2].permute(0, 3, 1, 2)
    ),
    "volumes, permuted": (
        lambda: nk.BatchNorm3d(3),
        lambda: torch.randn(4, 5, 6, 2, 3).permute(0, 4, 1, 2, 3)[:, :, 1:],
    ),
    "parts": (
        lambda: nk.GhostBatchNorm2d(3, 2, track_running_stats=False),
        lambda: torch.randn(8, 3, 5, 6)[::2],
    ),
    "evaluation": (
        lambda: nk.BatchNorm2d(3).eval(), lambda: torch.randn(4, 3, 6, 5).transpose(2, 3)
    ),
    "groups": (
        lambda: nk.GroupNorm(1, 3), lambda: torch.randn(4, 6, 5, 3).permute(0, 3, 1, 2)[:, :, 1:]
    ),
}  # fmt: skip


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("name", STRIDED)
def test_strided_inputs_are_copied(name: str, with_residual: bool) -> None:
    make, draw = STRIDED[name]
    layer, x = _randomized(make()), draw()
    layer.act = "silu"
    assert not x.is_contiguous()
    other, dy = copy.deepcopy(layer), torch.randn(x.shape)
    residual = torch.randn(x.shape) if with_residual else None
    with fused_only():
        fast, y = _run(layer, x, residual, dy), layer(x)
    with slow_path():
        slow, expected = _run(other, x, residual, dy), other(x)
    assert y.stride() == expected.stride()
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("kind", ["transposed", "sliced", "images"])
def test_rows_have_the_strides_of_torch(name: str, kind: str) -> None:
    if name == "RMSNorm" and release(torch.__version__) < (2, 10):
        pytest.skip("RMSNorm of older releases keeps those of its input")
    x = {
        "transposed": torch.randn(4, 8, 3).transpose(1, 2),
        "sliced": torch.randn(4, 3, 16)[..., ::2],
        "images": torch.randn(4, 8, 5, 6).permute(0, 2, 3, 1),
    }[kind]
    ours, theirs = getattr(nk, name)(8)(x), getattr(nn, name)(8)(x)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()


def test_running_statistics_in_bfloat16() -> None:
    layer = _randomized(nk.BatchNorm2d(3)).bfloat16()
    other = copy.deepcopy(layer)
    for i in range(5):
        x, dy = (torch.randn(2, *X) * (i + 1) + i).bfloat16().unbind()
        with fused_only():
            fast = _run(layer, x, None, dy)
        with slow_path():
            slow = _run(other, x, None, dy)
        for a, b in zip(fast[:4], slow[:4], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(fast[4:], slow[4:], strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, **AVERAGES[torch.bfloat16])


@pytest.mark.parametrize(
    "shape", [[8], (8.0,), (2**70,), (torch.tensor(8),), (3, 8), (), 8, None], ids=str
)
def test_changed_normalized_shape_matches_the_slow_path(shape: Any) -> None:
    layer = nk.LayerNorm(8)
    vars(layer)["normalized_shape"] = shape  # past its check, as converted layers come

    def ended() -> Any:
        try:
            return layer(torch.ones(2, 8)).shape
        except Exception as error:
            return type(error), str(error)

    found = ended()
    with slow_path():
        assert found == ended()


@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm of rank 3", "InstanceNorm2d"])
def test_swapped_parameters_are_used(name: str) -> None:
    make, shape = USUAL[name]
    layer, x = make(), torch.randn(shape)
    values = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
    with fused_only():
        y = functional_call(layer, values, (x,))
    other = make()
    other.load_state_dict(values, strict=False)
    assert torch.equal(y, other(x))


def test_parametrized_weight_is_used() -> None:
    layer, x = nk.LayerNorm(8), torch.randn(4, 8)
    parametrize.register_parametrization(layer, "weight", _Double())
    torch.testing.assert_close(layer(x), 2 * nk.LayerNorm(8)(x))


@pytest.mark.parametrize("name", ["BatchNorm2d in evaluation", "LayerNorm of rank 3", "GroupNorm"])
def test_transforms_see_the_operations(name: str) -> None:
    make, shape = USUAL[name]
    layer = make()
    x, t = torch.randn(2, *shape).unbind()
    with slow_path():
        expected = jvp(layer, (x,), (t,))
        slope = grad(lambda x: layer(x).square().sum())(x)
    torch.testing.assert_close(jvp(layer, (x,), (t,)), expected)
    torch.testing.assert_close(grad(lambda x: layer(x).square().sum())(x), slope)
    both = vmap(layer)(torch.stack([x, t]))
    torch.testing.assert_close(both, torch.stack([layer(x), layer(t)]))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, t))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, expected[1])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["BatchNorm2d in evaluation", "LayerNorm of rank 3"])
def test_traced_layer_depends_on_its_input(name: str) -> None:
    make, shape = USUAL[name]
    layer = make()
    x, other = torch.randn(2, *shape).unbind()
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    torch.testing.assert_close(traced(other), layer(other))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_of_the_strided_layout() -> None:
    parts = [torch.randn(n, 4) for n in (2, 3)]
    x = torch.nested.nested_tensor(parts)
    layer = nk.LayerNorm(4)
    for a, b in zip(layer(x).unbind(), parts, strict=True):
        torch.testing.assert_close(a, layer(b))
    # Asking for its sizes raises, which the fused path must not do.
    for other in (nk.LayerNorm((3, 4)), nk.BatchNorm1d(3)):
        with slow_path(), pytest.raises(RuntimeError) as expected:
            other(x)
        with pytest.raises(RuntimeError) as found:
            other(x)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm of rank 3", "RMSNorm"])
def test_cpu_autocast_keeps_the_type(name: str) -> None:
    make, shape = USUAL[name]
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape).to(dtype)
        with torch.autocast("cpu"), fused_only():
            y = make()(x)
        assert y.dtype == dtype and torch.equal(y, make()(x))


@pytest.mark.parametrize("what", ["input", "weight"])
def test_in_place_change_of_saved_tensors_is_an_error(what: str) -> None:
    layer, x = nk.LayerNorm(8), torch.randn(4, 3, 8, requires_grad=True) * 1
    y = layer(x)
    with torch.no_grad():
        (x if what == "input" else layer.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("act", [None, "silu"])
def test_saved_tensor_hooks_are_called(act: str | None) -> None:
    layer, x = nk.LayerNorm((3, 8), act=act), torch.randn(4, 3, 8, requires_grad=True)
    seen: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(tuple(t.shape))
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    # The bias only where z is computed again.
    assert seen == [(4, 3, 8), (3, 8), *([] if act is None else [(3, 8)])]
    found = torch.autograd.grad(y.square().sum(), [x, layer.weight])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_fused_path_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "fused", None)
    layer, x = nk.BatchNorm2d(3), torch.randn(X)
    assert layer._fused_forward(x, None) is None
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(3)(x))


def test_wrong_number_of_arguments() -> None:
    assert cpu.fused is not None
    with pytest.raises(RuntimeError, match="14 arguments"):
        cpu.fused.layer(torch.ones(2))


def test_kernels_refuse_dictionary_subclasses() -> None:
    layer, x = nk.GroupNorm(1, 3), torch.randn(X)

    class Reading(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: str) -> Tensor:
            raise AssertionError

    call = (fused.signature("group", (4,)), 1, None, 1e-5, None)
    assert fused.layer(x, None, layer._parameters, None, *call) is not None
    assert fused.layer(x, None, Reading(layer._parameters), None, *call) is None


def test_channels_are_checked_without_parameters() -> None:
    x = torch.randn(X)
    with pytest.raises(nk.errors.ShapeError, match="Expected 5 channels"):
        nk.LayerNorm2d(5, elementwise_affine=False)(x)
    with pytest.warns(UserWarning, match="does not match num_features"):
        y = nk.InstanceNorm2d(5)(x)
    torch.testing.assert_close(y, nn.InstanceNorm2d(3)(x))


AVERAGED: dict[str, Callable[..., Any]] = {
    "momentum=None": partial(nk.BatchNorm2d, 3, momentum=None),
    "momentum=1": partial(nk.BatchNorm2d, 3, momentum=1),
    "cumulative": partial(nk.BatchNorm2d, 3, average="cumulative"),
    "debiased": partial(nk.BatchNorm2d, 3, average="debiased"),
    "debiased, momentum=1": partial(nk.BatchNorm2d, 3, average="debiased", momentum=1.0),
    "debiased, momentum=1e-6": partial(nk.BatchNorm2d, 3, average="debiased", momentum=1e-6),
    "parts": partial(nk.GhostBatchNorm2d, 3, 3),
    "parts, cumulative": partial(nk.GhostBatchNorm2d, 3, 2, average="cumulative"),
    "parts, one": partial(nk.GhostBatchNorm2d, 3, 6),
    "parts, forgetful": partial(nk.GhostBatchNorm2d, 3, 3, track_running_stats=False),
    "synchronized, alone": partial(nk.SyncBatchNorm, 3, average="debiased"),
    "domain": lambda **options: _of_domain(1, average="cumulative", **options),
}


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", AVERAGED)
def test_every_average_and_equal_parts_are_fused(name: str, dtype: torch.dtype, far: float) -> None:
    """Outputs and gradients have the same bits; averages differ by rounding, in the last place."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layer = _randomized(AVERAGED[name](dtype=wide))
    other = copy.deepcopy(layer)
    for i in range(4):
        x, dy = (torch.randn(2, 6, 3, 5, 6) * (i + 1) + i + far).to(dtype).unbind()
        with fused_only():
            fast = _run(layer, x, None, dy)
        with slow_path():
            slow = _run(other, x, None, dy)
        assert len(fast) == len(slow)
        for a, b in zip(fast[:4], slow[:4], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(fast[4:], slow[4:], strict=True):
            torch.testing.assert_close(a, b, **AVERAGES[wide])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_weights_are_those_of_torch(dtype: torch.dtype) -> None:
    ours = nk.BatchNorm2d(3, momentum=None, dtype=dtype)
    theirs = nn.BatchNorm2d(3, momentum=None, dtype=dtype)
    for i in range(5):
        x = torch.randn(4, 3, 5, 6, dtype=dtype) * (i + 1) + i
        ours(x)
        theirs(x)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def test_parts_whose_means_lie_too_far_apart_are_refused() -> None:
    """No part exceeds float32, the variance between them does."""
    layer = nk.GhostBatchNorm2d(3, 2)
    x = torch.randn(4, 3, 5, 6)
    x[:2] += 1e25
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(nk.NonFiniteError, match="running_var"):
        layer(x)
    torch.testing.assert_close(layer.state_dict(), before)


def test_equal_weights_need_a_count() -> None:
    """Without one PyTorch's layer leaves its averages as they are, and so does ours."""
    ours, theirs = nk.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for layer in (ours, theirs):
        layer.num_batches_tracked = None
        layer(torch.randn(4, 3, 5, 6) + 1)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    still = nk.BatchNorm2d(3, momentum=0, average="cumulative")
    still(torch.randn(4, 3, 5, 6) + 1)
    assert still.num_batches_tracked == 1 and not still.running_mean.any()


def test_parts_that_a_subclass_chooses() -> None:
    class Chosen(nk.GhostBatchNorm2d):
        def part_sizes(self, n: int) -> list[int]:
            return [1, n - 2, 1]

    layer, x = Chosen(3, 4), torch.randn(6, 3, 5, 6)
    torch.testing.assert_close(layer(x)[:4], nk.BatchNorm2d(3)(x[:4]))


@pytest.mark.parametrize("name", ["momentum=None", "debiased", "parts", "synchronized, alone"])
def test_a_checkpointed_batch_counts_once(name: str) -> None:
    layer, twin = AVERAGED[name](), AVERAGED[name]()
    for _ in range(3):
        x = torch.randn(6, 3, 5, 6, requires_grad=True)
        checkpoint(layer, x, use_reentrant=False).sum().backward()
        twin(x)
    for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
