"""Filter response normalization and its thresholded linear unit."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from normkit.core import formula
from normkit.core.activations import Act, ActLike
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.core.pools import Pool, as_ncs, concrete
from normkit.kernels.call import BatchStats, Call
from normkit.kernels.modes import differentiates, transformed
from normkit.kernels.wide import beyond_float32
from normkit.nn.arguments import ATTRIBUTES, Check, flag
from normkit.nn.inputs import check_count, check_eps, check_rank, prepare
from normkit.nn.layer import Layer, affine_parameters, reset_affine
from normkit.nn.symbolic import as_leaf

__all__ = [
    "FilterResponse",
    "FilterResponseNorm1d",
    "FilterResponseNorm2d",
    "FilterResponseNorm3d",
]

_EPS_L = 1e-4  # what the learned part of ε starts from, in the paper


class FilterResponse(Layer):
    """Shared behaviour of filter response normalization; subclasses fix the input rank."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    tau: nn.Parameter | None
    eps_l: nn.Parameter | None

    _ranks: ClassVar[tuple[int, ...]]
    _shape: ClassVar[str]
    _checked: ClassVar[dict[str, Check]] = {**ATTRIBUTES, "tlu": flag, "learn_eps": flag}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        tlu: bool = True,
        learn_eps: bool = False,
        act: ActLike = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine, self.tlu, self.learn_eps = affine, tlu, learn_eps
        self.act = act
        affine_parameters(self, self.num_features, self.affine, bias, device, dtype)
        for name, learned, start in (
            ("tau", self.tlu, 0.0),
            ("eps_l", self.learn_eps, _EPS_L),
        ):
            values = None
            if learned:
                full = torch.full((self.num_features,), start, device=device, dtype=dtype)
                values = nn.Parameter(full)
            self.register_parameter(name, values)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``input``, add ``residual`` if given, apply threshold and activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, self._ranks, self._shape, "use the form for that many axes")
        input, residual = prepare(self, input, residual)
        check_count(self, input, self.num_features)
        check_eps(self, self.eps, False)
        if self.tau is None:
            return self._normalized(input, residual, self._act)
        y = self._normalized(input, residual, None)
        y = _threshold(y, self.tau.view([1, -1] + [1] * (y.dim() - 2)))
        return y if self._act is None else self._act(y)

    def _normalized(self, x: Tensor, residual: Tensor | None, act: Act | None) -> Tensor:
        _, c, _ = as_ncs(x)
        pool = Pool("group", max(concrete(c), 1))
        weight, bias, eps_l = self.weight, self.bias, self.eps_l
        if not self._is_composed(x):
            spec = Spec(pool, self.eps, act, centred=False)
            return self._normalize(Call(x, spec, weight, bias, residual, BatchStats())).y
        # The derivative of x/√(x² + ε) is ε/(x² + ε)^1.5, here a difference of two numbers that
        # are nearly equal: float32 would leave no digit of it.
        wide = x.double() if _is_single(x) else x.to(accumulator(x.dtype))
        rest = None if residual is None else residual.to(wide.dtype)
        zero, square = formula.stats_of(wide, pool, centred=False)
        square = square + self.eps
        if eps_l is not None:
            square = square + eps_l.to(wide.dtype).abs().view(pool.params(concrete(c)))
        looks = wide.dtype == torch.float32 and x.is_cpu and not transformed(x)
        if looks and beyond_float32(torch.rsqrt(square)):  # see normkit.kernels.wide
            return self._normalized(x.double(), residual, act).to(x.dtype)
        spec = Spec(pool, 0.0, act, centred=False)
        return formula.normalize(wide, spec, weight, bias, rest, zero, square).to(x.dtype)

    def _is_composed(self, input: Tensor | None = None) -> bool:
        return self.eps_l is not None or (input is not None and _is_single(input))

    def reset_parameters(self) -> None:
        """Reset γ to 1, β and τ to 0, and the learned part of ε to 1e-4."""
        reset_affine(self)
        if self.tau is not None:
            nn.init.zeros_(self.tau)
        if self.eps_l is not None:
            nn.init.constant_(self.eps_l, _EPS_L)

    def extra_repr(self) -> str:
        shown = (
            f"{self.num_features}, eps={self.eps}, affine={self.affine}, tlu={self.tlu}, "
            f"learn_eps={self.learn_eps}"
        )
        return shown if self.act is None else f"{shown}, act={self.act!r}"


