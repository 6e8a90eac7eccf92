"""Half instance normalization."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, fx, nn

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.pools import Pool, as_ncs
from normkit.kernels.call import BatchStats, Call
from normkit.nn.arguments import ATTRIBUTES, CHANNELS, Check, at_least
from normkit.nn.inputs import check_count, check_eps, check_more_than_one, check_rank, prepare
from normkit.nn.layer import Layer, affine_parameters, join, reset_affine
from normkit.nn.symbolic import as_leaf

__all__ = ["HalfInstanceNorm2d"]


class HalfInstanceNorm2d(Layer):
    """Instance normalization of the first half of the channels; the other half passes unchanged.

    Half of the channels keep the contrast of each image, which instance normalization removes.
    With an odd number the normalized half is the larger one.

    Args:
        num_features: number of channels C; (C + 1) // 2 are normalized.
        eps: added to the variance, in squared units of the input.
        affine: learn γ and, unless ``bias=False``, β, for the normalized half.
        act: activation to apply to all channels, as in :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        OptionError: ``num_features`` below 1, unknown ``act``.
        ShapeError: another rank or number of channels; a single pixel.
        TypeMismatchError: not a floating-point tensor.

    Source: Chen et al. 2021 (HINet), arXiv 2105.06086, section 3.2.

    >>> import torch
    >>> x = torch.randn(2, 5, 4, 4)
    >>> y = HalfInstanceNorm2d(5)(x)
    >>> bool((y[:, 3:] == x[:, 3:]).all()), bool(y[:, :3].mean((2, 3)).abs().max() < 1e-6)
    (True, True)
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    _checked: ClassVar[dict[str, Check]] = {**ATTRIBUTES, "num_features": at_least(1, CHANNELS)}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.normalized = (self.num_features + 1) // 2
        self.eps = eps
        self.affine = affine
        self.act = act
        affine_parameters(self, self.normalized, self.affine, bias, device, dtype)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize half of ``input``, add ``residual`` if given, apply the activation."""
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual)
        check_rank(self, input, (4,), "(N, C, H, W)", "add the missing axis")
        input, residual = prepare(self, input, residual)
        check_count(self, input, self.num_features)
        check_eps(self, self.eps, False)
        check_more_than_one(self, input, as_ncs(input)[2], "channel and sample (pixel)")
        half = self.normalized
        spec = Spec(Pool("group", half), self.eps, self._act)
        rest = input[:, half:]
        first = None if residual is None else residual[:, :half]
        if residual is not None:
            rest = rest + residual[:, half:]
        if self._act is not None:
            rest = self._act(rest)
        y = self._normalize(
            Call(input[:, :half], spec, self.weight, self.bias, first, BatchStats())
        ).y
        return join([y, rest], input, dim=1)

    def reset_parameters(self) -> None:
        """Reset γ to 1 and β to 0."""
        reset_affine(self)

    def extra_repr(self) -> str:
        shown = f"{self.num_features}, eps={self.eps}, affine={self.affine}"
        return shown if self.act is None else f"{shown}, act={self.act!r}"
