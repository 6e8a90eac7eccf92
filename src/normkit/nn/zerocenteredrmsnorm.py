"""Root mean square normalization whose weight is centred at zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from normkit.core.activations import ActLike
from normkit.core.moments import accumulator
from normkit.kernels import fused
from normkit.nn.arguments import ATTRIBUTES, Check, check_options, shape
from normkit.nn.inputs import check_eps, check_floating, prepare
from normkit.nn.lastaxes import UNCENTRED, over_last
from normkit.nn.layer import Layer, nested
from normkit.nn.symbolic import as_leaf

__all__ = ["ZeroCenteredRMSNorm"]


class ZeroCenteredRMSNorm(Layer):
    r"""Root mean square normalization with γ = 1 + ``weight``, as in Gemma and Qwen3-Next.

    .. math::
        y = \mathrm{act}\left((1 + w)\,\frac{x}{\sqrt{\frac1n\sum x^2 + \epsilon}}
            + \mathrm{residual}\right)

    The weight starts at zero, so weight decay pulls γ to 1 and not to 0, and a half type keeps
    more digits of it near the start. The name is the field's; the input is not centred.

    1 + w and the product are computed in float32 or wider, and rounded to the type of the input
    once, at the end: ``(x̂ · (1 + w.float())).type_as(x)``, as transformers' ``GemmaRMSNorm``.

    A class and no option of :class:`normkit.RMSNorm`: its ``weight`` is another quantity under the
    same key, and whatever takes a ``torch.nn.RMSNorm`` multiplies by ``weight``. To move weights
    from one to the other, subtract or add 1.

    Args:
        normalized_shape: sizes of the last axes, or the size of the last one.
        eps: added to the mean square, in squared units of the input; 1e-6, as in the models above.
        elementwise_affine: learn ``weight``.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (\*, normalized_shape).

    Raises:
        ShapeError: the input does not end in ``normalized_shape``.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act``; ``eps`` below 0, in forward. Arguments are validated as
            :class:`normkit.BatchNorm1d`'s are.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467; Gemma Team 2024, arXiv 2403.08295.

    >>> layer = ZeroCenteredRMSNorm(2)
    >>> layer(torch.tensor([[3.0, 4.0]])).detach()
    tensor([[0.8485, 1.1314]])
    >>> layer.weight.detach()
    tensor([0., 0.])
    """

    weight: nn.Parameter | None

    _checked: ClassVar[dict[str, Check]] = {**ATTRIBUTES, "normalized_shape": shape}

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        act: ActLike = None,
    ) -> None:
        super().__init__()
        check_options(self, device, dtype)
        self.normalized_shape: tuple[int, ...] = normalized_shape  # type: ignore[assignment]
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.act = act
        zeros = None
        if self.elementwise_affine:
            zeros = nn.Parameter(torch.zeros(self.normalized_shape, device=device, dtype=dtype))
        self.register_parameter("weight", zeros)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``x``, add ``residual`` (same shape) if given, apply the activation."""
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x, residual)
        check_floating(self, x)
        gamma = self._gamma(x.dtype)
        if not is_compiling():
            y = fused.layer(x, residual, {"weight": gamma}, None, UNCENTRED, 1,
                            self.normalized_shape, self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        if x.is_nested:
            z = F.rms_norm(x.to(accumulator(x.dtype)), self.normalized_shape, gamma, self.eps)
            return nested(self, z.to(x.dtype), residual)
        x, residual = prepare(self, x, residual)
        check_eps(self, self.eps, False)
        return over_last(self, x, residual, self.eps, gamma, None, False, self._act)

    def _gamma(self, dtype: torch.dtype) -> Tensor | None:
        """Return 1 + ``weight``, in the type that sums over an input of ``dtype`` are kept in."""
        weight = self.weight
        if weight is None:
            return None
        return weight.to(torch.promote_types(weight.dtype, accumulator(dtype))) + 1

    def reset_parameters(self) -> None:
        """Reset ``weight`` to 0, which makes γ 1."""
        if self.weight is not None:
            nn.init.zeros_(self.weight)

    def extra_repr(self) -> str:
        shown = (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )
        return shown if self.act is None else f"{shown}, act={self.act!r}"
