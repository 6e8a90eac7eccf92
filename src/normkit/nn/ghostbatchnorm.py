"""Batch normalization by parts of the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import merge_rows
from normkit.core.pools import Pool, as_ncs, concrete
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call, Normalized, changed
from normkit.nn import averages
from normkit.nn.arguments import Check, at_least
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.nn.batchstatistics import BatchStatistics, LayerTensors
from normkit.nn.inputs import check_more_than_one
from normkit.nn.layer import join, step, warn_if_recorded

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _Ghost(BatchStatistics):
    _pools_whole_batch = False
    _beyond = ("ghost size",)
    _checked: ClassVar[dict[str, Check]] = {
        **BatchStatistics._checked,
        "ghost_size": at_least(1, "use for example 32", meaning="samples that share moments, "),
    }

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        act: ActLike = None,
        average: averages.Average = "exponential",
    ) -> None:
        self.ghost_size = ghost_size
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip

    def part_sizes(self, n: int) -> list[int]:
        """Split a batch of ``n``: no part above ``ghost_size``, sizes equal or one apart.

        >>> GhostBatchNorm2d(3, ghost_size=32).part_sizes(100)
        [25, 25, 25, 25]
        >>> GhostBatchNorm2d(3, ghost_size=32).part_sizes(33)
        [17, 16]
        """
        parts = max(-(-n // self.ghost_size), 1)
        # Not divmod, which torch.compile cannot do with sizes that vary.
        size, larger = n // parts, n % parts
        return [size + 1] * larger + [size] * (parts - larger)

    def _equal_parts(self, input: Any) -> int:
        plain = type(input) is Tensor and not input.is_nested and input.dim() > 1
        if not plain or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return 0
        sizes = self.part_sizes(n := input.shape[0])
        return len(sizes) if sizes == [sizes[0]] * len(sizes) and sum(sizes) == n else 0

    @step
    def _forward_batch_stats(self, call: Call, tensors: LayerTensors) -> Normalized:
        n, c, s = as_ncs(call.x)
        warn_if_recorded(self, n)
        n = concrete(n)
        sizes = self.part_sizes(n)
        check_more_than_one(self, call.x, sizes[-1] * s, "channel and ghost batch")
        outputs, counts, means, m2s, start = [], [], [], [], 0
        for size in sorted(set(sizes), reverse=True):  # at most two sizes
            parts = len([other for other in sizes if other == size])
            spec = Spec(Pool("ghost", parts), call.spec.eps, call.spec.act)
            of_size = changed(call, spec=spec, stats=BatchStats())
            if (stop := start + parts * size) - start < n:
                residual = None if call.residual is None else call.residual[start:stop]
                of_size = changed(of_size, x=call.x[start:stop], residual=residual)
            result = self._normalize(of_size)
            start = stop
            outputs.append(result.y)
            if result.mean is not None and result.var is not None:
                means.append(result.mean.reshape(parts, c))
                m2s.append(result.var.reshape(parts, c) * (size * s))
                counts.append(torch.full_like(means[-1], size * s))
        y = join(outputs, call.x)
        if not call.wants_moments:
            return Normalized(y, None, None, n * s)
        with torch.no_grad():
            centres = torch.cat(means)
            # The variance between parts may exceed float32 where none within a part does.
            centres = centres.double() if centres.is_cpu else centres
            batch = merge_rows(torch.cat(counts), centres, torch.cat(m2s))
            variance = (batch.m2 / (n * s if concrete(n * s) else 1)).to(batch.m2.dtype)
        return Normalized(y, batch.mean, variance, n * s)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_Ghost, BatchNorm1d, nn.BatchNorm1d):
    """:class:`GhostBatchNorm2d` for (N, C) and (N, C, L).

    >>> GhostBatchNorm1d(3, ghost_size=4)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """

    _kernel_signature = fused.signature("ghost", BatchNorm1d._ranks)


class GhostBatchNorm2d(_Ghost, BatchNorm2d, nn.BatchNorm2d):
    """Batch normalization of each part of ``ghost_size`` samples by its own moments.

    Separates the normalization batch size from the batch size of the optimizer. A batch that is
    not a multiple is split as evenly as possible, so that no small remainder is normalized by few
    values. Evaluation takes batches of any size: its running statistics are those of the whole
    batch, the parts merged exactly (mean of means, and the variance between them included).

    Args:
        num_features: number of channels C.
        ghost_size: largest number of samples that share moments.
        The others as :class:`normkit.BatchNorm2d`.

    Shape:
        input, residual and output: (N, C, H, W).

    Raises:
        OptionError: ``ghost_size`` is not a positive integer.
        ShapeError: as BatchNorm2d; a part with a single value per channel in training.

    Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741.

    >>> GhostBatchNorm2d(8, ghost_size=4)(torch.randn(10, 8, 5, 5)).shape
    torch.Size([10, 8, 5, 5])
    """

    _kernel_signature = fused.signature("ghost", BatchNorm2d._ranks)


class GhostBatchNorm3d(_Ghost, BatchNorm3d, nn.BatchNorm3d):
    """:class:`GhostBatchNorm2d` for (N, C, D, H, W).

    >>> GhostBatchNorm3d(3, ghost_size=2)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """

    _kernel_signature = fused.signature("ghost", BatchNorm3d._ranks)
