"""Layer normalization whose scale and shift are inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from normkit.core.activations import ActLike
from normkit.nn.inputs import prepare
from normkit.nn.layernorm import LayerNorm
from normkit.nn.modulation import fitted, modulate
from normkit.nn.symbolic import as_leaf

__all__ = ["AdaptiveLayerNorm"]


class AdaptiveLayerNorm(LayerNorm):
    r"""Layer normalization with scale and shift as inputs, as in diffusion transformers (AdaLN).

    .. math::
        y = \mathrm{act}\left(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}\,
            (1 + \mathrm{scale}) + \mathrm{shift} + \mathrm{residual}\right)

    What computes them from a condition, such as a linear layer of the embedded time step, is the
    model's. The layer itself learns nothing. Both are passed by keyword, since code in use has
    them in either order; without one of them its part is left out, and without both the layer is
    :class:`normkit.LayerNorm` without affine. 1 + scale and the product are computed in float32 or
    wider.

    Args:
        normalized_shape: sizes of the last axes, or the size of the last one.
        eps: added to the variance, in squared units of the input; 1e-6, as in the source.
        act: activation to apply, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, \*, normalized_shape).
        scale and shift: (N, normalized_shape), one for all tokens of a sample;
        (normalized_shape); or with the axes of the input, any but the last ones of size 1.

    Raises:
        ShapeError: the input does not end in ``normalized_shape``; scale or shift of another
            shape.
        TypeMismatchError: not a floating-point tensor.

    Source: Peebles & Xie 2023 (DiT), arXiv 2212.09748; Perez et al. 2018 (FiLM), arXiv 1709.07871.

    >>> import torch
    >>> x, condition = torch.randn(4, 16, 8), torch.randn(4, 32)
    >>> scale, shift = torch.nn.Linear(32, 2 * 8)(condition).chunk(2, dim=1)
    >>> AdaptiveLayerNorm(8)(x, scale=scale, shift=shift).shape
    torch.Size([4, 16, 8])
    """

    _beyond = ("scale and shift of each sample",)

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-6, *, act: ActLike = None
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine=False, act=act)

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Normalize ``input``, scale and shift, add ``residual`` if given, apply the activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual, scale=scale, shift=shift)
        if scale is None and shift is None:
            return super().forward(input, residual)
        input, residual = prepare(self, input, residual)
        z = self._forward_with(None, input, None)
        features, axis = self.normalized_shape, input.dim() - len(self.normalized_shape)
        factor = fitted(self, "scale", scale, input, features, axis)
        offset = fitted(self, "shift", shift, input, features, axis)
        return modulate(z, residual, self._act, factor, offset)

    def extra_repr(self) -> str:
        shown = f"{self.normalized_shape}, eps={self.eps}"
        return shown if self.act is None else f"{shown}, act={self.act!r}"
