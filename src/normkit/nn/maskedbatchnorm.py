"""Batch normalization of padded sequences and images, by the positions that count."""

from __future__ import annotations

from torch import Tensor, fx, nn

from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL
from normkit.errors import ShapeError, message
from normkit.kernels.call import Normalized
from normkit.kernels.modes import differentiates, exporting
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d
from normkit.nn.batchstatistics import BatchStatistics
from normkit.nn.inputs import check_channels, check_eps, prepare
from normkit.nn.layer import warn_if_recorded
from normkit.nn.masks import checked_mask, normalize, readable, without
from normkit.nn.symbolic import as_leaf

__all__ = ["MaskedBatch", "MaskedBatchNorm1d", "MaskedBatchNorm2d"]


class MaskedBatch(BatchStatistics):
    """Shared behaviour of batch normalization with a mask; subclasses fix the input rank."""

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
        mask = checked_mask(self, mask, input)
        tensors = self._layer_tensors()
        weight, bias, mean, var, _ = tensors
        fixed = not self.training and mean is not None and var is not None
        # Each value by itself there; but a gradient of 0 times what the padding holds may be NaN.
        if not fixed or differentiates(input, residual, weight, bias):
            input = without(input, mask)
            residual = None if residual is None else without(residual, mask)
        if fixed:
            return without(super().forward(input, residual), mask)
        check_channels(self, input, weight, mean)
        check_eps(self, self.eps, True)
        if readable(input, mask):
            self._check_mask(mask, input)
        updates = self.training and self.track_running_stats and self.updates_stats()
        if updates and exporting():
            warn_if_recorded(self, input.shape[0])
        spec = Spec(PER_CHANNEL, self.eps, self._act)
        y, count, batch_mean, batch_var = normalize(input, mask, spec, weight, bias, residual)
        if updates:
            # Where nobody can look at the mask, a batch of no more than one value updates nothing.
            values = (count * (count > 1)).reshape(())
            self._update_running_stats(Normalized(y, batch_mean, batch_var, values), tensors)
        return y

    def _check_mask(self, mask: Tensor, x: Tensor) -> None:
        count = int(mask.sum())
        if count < 2 and x.numel() > 0:
            raise ShapeError(
                message(
                    f"more than 1 value per channel when training {type(self).__name__}",
                    f"a mask that is True at {count} of {mask.numel()} positions",
                    "check that the mask is True at the positions that count, or use a larger "
                    "batch",
                )
            )


class MaskedBatchNorm1d(MaskedBatch, BatchNorm1d, nn.BatchNorm1d):
    r"""Batch normalization of padded sequences, (N, C, L), with ``mask=``.

    Moments are taken per channel over the positions where the mask is True, as if the sequences
    stood one after another without their padding; the running averages take them by their number.
    The output is 0 elsewhere, in evaluation too, and no gradient flows from or to there, whatever
    the padding holds. Without a mask the layer is :class:`normkit.BatchNorm1d`, with the same
    arguments and ``state_dict``.

    The mask is a boolean tensor, passed by keyword and True at positions that count: the opposite
    of a ``key_padding_mask`` of ``torch.nn.MultiheadAttention``.

    Args:
        as :class:`normkit.BatchNorm1d`.

    Shape:
        input, residual and output: (N, C, L) or (N, C).
        mask: (N, L) or (N, 1, L); (N) or (N, 1) for inputs without length.

    Raises:
        TypeMismatchError: the mask is not a boolean tensor.
        ShapeError: a mask of another shape; in training one that is True at fewer than two
            positions. On other devices than a CPU and in compiled graphs, where nobody looks at its
            values, such a batch leaves the running averages as they are.
        Others as BatchNorm1d.

    Note:
        :func:`normkit.recalibrate` and :func:`normkit.consistency` measure at the positions that
        count, by the masks with which the model calls the layer.

    >>> import torch
    >>> x = torch.tensor([[[1.0, 3.0, 99.0]], [[5.0, -7.0, 99.0]]])
    >>> mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> layer = MaskedBatchNorm1d(1, momentum=1.0)
    >>> layer(x, mask=mask).detach()
    tensor([[[-1.2247,  0.0000,  0.0000]],
    <BLANKLINE>
            [[ 1.2247,  0.0000,  0.0000]]])
    >>> layer.running_mean, layer.running_var
    (tensor([3.]), tensor([4.]))
    """


class MaskedBatchNorm2d(MaskedBatch, BatchNorm2d, nn.BatchNorm2d):
    """:class:`MaskedBatchNorm1d` for images padded to one size, (N, C, H, W).

    mask: (N, H, W) or (N, 1, H, W).

    >>> import torch
    >>> x, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 8, 8) > 0.5
    >>> MaskedBatchNorm2d(3)(x, mask=mask).shape
    torch.Size([4, 3, 8, 8])
    """
