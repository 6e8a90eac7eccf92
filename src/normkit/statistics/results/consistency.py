"""Result of :func:`normkit.consistency`: the gaps between two modes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from normkit.handle import Skipped, place_name
from normkit.statistics.estimates.gaps import MIN_GAP, Gap
from normkit.statistics.outputs.compare import OutputComparison
from normkit.statistics.printing.tables import (
    format_deviations,
    format_errors,
    format_factor,
    format_percent,
    format_table,
    layer_label,
)
from normkit.statistics.results.shared_layers import SharedLayer

__all__ = ["Consistency"]


class Consistency:
    """Result of :func:`normkit.consistency`; ``print`` it.

    Attributes:
        layers: by layer, in the order of their calls, the :class:`Gap` between its running
            statistics and its input in training: mismatch in this layer itself, given batch
            statistics upstream.
        calls: for layers that one pass calls several times, the gap to each call's input, by the
            number of the call, from 1; the 16th stands for all later ones.
        shared: those of them whose inputs differ so much that no running statistics fit all calls.
        inherited: the gap to a layer's input in evaluation, given running statistics upstream.
        output: the :class:`OutputComparison`.
        first_mismatch: the first layer whose own gap matters, or that of one of its calls; None
            where all agree.
        skipped: layers that were not measured, such as frozen ones, and why.
        notes: what else restricts the comparison.
        samples: how many were compared.
        batch_size: of the batch that the median sample is in; training's side has the statistics
            of such batches.
        batch_sizes: smallest and largest.
    """

    def __init__(
        self,
        layers: Mapping[str, Gap],
        inherited: Mapping[str, Gap],
        calls: Mapping[str, Mapping[int, Gap]],
        shared: Sequence[SharedLayer],
        output: OutputComparison,
        classes: Mapping[str, type],
        skipped: Sequence[Skipped],
        sizes: Mapping[int, int],
        notes: Sequence[str] = (),
    ) -> None:
        self.layers = dict(layers)
        self.inherited = dict(inherited)
        self.calls = {name: dict(gaps) for name, gaps in calls.items()}
        self.shared = tuple(shared)
        self.output = output
        self.skipped = tuple(skipped)
        self.notes = tuple(notes)
        self.samples = sum(size * number for size, number in sizes.items())
        self.batch_size = _median_size(sizes)
        self.batch_sizes = min(sizes), max(sizes)
        self.first_mismatch = next(
            (
                name
                for name, gap in layers.items()
                if gap.matters or any(one.matters for one in self.calls.get(name, {}).values())
            ),
            None,
        )
        self._classes = dict(classes)

    @property
    def parts_at(self) -> str | None:
        """Former name of ``first_mismatch``."""
        return self.first_mismatch

    @property
    def left(self) -> tuple[Skipped, ...]:
        """Former name of ``skipped``."""
        return self.skipped

    def __repr__(self) -> str:
        rows = []
        for name, gap in self.layers.items():
            later = self.inherited.get(name)
            rows.append(
                (
                    layer_label(name, self._classes[name]),
                    format_deviations(gap.mean),
                    format_factor(gap.variance),
                    f"{format_errors(gap.mean_errors)}, {format_errors(gap.variance_errors)}",
                    f"{format_deviations(later.mean)}, {format_factor(later.variance)}"
                    if later
                    else "not called",
                )
            )
        columns = (
            "layer",
            "mean off by",
            "variance off by",
            "in standard errors",
            "off with running statistics upstream",
        )
        calls = [f"  {one}" for one in self.shared]
        legend = (
            "  off by: distance from the layer's input with batch statistics upstream, in its "
            "deviations σ and as a factor; about 1 standard error is chance"
        )
        return "\n".join(
            [*self._head(), *calls, *format_table(columns, rows, self.skipped), legend]
        )

    def _head(self) -> list[str]:
        out = self.output
        parts = []
        if not math.isnan(out.difference):
            parts.append(
                f"the two differ by {format_percent(out.difference)} of the standard deviation "
                "over samples"
            )
        if out.agreement is not None:
            parts.append(f"{100 * out.agreement:.1f} % of predictions agree")
        if out.loss is not None and out.loss_difference is not None:
            a, b = out.loss
            step, error = out.loss_difference
            change = f"{step:+.4f}".replace("-", "−") + (
                f" ± {error:.4f}" if not math.isnan(error) else ""
            )
            parts.append(
                f"loss {a:.4f} (batch statistics) → {b:.4f} (running statistics), {change}"
            )
        return [
            "consistency: batch statistics, as in training, against running statistics, as in "
            f"evaluation; {self._samples()} in batches of {self._sizes()}",
            *([f"  output: {'; '.join(parts)}"] if parts else []),
            *(f"  {note}" for note in (*out.notes, *self.notes)),
            f"  layers: {self._verdict()}",
        ]

    def _verdict(self) -> str:
        unknown = all(math.isnan(gap.mean_errors) for gap in self.layers.values())
        samples = self._samples()
        if self.first_mismatch is None and unknown:
            return f"{samples}: too few to tell a mismatch from chance; pass more batches"
        large = [name for name, gap in self.layers.items() if gap.is_large]
        if self.first_mismatch is None and large:
            return (
                f"no gap is more than chance with {samples}, the largest at "
                f"{place_name(max(large, key=lambda name: self.layers[name].mean))}; pass more "
                "batches to be certain"
            )
        if self.first_mismatch is None:
            matches = "running statistics match the training data in every layer measured"
            if self.output.difference > MIN_GAP and not self.skipped:
                matches += f"; outputs differ by the noise of batches of {self.batch_size:,}"
            return matches
        first = f"first mismatch at {place_name(self.first_mismatch)}"
        if self.first_mismatch in {one.name for one in self.shared}:
            return f"{first}, which is called several times in a pass"
        return (
            f"{first}; normkit.recalibrate(model, batches) replaces running statistics by those "
            "of the data"
        )

    def _samples(self) -> str:
        return f"{self.samples:,} sample{'s' if self.samples > 1 else ''}"

    def _sizes(self) -> str:
        smallest, largest = self.batch_sizes
        if smallest == largest:
            return f"{self.batch_size:,}"
        return f"{self.batch_size:,} ({smallest:,} to {largest:,})"


def _median_size(sizes: Mapping[int, int]) -> int:
    """Return the size of the batch that the median sample is in."""
    half, below = sum(size * number for size, number in sizes.items()) / 2, 0
    for size in sorted(sizes):
        below += size * sizes[size]
        if below >= half:
            return size
    return max(sizes)
