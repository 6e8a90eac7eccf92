r"""One formula, in operations that PyTorch can differentiate, trace and transform.

.. math::
    y = \mathrm{act}\left(\gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta
        + \mathrm{residual}\right)

The kernels compute the same thing with fewer passes and a backward written by hand. This form is
for where PyTorch itself has to look inside: ``torch.compile``, ``torch.export``, ``torch.func``,
forward-mode differentiation, and derivatives of derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from normkit.core.activations import Act
from normkit.core.moments import accumulator
from normkit.core.pools import Pool, as_ncs, concrete

__all__ = ["Spec", "gradients", "normalize", "stats_of"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Normalization as plain data: everything but the tensors.

    Args:
        pool: which elements share moments.
        eps: added to the variance, in squared units of the input.
        act: activation of the result, or None.
        centred: subtract the mean. False gives RMS normalization, whose "variance" is the mean
            square.
    """

    pool: Pool
    eps: float
    act: Act | None = None
    centred: bool = True


def stats_of(x: Tensor, pool: Pool, centred: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of ``x`` (N, C, \\*) over ``pool``, in float32 or wider.

    Both have shape ``pool.stats(N, C, S)``. Without centring the mean is 0 and the variance is the
    mean square. Where a pool holds no values both are 0.
    """
    n, c, s = as_ncs(x)
    view, _, _, dims = pool.spatial(x.shape)
    z = x.reshape(view).to(accumulator(x.dtype))
    shape = pool.stats(n, c, s)
    if concrete(pool.count(n, c, s)) == 0:
        zeros = z.new_zeros(shape)
        return zeros, zeros
    if not centred:
        return z.new_zeros(shape), z.square().mean(dims, keepdim=True).reshape(shape)
    mean = z.mean(dims, keepdim=True)
    z = z - mean
    rest = z.mean(dims, keepdim=True).detach()
    # Second order: what rounding left in the mean. Detached, since its derivative is zero but for
    # rounding. Subtracted before squaring: of a constant channel far from zero nothing else is
    # left, and the difference of two squares would be rounding alone.
    var = (z - rest).square().mean(dims, keepdim=True)
    return (mean + rest).reshape(shape), var.reshape(shape)


def normalize(
    x: Tensor,
    spec: Spec,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> Tensor:
    """Compute the formula above for ``x`` (N, C, \\*); moments have shape ``pool.stats(N, C, S)``.

    ``weight`` and ``bias`` have C elements in any shape; ``residual`` has the shape of ``x``.
    Returns a tensor of the shape and type of ``x``.
    """
    view, stats, params, _ = spec.pool.spatial(x.shape)
    acc = accumulator(x.dtype)
    z = x.reshape(view).to(acc)
    if spec.centred:
        z = z - mean.reshape(stats).to(acc)
    z = z * torch.rsqrt(var.reshape(stats).to(acc) + spec.eps)
    if weight is not None:
        z = z * weight.reshape(params).to(acc)
    if bias is not None:
        z = z + bias.reshape(params).to(acc)
    if residual is not None:
        z = z + residual.reshape(view).to(acc)
    if spec.act is not None:
        z = spec.act(z)
    return z.to(x.dtype).reshape(x.shape)


def gradients(
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    y: Tensor | None,
    fixed: tuple[Tensor, Tensor] | None,
    dy: Tensor,
    needs: Sequence[bool],
    spec: Spec,
    again: bool,
) -> list[Tensor | None]:
    """Return the gradients of x, weight, bias and residual as PyTorch's autograd derives them.

    Args:
        inputs: x, weight, bias, residual. A residual that is needed and None was not saved,
            because the output is linear in it.
        y: the output, where its sign gives the derivative of the activation.
        fixed: mean and 1/√(σ² + ε), where the moments are constants.
        dy: gradient of the output.
        needs: which gradients to compute; the others are None.
        again: whether they can be differentiated in turn.
    """
    x, weight, bias, residual = inputs
    if y is not None and spec.act is not None:
        # The activation is piecewise linear, and y tells which piece.
        dy = spec.act.backward_from_output(dy, y.detach())
        spec = Spec(spec.pool, spec.eps, None, spec.centred)
    if fixed is None:
        mean, var = stats_of(x, spec.pool, spec.centred)
    else:
        mean, var = fixed[0], fixed[1].pow(-2) - spec.eps
    z = normalize(x, spec, weight, bias, residual, mean, var)
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    derived = iter(torch.autograd.grad(z, wanted, dy, create_graph=again) if wanted else ())
    grads: list[Tensor | None] = [
        next(derived) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    if needs[3] and residual is None:
        grads[3] = dy
    return grads
