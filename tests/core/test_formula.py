"""The pools, activations and the formula against the float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit.core import formula, reference
from normkit.core.activations import Act, parse_act
from normkit.core.formula import Spec
from normkit.core.masked import masked_moments
from normkit.core.moments import Moments
from normkit.core.pools import PER_CHANNEL, PER_POSITION, Pool, as_ncs
from normkit.errors import OptionError
from tests.few import few

SHAPE = (6, 4, 3, 5)
ACTS = [Act("relu"), Act("relu6"), Act("silu"), Act("gelu"), Act("leaky_relu", 0.2),
        Act("leaky_relu", -0.5)]  # fmt: skip

Truth = Callable[[Tensor, Tensor, Tensor], Tensor]
POOLS: dict[str, tuple[Pool, Truth]] = {
    "batch": (PER_CHANNEL, lambda x, w, b: reference.batch_norm(x, w, b)),
    "ghost": (Pool("ghost", 3), lambda x, w, b: reference.ghost_batch_norm(x, [2, 2, 2], w, b)),
    "group": (Pool("group", 2), lambda x, w, b: reference.group_norm(x, 2, w, b)),
    "instance": (Pool("group", 4), lambda x, w, b: reference.instance_norm(x, w, b)),
    "sample": (Pool("group", 1), lambda x, w, b: reference.group_norm(x, 1, w, b)),
    "position": (PER_POSITION, lambda x, w, b: reference.layer_norm_2d(x, w, b, 1e-5)),
}


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("name", POOLS)
def test_formula_matches_the_reference(name: str, offset: float) -> None:
    pool, truth = POOLS[name]
    x = torch.randn(SHAPE, dtype=torch.float64) + offset
    w, b, dy = torch.randn(4).double(), torch.randn(4).double(), torch.randn(SHAPE).double()
    results = []
    for compute in (
        lambda x, w, b: formula.normalize(
            x, Spec(pool, 1e-5), w, b, None, *formula.stats_of(x, pool)
        ),
        truth,
    ):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        y = compute(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", POOLS)
def test_moments_of_a_pool_are_those_of_its_view(name: str) -> None:
    pool, _ = POOLS[name]
    x = torch.randn(SHAPE, dtype=torch.float64)
    n, c, s = as_ncs(x)
    view = x.reshape(pool.view(n, c, s))
    mean, var = formula.stats_of(x, pool)
    assert mean.shape == var.shape == pool.stats(n, c, s)
    assert pool.count(n, c, s) * mean.numel() == x.numel()
    torch.testing.assert_close(mean, view.mean(pool.dims, keepdim=True))
    torch.testing.assert_close(var, view.var(pool.dims, correction=0, keepdim=True))
    # γ and β vary along the channels alone.
    channels = torch.arange(c).reshape(pool.params(c)).expand(pool.view(n, c, s))
    assert torch.equal(channels.reshape(x.shape), torch.arange(c).reshape(1, c, 1, 1).expand(SHAPE))
    assert set(pool.shared_dims) == set(pool.dims) & set(pool.param_dims)


VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "formula": lambda x: formula.stats_of(x, PER_CHANNEL)[1],
    "masked": lambda x: masked_moments(x, torch.ones_like(x[:, :1]).bool(), PER_CHANNEL).var,
    "merged": lambda x: Moments.of(x, (0, 2, 3)).variance,
    "switchable": lambda x: nk.SwitchableNorm2d(x.shape[1])._normalized(x, None, None, None)[2],
    "compiled": lambda x: torch.compile(formula.stats_of)(x, PER_CHANNEL)[1],
}


@pytest.mark.parametrize("name", few(VARIANCES, lambda name: name != "compiled"))
def test_values_that_hardly_differ_have_hardly_a_variance(name: str) -> None:
    """Far from zero, where the mean is rounded by more than the values differ."""
    for value in (0.3, 1e4 + 0.3, 1e6 + 0.3, 1e8):
        x = torch.full((1000, 6, 5, 3), value)
        assert float(VARIANCES[name](x).max()) <= (1e-7 * value) ** 2 * (name == "compiled")
    few = torch.rand(1000, 6, 5, 3, generator=torch.Generator().manual_seed(0)) < 0.01
    for value, step in ((1e5, 0.1), (1e6, 0.5), (1e7, 4.0)):
        x = value + step * few
        truth = x.double().var((0, 2, 3), correction=0)
        found = VARIANCES[name](x).flatten().double()
        torch.testing.assert_close(found, truth, rtol=0.05, atol=0)


def test_rms_and_fixed_moments_match_the_reference() -> None:
    x, w = torch.randn(6, 8).double(), torch.randn(8).double()
    rms = Spec(Pool("group", 1), 1e-6, centred=False)
    y = formula.normalize(x, rms, w, None, None, *formula.stats_of(x, rms.pool, False))
    torch.testing.assert_close(y, reference.rms_norm(x, 1, w))
    mean, var = torch.randn(8).double(), torch.rand(8).double() + 0.5
    z = formula.normalize(
        x, Spec(PER_CHANNEL, 1e-5), w, None, None, mean.reshape(1, 8, 1, 1), var.reshape(1, 8, 1, 1)
    )
    torch.testing.assert_close(z, reference.frozen_batch_norm(x, mean, var, w))


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("pool", [PER_CHANNEL, Pool("group", 3), PER_POSITION], ids=str)
def test_empty_pools_have_finite_moments(pool: Pool, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    mean, var = formula.stats_of(x, pool)
    assert bool(mean.isfinite().all()) and bool(var.isfinite().all())
    assert formula.normalize(x, Spec(pool, 1e-5), None, None, None, mean, var).shape == shape


@pytest.mark.parametrize(("needs", "act"), [*itertools.product(range(16), [None, Act("relu")])])
def test_gradients_are_those_needed(needs: int, act: Act | None) -> None:
    x, residual, dy = torch.randn(3, *SHAPE, dtype=torch.float64).unbind()
    w, b = torch.randn(2, 4, dtype=torch.float64).unbind()
    inputs = tuple(t.clone().requires_grad_() for t in (x, w, b, residual))
    spec = Spec(PER_CHANNEL, 1e-5, act)
    y = formula.normalize(inputs[0], spec, *inputs[1:], *formula.stats_of(inputs[0], PER_CHANNEL))
    expected = torch.autograd.grad(y, inputs, dy)
    which = [bool(needs >> i & 1) for i in range(4)]
    grads = formula.gradients(inputs, y.detach(), None, dy, which, spec, again=False)
    for grad, full, need in zip(grads, expected, which, strict=True):
        assert (grad is not None) is need
        if grad is not None:
            torch.testing.assert_close(grad, full)


@pytest.mark.parametrize("act", ACTS, ids=str)
def test_activation_matches_torch_and_its_derivatives(act: Act) -> None:
    z = torch.linspace(-3, 9, 41, dtype=torch.float64)
    z = z[z != 0].requires_grad_()
    theirs = {
        "relu": torch.nn.ReLU(),
        "relu6": torch.nn.ReLU6(),
        "silu": torch.nn.SiLU(),
        "gelu": torch.nn.GELU(),
        "leaky_relu": torch.nn.LeakyReLU(act.slope),
    }[act.name]
    y, dy = theirs(z), torch.randn_like(z)
    torch.testing.assert_close(act(z), y)
    torch.testing.assert_close(act.apply_(z.detach().clone()), y.detach())
    torch.testing.assert_close(act.onto(z * 1), y)
    (expected,) = torch.autograd.grad(y, z, dy)
    torch.testing.assert_close(act.backward(dy, z.detach()), expected)
    if act.derivative_from_output:
        torch.testing.assert_close(act.backward_from_output(dy, y.detach()), expected)
    assert act.derivative_from_output is (act.name in ("relu", "relu6") or act.slope > 0)


@pytest.mark.parametrize(
    "act", ["tanh", ("relu", 0.1), ("leaky_relu", "x"), ("leaky_relu", 0.1, 0.2), 3, ()], ids=str
)
def test_unknown_activations_are_refused(act: object) -> None:
    with pytest.raises(OptionError, match="act"):
        parse_act(act)  # type: ignore[arg-type]
