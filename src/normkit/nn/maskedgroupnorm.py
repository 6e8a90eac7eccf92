"""Group normalization of padded sequences and images, by the positions that count."""

from __future__ import annotations

from torch import Tensor, fx

from normkit.core.formula import Spec
from normkit.core.pools import Pool
from normkit.kernels.modes import autocast_wide
from normkit.nn.groupnorm import GroupNorm
from normkit.nn.inputs import check_batch_axis, check_count, check_eps, prepare
from normkit.nn.masks import checked_mask, normalize, without
from normkit.nn.symbolic import as_leaf

__all__ = ["MaskedGroupNorm"]


class MaskedGroupNorm(GroupNorm):
    r"""Group normalization of padded sequences and images, (N, C, \*), with ``mask=``.

    Moments are taken over each group of channels and the positions of its sample where the mask is
    True, as of the sample alone without its padding. The output is 0 elsewhere, and in a sample
    without any such position. The mask is that of :class:`normkit.MaskedBatchNorm1d`; without one
    the layer is :class:`normkit.GroupNorm`, with the same arguments and ``state_dict``.

    Args:
        as :class:`normkit.GroupNorm`.

    Shape:
        input, residual and output: (N, C, \*).
        mask: (N, \*) or (N, 1, \*).

    Raises:
        TypeMismatchError: the mask is not a boolean tensor.
        ShapeError: a mask of another shape.
        Others as GroupNorm.

    >>> import torch
    >>> x, mask = torch.randn(4, 6, 9), torch.arange(9) < torch.tensor([[9], [5], [2], [7]])
    >>> y = MaskedGroupNorm(2, 6)(x, mask=mask)
    >>> y.shape, bool(y[2, :, 2:].any())
    (torch.Size([4, 6, 9]), False)
    """

    _beyond = ("mask",)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize ``input`` by the positions where ``mask`` is True, with 0 at the others."""
        if mask is None:
            return super().forward(input, residual)
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual, mask=mask)
        check_batch_axis(self, input)
        input, residual = prepare(self, input, residual)
        check_count(self, input, self.num_channels)
        check_eps(self, self.eps, False)
        mask = checked_mask(self, mask, input)
        input, residual = autocast_wide(input, residual)
        input = without(input, mask)
        residual = None if residual is None else without(residual, mask)
        spec = Spec(Pool("group", self.num_groups), self.eps, self._act)
        y, *_ = normalize(input, mask, spec, self.weight, self.bias, residual)
        return y
