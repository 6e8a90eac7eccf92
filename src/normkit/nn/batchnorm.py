"""Batch normalization: ``torch.nn``'s BatchNorm1d, 2d and 3d."""

from __future__ import annotations

from torch import Tensor, nn

from normkit.kernels import fused
from normkit.nn.batchstatistics import BatchStatistics
from normkit.nn.inputs import check_rank
from normkit.nn.layer import step

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class BatchNorm1d(BatchStatistics, nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L): ``torch.nn.BatchNorm1d`` and more.

    .. math::
        y = \mathrm{act}\left(\gamma\,\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
            + \beta + \mathrm{residual}\right)

    Moments are taken per channel over samples and length. Training normalizes with those of the
    batch (biased variance) and averages them (unbiased variance); evaluation normalizes with
    the running averages.

    Args:
        num_features: number of channels C.
        eps: added to the variance, in squared units of the input.
        momentum: share of the running averages *replaced* by each batch; None implies
            ``average="cumulative"``, as in PyTorch. The share kept is ``1 - momentum``.
        affine: learn γ (``weight``) and, unless ``bias=False``, β (``bias``).
        track_running_stats: keep running averages; without, evaluation uses its batch.
        act: activation to apply: None, ``"relu"``, ``"relu6"``, ``"silu"``, ``"gelu"``,
            ``"leaky_relu"``, ``("leaky_relu", slope)``, or the module of ``torch.nn`` for one of
            these, whose options are read at once: ``nn.LeakyReLU(0.2)``.
        average: kind of running average: ``"exponential"``, ``"cumulative"`` or
            ``"debiased"`` (:mod:`normkit.nn.averages`).

    Note:
        Tools for ``torch.nn``'s layers do not know ``act`` and ``average``. A layer with either
        refuses ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which would drop it, and
        ``torch.jit.script``; one with ``act`` refuses ``torch.nn.utils.fusion`` and
        ``torch.utils.mkldnn.to_mkldnn``. ``normkit.SyncBatchNorm`` keeps both.

    Shape:
        input, residual and output: (N, C) or (N, C, L).

    Raises:
        ShapeError: another rank or number of channels; a single value per channel in training.
        TypeMismatchError: not a floating-point tensor.
        OptionError: unknown ``act`` or ``average``; ``momentum`` outside 0 to 1; ``eps`` below 0,
            in forward.
        Arguments of a wrong type or value raise at construction and when they are assigned.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> import torch
    >>> layer = BatchNorm1d(3, act="relu")
    >>> layer(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])).detach()
    tensor([[0.0000, 0.0000, 1.0000],
            [1.0000, 0.0000, 0.0000]])
    >>> layer.running_mean
    tensor([0.2000, 0.2000, 0.2000])
    """

    _ranks = (2, 3)
    _kernel_signature = fused.signature("batch", _ranks)

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(self, input, self._ranks, "(N, C) or (N, C, L)", "use BatchNorm2d for images")


class BatchNorm2d(BatchStatistics, nn.BatchNorm2d):
    """Batch normalization of images, (N, C, H, W): ``torch.nn.BatchNorm2d`` and more.

    Formula, arguments and errors as :class:`BatchNorm1d`; moments are taken per channel over
    samples, height and width. Channels-last input gives channels-last output.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> import torch
    >>> layer = BatchNorm2d(8, act="relu")
    >>> x = torch.randn(4, 8, 5, 5)
    >>> layer(x, residual=x).shape
    torch.Size([4, 8, 5, 5])
    """

    _ranks = (4,)
    _kernel_signature = fused.signature("batch", _ranks)

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(N, C, H, W)", "add the missing axis, or use BatchNorm1d"
        )


class BatchNorm3d(BatchStatistics, nn.BatchNorm3d):
    """Batch normalization of volumes, (N, C, D, H, W): ``torch.nn.BatchNorm3d`` and more.

    Formula, arguments and errors as :class:`BatchNorm1d`; moments are taken per channel over
    samples, depth, height and width.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167.

    >>> import torch
    >>> BatchNorm3d(2)(torch.randn(2, 2, 3, 4, 4)).shape
    torch.Size([2, 2, 3, 4, 4])
    """

    _ranks = (5,)
    _kernel_signature = fused.signature("batch", _ranks)

    @step
    def _check_input_dim(self, input: Tensor) -> None:
        check_rank(
            self, input, self._ranks, "(N, C, D, H, W)", "add the missing axis, or use BatchNorm2d"
        )
