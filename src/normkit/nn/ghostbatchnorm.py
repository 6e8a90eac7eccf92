"""Batch normalization by parts of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.activations import ActLike
from normkit.core.formula import Spec
from normkit.core.moments import merge_rows
from normkit.core.pools import Pool, as_ncs
from normkit.errors import OptionError, explain
from normkit.kernels.autograd import Normalized, normalize
from normkit.kernels.native import Running
from normkit.nn import averages
from normkit.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchStatistics, Own
from normkit.nn.layer import check_more_than_one, join

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d"]


class _Ghost(BatchStatistics):
    _whole = False

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
        if not isinstance(ghost_size, int) or ghost_size < 1:
            raise OptionError(
                explain(
                    "ghost_size is the number of samples that share moments, an integer of at "
                    "least 1",
                    f"ghost_size={ghost_size!r}",
                    "use for example 32",
                )
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, act=act, average=average,
        )  # fmt: skip
        self.ghost_size = ghost_size

    def part_sizes(self, n: int) -> list[int]:
        """Samples in each part of a batch of ``n``: none above ``ghost_size``, none two apart.

        >>> GhostBatchNorm2d(3, ghost_size=32).part_sizes(100)
        [25, 25, 25, 25]
        >>> GhostBatchNorm2d(3, ghost_size=32).part_sizes(33)
        [17, 16]
        """
        parts = max(-(-n // self.ghost_size), 1)
        # Not divmod, which torch.compile cannot do with sizes that vary.
        size, larger = n // parts, n % parts
        return [size + 1] * larger + [size] * (parts - larger)

    def _by_batch(
        self, input: Tensor, residual: Tensor | None, own: Own, running: Running | None
    ) -> Normalized:
        n, c, s = as_ncs(input)
        sizes = self.part_sizes(n)
        check_more_than_one(self, input, sizes[-1] * s, "channel and ghost batch")
        outputs, counts, means, m2s, start = [], [], [], [], 0
        for size in sorted(set(sizes), reverse=True):  # at most two sizes
            parts = sizes.count(size)
            stop = start + parts * size
            whole = stop - start == n
            result = normalize(
                input if whole else input[start:stop],
                Spec(Pool("ghost", parts), self.eps, self._act),
                own.weight,
                own.bias,
                residual if residual is None or whole else residual[start:stop],
            )
            start = stop
            outputs.append(result.y)
            assert result.mean is not None and result.var is not None
            means.append(result.mean.reshape(parts, c))
            m2s.append(result.var.reshape(parts, c) * (size * s))
            counts.append(torch.full_like(means[-1], size * s))
        y = join(outputs, input)
        with torch.no_grad():
            batch = merge_rows(torch.cat(counts), torch.cat(means), torch.cat(m2s))
            variance = (batch.m2 / max(n * s, 1)).to(batch.m2.dtype)
        return Normalized(y, batch.mean, variance, n * s)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_Ghost, BatchNorm1d, nn.BatchNorm1d):
    """:class:`GhostBatchNorm2d` for (N, C) and (N, C, L).

    >>> GhostBatchNorm1d(3, ghost_size=4)(torch.randn(10, 3)).shape
    torch.Size([10, 3])
    """


class GhostBatchNorm2d(_Ghost, BatchNorm2d, nn.BatchNorm2d):
    """Batch normalization of each part of ``ghost_size`` samples by its own moments.

    Sets the normalization batch size apart from the batch size of the optimizer. A batch that is
    no multiple is split as evenly as it goes, so that no small rest is normalized by few values.
    Evaluation takes batches of any size: it uses the remembered moments, which are those of the
    whole batch, the parts merged exactly (mean of means, and the variance between them included).

    Args:
        num_features: number of channels C.
        ghost_size: most samples that share moments.
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
