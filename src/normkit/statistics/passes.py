"""Passes over batches, in step with other ranks, until a stop is due."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from normkit.errors import NonFiniteError, StatisticsError, message
from normkit.statistics.batches import Forward
from normkit.statistics.distributed import Ranks, fingerprint
from normkit.statistics.estimate import (
    Estimate,
    LayerStatistics,
    merge_statistics,
    relative_error,
)
from normkit.statistics.loaders import detached_loader
from normkit.statistics.lockstep import check_complete, in_step
from normkit.statistics.observe import Observer
from normkit.statistics.preserve import is_sharded, preserve_rng
from normkit.statistics.stats_layers import NormLayer, layers_by_bank

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "Passes", "bar", "check_statistics"]

MIN_BATCHES = 8
"""Batches before the standard errors are first compared with a tolerance."""

GROWTH = 1.2
"""They are compared again after this many times as many batches."""

MAX_ROUNDS = 32
"""Batches between two meetings of the ranks, so that none waits long for another."""


class Passes:
    """Passes over the batches, in step with other ranks.

    The ranks meet to add up a few numbers (:meth:`Ranks.status`): when a stop may be due, and
    after ``MAX_ROUNDS`` batches at the latest. As long as no batch is larger than those before,
    they stop exactly where meeting at every batch would stop them.

    Attributes:
        samples, batches: of all ranks together, in the first pass.
        count: passes made.
        units: by layer, the number of units behind the standard errors.
    """

    def __init__(
        self,
        observer: Observer,
        batches: Iterable[Any],
        forward: Forward | None,
        ranks: Ranks,
        progress: Bar,
    ) -> None:
        self._observer = observer
        self._batches = batches
        self._forward = forward
        self._ranks = ranks
        self._progress = progress
        self._layers = layers_by_bank(observer.layers)
        self._fingerprint = fingerprint(observer.layers)
        self._max_rounds = MAX_ROUNDS if ranks.size > 1 else 1
        self._in_step = ranks.size > 1 and is_sharded(observer.model)
        self._own_batches = 0  # of this rank, in the first pass
        self.samples = self.batches = self.count = 0
        self.units: dict[str, int] = {}

    def first_pass(
        self, samples: int | None, tolerance: float | None
    ) -> dict[str, LayerStatistics]:
        """Make the first pass and return the statistics of all ranks, by layer.

        Args:
            samples: stop when all ranks together have reached so many.
            tolerance: stop when the worst layer's relative standard error is below it.
        """
        self._progress.begin(samples)
        share, compare_at, rounds = self._share(math.inf), MIN_BATCHES, 1
        self._observer.start({})
        with preserve_rng():
            while True:
                total, batches, active, per_round = self._advance(share, rounds)
                self._own_batches, self.samples, self.batches = share.batches, total, batches
                if not active or (samples is not None and total >= samples):
                    break
                if tolerance is not None and batches >= compare_at:
                    compare_at = math.ceil(GROWTH * batches)
                    if self._worst_error(merged := self._merge()) < tolerance:
                        self.count = 1
                        return merged
                rounds = self._max_rounds
                if samples is not None:
                    due = math.ceil((samples - total) / per_round) if per_round else 1
                    rounds = min(rounds, due)
                if tolerance is not None:
                    rounds = min(rounds, math.ceil((compare_at - batches) / active))
        self.count = 1
        return self._merge()

    def repeat_pass(self, fixed: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
        """Go over as many batches as the first pass, and return the statistics, by layer.

        Args:
            fixed: statistics that the layers normalize with, by name.
        """
        self._progress.begin(self.samples)
        share, active = self._share(self._own_batches), 1
        self._observer.start(fixed)
        # The same order in every pass, whichever generator the loader draws it from.
        with preserve_rng():
            while active:
                _, _, active, _ = self._advance(share, self._max_rounds)
        self.count += 1
        return self._merge()

    def _advance(self, share: _Share, rounds: int) -> list[int]:
        """Run some batches, meet the other ranks, and return the counts of all.

        Raises:
            StatisticsError: another rank has failed, or has other layers.
        """
        try:
            share.advance(rounds, self._run)
        except BaseException as error:
            # Others in step know of it where it came before the forward; from within one of their
            # own they could not hear of it.
            if not self._in_step:
                self._ranks.status(share.counts(), self._fingerprint, error)
            raise
        counts = self._ranks.status(share.counts(), self._fingerprint)
        self._progress.at(counts[0])
        return counts

    def _share(self, limit: float) -> _Share:
        """Return this rank's batches for one pass, up to ``limit`` of them."""

        def start() -> Iterator[Any]:
            return iter(detached_loader(self._batches))

        if not self._in_step:
            return _Share(lambda: ((batch, True) for batch in start()), limit)
        # Whoever has had all of its own goes on as long as the others.
        model, forward = self._observer.model, self._forward
        return _Share(lambda: in_step(start, self._ranks, model, forward, limit), math.inf)

    def _run(self, batch: Any, counts: bool) -> int:
        if counts:
            return self._observer.run(batch, self._forward)
        return self._observer.run_along(batch, self._forward)

    def _merge(self) -> dict[str, LayerStatistics]:
        """Merge what all ranks have observed in this pass."""
        estimates = self._observer.estimates
        # Alone, only layers that were called; together, all ranks name the same.
        units = {
            name: (estimates.get(name) or Estimate(one.tensors[0].shape[-1])).units()
            for name, one in self._layers.items()
            if name in estimates or self._ranks.size > 1
        }
        if not units:
            return {}
        per_sample = {name: one.per_sample for name, one in self._layers.items()}
        merged, self.units = merge_statistics(units, per_sample, self._ranks.sum)
        return merged

    def _worst_error(self, merged: Mapping[str, LayerStatistics]) -> float:
        errors = [relative_error(one, self._layers[name].eps) for name, one in merged.items()]
        # NaN (a layer seen in one batch only) is below no tolerance.
        return max((math.inf if math.isnan(e) else e for e in errors), default=math.inf)


