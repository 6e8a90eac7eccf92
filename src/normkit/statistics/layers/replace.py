"""Replace running statistics in the layers that keep them, and restore the former ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from normkit.nn.batchrenorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.find import COUNTER, NormLayer
from normkit.statistics.layers.preserve import overwrite

__all__ = ["Replacement"]


class Replacement:
    """Running statistics written into layers, and the former ones.

    Args:
        layers: those to write into: all of them, or none if one raises. Their counts of batches
            become those that averages continue from.
        statistics: by bank; banks without any stay as they are.
    """

    def __init__(
        self, layers: Sequence[NormLayer], statistics: Mapping[str, LayerStatistics]
    ) -> None:
        self._before: list[tuple[nn.Module, str, Tensor]] = []
        try:
            for one in layers:
                self._write(one, statistics)
        except BaseException:
            self.undo()
            raise

    def _write(self, one: NormLayer, statistics: Mapping[str, LayerStatistics]) -> None:
        rows = [(name, row) for name, row in one.banks if name in statistics]
        if not rows:
            return
        keys = (one.spec.mean, one.spec.var, COUNTER)[: 2 if one.counter is None else 3]
        tensors = [getattr(one.layer, key) for key in keys]
        for key, tensor in zip(keys, tensors, strict=True):
            self._before.append((one.layer, key, tensor.detach().clone()))
        for name, row in rows:
            new = statistics[name]
            for tensor, value in zip(tensors, (new.mean, new.variance), strict=False):
                overwrite(tensor if row is None else tensor[row], value)
        for counter in tensors[2:]:
            counts = [_count_after(one, statistics[name]) for name, _ in rows]
            # One for each set of statistics, or one for all.
            if one.banks[0][1] is None or counter.shape[:1] != (len(one.banks),):
                rows, counts = [(one.name, None)], [sum(counts)]
            for (_, row), count in zip(rows, counts, strict=True):
                counted = torch.tensor(count, device="cpu")
                overwrite(counter if row is None else counter[row], counted)

    def undo(self) -> None:
        """Restore the former statistics bit for bit. A second call does nothing."""
        before, self._before = self._before, []
        # By name, as the model may have been moved to another device since; and backwards, as
        # layers may share a tensor.
        for layer, key, value in reversed(before):
            overwrite(getattr(layer, key), value)


def _count_after(one: NormLayer, new: LayerStatistics) -> int:
    """Return the count of batches that the layer's averages continue from."""
    # By its count renormalization relaxes its limits too, which must not become strict again.
    renorm = isinstance(one.layer, (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d))
    return max(new.batches, int(one.counter) if renorm and one.counter is not None else 0)