def _threshold(y: Tensor, tau: Tensor) -> Tensor:
    """Return max(y, τ); where they are equal the gradient is that of τ, as a ReLU has it."""
    if transformed(y, tau):
        return torch.where(y <= tau, tau, y).to(y.dtype)
    if not differentiates(y, tau):
        return torch.maximum(y, tau.to(y.dtype))
    z: Tensor = _Threshold.apply(y, tau)
    return z


class _Threshold(torch.autograd.Function):
    """Maximum whose backward costs a third of that of ``torch.maximum``, which halves at ties."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, tau: Tensor) -> Tensor:
        # A comparison: rounding τ to the type of y gives what rounding the maximum would.
        z = torch.maximum(y, tau.to(y.dtype))
        ctx.save_for_backward(z, tau)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor]:
        z, tau = ctx.saved_tensors
        dy = dz * ~(z <= tau.to(z.dtype))
        axes = [0, *range(2, z.dim())]
        return dy, (dz - dy).sum(axes, keepdim=True, dtype=accumulator(z.dtype)).to(tau.dtype)


def _is_single(x: Tensor) -> bool:
    """Return whether there is one position, and a device with float64 for it."""
    return concrete(as_ncs(x)[2]) == 1 and x.device.type != "mps"


class FilterResponseNorm1d(FilterResponse):
    """:class:`FilterResponseNorm2d` for (N, C) and (N, C, L).

    >>> FilterResponseNorm1d(3)(torch.randn(10, 3, 7)).shape
    torch.Size([10, 3, 7])
    """

    _ranks = (2, 3)
    _shape = "(N, C) or (N, C, L)"


class FilterResponseNorm2d(FilterResponse):
    r"""Filter response normalization with its thresholded linear unit, for images.

    .. math::
        y = \mathrm{act}\left(\max\left(\gamma\,\frac{x}{\sqrt{\nu^2 + \epsilon}} + \beta
            + \mathrm{residual},\ \tau\right)\right),\quad
        \nu^2 = \frac{1}{HW}\sum x^2

    The mean square is taken per sample and channel over height and width; nothing is centred and
    nothing depends on the batch, so training and evaluation are alike. The learned threshold τ
    takes the place of a ReLU, which alone would lose what the missing centring leaves below zero.

    With a single position, as behind global pooling, y is nearly the sign of x and its gradient
    about ε; it is computed in float64 there. The paper learns ε in that case.

    Args:
        num_features: number of channels C.
        eps: fixed part of ε, added to the mean square, in squared units of the input.
        affine: learn γ (``weight``) and, unless ``bias=False``, β (``bias``).
        tlu: learn τ (``tau``), which starts at 0; False leaves the threshold out.
        learn_eps: learn a part of ε per channel too: ε = ``eps`` + \|``eps_l``\|, from 1e-4.
        act: activation to apply after the threshold, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        ShapeError: another rank or number of channels.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act``; ``eps`` below 0, in forward.

    Source: Singh & Krishnan 2020, arXiv 1911.09737, section 3.

    >>> layer = FilterResponseNorm2d(8)
    >>> y = layer(torch.randn(4, 8, 5, 5))
    >>> y.shape, bool((y >= 0).all())
    (torch.Size([4, 8, 5, 5]), True)
    """

    _ranks = (4,)
    _shape = "(N, C, H, W)"


class FilterResponseNorm3d(FilterResponse):
    """:class:`FilterResponseNorm2d` for (N, C, D, H, W).

    >>> FilterResponseNorm3d(3)(torch.randn(2, 3, 4, 5, 5)).shape
    torch.Size([2, 3, 4, 5, 5])
    """

    _ranks = (5,)
    _shape = "(N, C, D, H, W)"