class _Share:
    """One rank's batches in one pass, and how many of them are done."""

    def __init__(self, start: Callable[[], Iterator[tuple[Any, bool]]], limit: float) -> None:
        """``start`` returns the batches, and with each whether it counts."""
        self._start = start
        self._stream: Iterator[tuple[Any, bool]] | None = None
        self._remaining = self._limit = limit
        self.samples = self.batches = self._largest = 0

    def advance(self, rounds: int, run: Callable[[Any, bool], int]) -> None:
        """Call ``run``, which returns the number of samples, on up to ``rounds`` batches."""
        if self._stream is None:
            self._stream = self._start()
        wanted, done = min(rounds, self._remaining), 0
        for batch, counts in islice(self._stream, int(wanted)):
            count = run(batch, counts)
            done += 1
            if counts:
                self.samples, self.batches = self.samples + count, self.batches + 1
                self._largest = max(self._largest, count)
        if done < wanted:
            check_complete(self.batches, self._limit)
        self._remaining = self._remaining - done if done == wanted else 0

    def counts(self) -> list[int]:
        """Samples, batches, whether there are more, and the most samples one more may add."""
        more = self._remaining > 0
        return [self.samples, self.batches, int(more), self._largest if more else 0]


def check_statistics(
    statistics: Mapping[str, LayerStatistics], layers: Sequence[NormLayer]
) -> None:
    """Raise if statistics are not finite or not defined.

    Raises:
        StatisticsError: a variance of a single value.
        NonFiniteError: not finite, or too large for the layer's own tensors.
    """
    by_bank = layers_by_bank(layers)
    for name, one in statistics.items():
        where = name or "the model"
        if one.count < 2 and not by_bank[name].per_sample:
            raise StatisticsError(
                message(
                    "at least two values per channel for a variance",
                    f"one, at {where}",
                    "pass more samples",
                )
            )
        if not bool((one.mean.isfinite() & one.variance.isfinite()).all()):
            raise NonFiniteError(
                message(
                    "finite values",
                    f"NaN or infinity in the input of {where}",
                    "look for them in the batches and in the weights before that layer",
                )
            )
        for value, tensor in zip((one.mean, one.variance), by_bank[name].tensors, strict=True):
            if not bool(value.to(tensor.dtype).isfinite().all()):
                raise NonFiniteError(
                    message(
                        "moments within the range of the type a layer keeps them in",
                        f"{float(value.abs().max()):.3g} for {tensor.dtype}, at {where}",
                        "keep the normalization layers in float32: layer.float()",
                    )
                )


class Bar:
    """Counts samples; shows nothing where there is nothing to show it on."""

    def __init__(self, shown: Progress | None) -> None:
        self._shown = shown
        self._task = shown.add_task("recalibrate") if shown else None
        self._passes = 0

    def begin(self, total: int | None) -> None:
        """Start another pass, over ``total`` samples if that is known."""
        self._passes += 1
        if self._shown is not None and self._task is not None:
            title = "recalibrate" if self._passes == 1 else f"recalibrate, pass {self._passes}"
            self._shown.reset(self._task, total=total, description=title)

    def at(self, samples: int) -> None:
        """Set how many samples of this pass are done."""
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, completed=samples)


@contextlib.contextmanager
def bar(wanted: bool) -> Iterator[Bar]:
    """Yield a bar on standard error, removed at the end; an empty one off a terminal."""
    shown = _progress() if wanted else None
    if shown is None:
        yield Bar(None)
        return
    with shown:
        yield Bar(shown)


def _progress() -> Progress | None:
    # Optional: rich comes with normkit[cli], and the statistics work without it.
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
