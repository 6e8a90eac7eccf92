"""Instance normalization of padded sequences and images, by the positions that count."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from normkit.core.formula import Spec
from normkit.core.pools import Pool, concrete
from normkit.errors import ShapeError, message
from normkit.nn import averages
from normkit.nn.inputs import check_channels, check_eps, prepare
from normkit.nn.instancenorm import InstanceNorm1d, InstanceNorm2d
from normkit.nn.instancestatistics import InstanceStatistics
from normkit.nn.masks import checked_mask, normalize, readable, without
from normkit.nn.symbolic import as_leaf

__all__ = ["MaskedInstance", "MaskedInstanceNorm1d", "MaskedInstanceNorm2d"]


class MaskedInstance(InstanceStatistics):
    """Shared behaviour of instance normalization with a mask; subclasses fix the input rank."""

    _beyond = ("mask",)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize ``input`` by the positions where ``mask`` is True, with 0 at the others."""
        if mask is None:
            return super().forward(input, residual)
        if isinstance(input, fx.Proxy):
            return as_leaf(self, input, residual, mask=mask)
        self._check_input_dim(input)
        input, residual = prepare(self, input, residual)
        if input.dim() == self._ranks[0]:
            rest = None if residual is None else residual.unsqueeze(0)
            mask = mask.unsqueeze(0) if isinstance(mask, Tensor) else mask
            return self.forward(input.unsqueeze(0), rest, mask=mask).squeeze(0)
        mask = checked_mask(self, mask, input)
        check_channels(self, input, self.weight, self.running_mean)
        check_eps(self, self.eps, False)
        input = without(input, mask)
        residual = None if residual is None else without(residual, mask)
        if not self.training and self.track_running_stats:
            return without(super().forward(input, residual), mask)
        if readable(input, mask):
            self._check_mask(mask)
        c = max(concrete(input.shape[1]), 1)
        updates = self.running_mean is not None and input.numel() > 0 and self.updates_stats()
        spec = Spec(Pool("group", c), self.eps, self._act)
        y, count, mean, var = normalize(input, mask, spec, self.weight, self.bias, residual)
        if updates:
            self._average_samples(count.flatten(1), mean.flatten(1), var.flatten(1))
        return y

    @torch.no_grad()
    def _average_samples(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Average the moments of the samples that have some, one column for each channel."""
        counts = (count > 1).to(mean.dtype)
        samples = counts.sum()
        weights = counts / samples.clamp_min(1)
        share = (self.momentum or 0.0) * (samples > 0).to(mean.dtype)
        unbiased = averages.unbiased(var, count.clamp_min(2))
        biased = (var * weights).sum(0)
        self._average_moments((mean * weights).sum(0), (unbiased * weights).sum(0), biased, share)

    def _check_mask(self, mask: Tensor) -> None:
        single = (mask.flatten(1).sum(1) == 1).nonzero().flatten().tolist()
        if single:
            raise ShapeError(
                message(
                    "more than 1 value per channel and sample (spatial element) when training "
                    f"{type(self).__name__}",
                    f"a mask that is True at one position of sample {single[0]}",
                    "leave samples of a single position out, or use MaskedGroupNorm",
                )
            )


class MaskedInstanceNorm1d(MaskedInstance, InstanceNorm1d, nn.InstanceNorm1d):
    r"""Instance normalization of padded sequences, (N, C, L), with ``mask=``.

    Moments are taken per sample and channel over the positions where the mask is True, as of the
    sequence alone without its padding. The output is 0 elsewhere, and in a sample without any such
    position, which has no part in running averages. The mask is that of
    :class:`normkit.MaskedBatchNorm1d`; without one the layer is :class:`normkit.InstanceNorm1d`,
    with the same arguments and ``state_dict``.

    Args:
        as :class:`normkit.InstanceNorm1d`.

    Shape:
        input, residual and output: (N, C, L) or (C, L).
        mask: (N, L) or (N, 1, L); (L) or (1, L) without a batch axis.

    Raises:
        TypeMismatchError: the mask is not a boolean tensor.
        ShapeError: a mask of another shape; a sample with a single position that counts. On other
            devices than a CPU and in compiled graphs, where nobody looks at the mask's values, such
            a sample has no part in running averages.
        Others as InstanceNorm1d.

    Note:
        With ``track_running_stats`` :func:`normkit.recalibrate` and others that measure leave the
        layer as it is and name it.

    >>> import torch
    >>> x, mask = torch.tensor([[[1.0, 3.0, 99.0]]]), torch.tensor([[True, True, False]])
    >>> MaskedInstanceNorm1d(1)(x, mask=mask)
    tensor([[[-1.0000,  1.0000,  0.0000]]])
    """


class MaskedInstanceNorm2d(MaskedInstance, InstanceNorm2d, nn.InstanceNorm2d):
    """:class:`MaskedInstanceNorm1d` for images padded to one size, (N, C, H, W).

    mask: (N, H, W) or (N, 1, H, W).

    >>> import torch
    >>> x, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 8, 8) > 0.5
    >>> MaskedInstanceNorm2d(3)(x, mask=mask).shape
    torch.Size([4, 3, 8, 8])
    """
