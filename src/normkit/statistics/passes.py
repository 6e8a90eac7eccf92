"""Going over batches in step with other processes, until enough has been seen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normkit.errors import NonFiniteError, StatisticsError, explain
from normkit.statistics.batches import Forward
from normkit.statistics.distributed import Peers, refuse_failure
from normkit.statistics.estimate import LayerStatistics, Units, relative_error, statistics
from normkit.statistics.observe import Watch
from normkit.statistics.preserve import apart, random_state_kept
from normkit.statistics.stats_layers import Place

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "Study", "bar", "check_found", "within"]

FEWEST = 8
"""Batches before the spread between them is asked whether it is small enough."""

LONGER = 1.2
"""It is asked again after this many times as many: often enough, and asking costs little."""

_END: Any = object()


class Study:
    """Goes over the batches, in step with the other processes."""

    def __init__(
        self,
        watch: Watch,
        batches: Iterable[Any],
        forward: Forward | None,
        group: Peers,
        shown: Bar,
    ) -> None:
        self._watch = watch
        self._batches = batches
        self._forward = forward
        self._group = group
        self._shown = shown
        self._mine = 0  # batches that this process went over in the first pass
        self.samples = self.number = self.passes = 0
        self.moved = math.inf

    def go_over(
        self, given: Mapping[str, LayerStatistics], samples: int | None, tolerance: float | None
    ) -> dict[str, Units]:
        """One pass: the units of all processes, by layer.

        The first pass finds out how far to go; those after it go as far.
        """
        self._watch.start(given)
        self._shown.begin(samples if self.passes == 0 else self.samples)
        total = mine = number = 0
        asks = FEWEST
        # The same order in every pass, whichever generator the loader draws it from.
        with random_state_kept():
            stream: Iterator[Any] | None = None
            while True:
                run, more = 0, True
                try:
                    stream = iter(apart(self._batches)) if stream is None else stream
                    batch = _END
                    if self.passes == 0 or mine < self._mine:
                        batch = next(stream, _END)
                    if batch is _END:
                        more = False
                    else:
                        run = self._watch.run(batch, self._forward)
                        mine += 1
                except BaseException as error:
                    self._group.gather((0, False, f"{type(error).__name__}: {error}"))
                    raise
                told = self._group.gather((run, more, None))
                refuse_failure([note for _, _, note in told], self._group.rank)
                total += sum(count for count, _, _ in told)
                number += sum(goes_on for _, goes_on, _ in told)
                self._shown.at(total)
                if not any(goes_on for _, goes_on, _ in told):
                    break
                if self.passes == 0 and samples is not None and total >= samples:
                    break
                if tolerance is not None and number >= asks:
                    asks = math.ceil(LONGER * number)
                    if _worst(self._watch.places, self._gathered()) < tolerance:
                        break
        if self.passes == 0:
            self._mine, self.samples, self.number = mine, total, number
        self.passes += 1
        return self._gathered()

    def _gathered(self) -> dict[str, Units]:
        """The units of all processes, in the order of their ranks, so that all get one result."""
        parts = self._group.gather(
            {name: estimate.units() for name, estimate in self._watch.estimates.items()}
        )
        names = [name for place in self._watch.places for name, _ in place.banks]
        return {
            name: Units.join(found)
            for name in names
            if (found := [part[name] for part in parts if name in part])
        }


def _worst(places: Sequence[Place], units: Mapping[str, Units]) -> float:
    of = within(places)
    errors = [
        relative_error(statistics(units[name], of[name][1]), of[name][0].eps) for name in units
    ]
    # NaN (a layer seen in one batch only) is not below anything.
    return max((math.inf if math.isnan(e) else e for e in errors), default=math.inf)


def within(places: Sequence[Place]) -> dict[str, tuple[Place, bool]]:
    """By name the place, and whether it averages over samples: variance within units only."""
    return {
        name: (place, place.memory.per == "sample") for place in places for name, _ in place.banks
    }


def check_found(found: Mapping[str, LayerStatistics], places: Sequence[Place]) -> None:
    """Refuse what is no statistics.

    Raises:
        StatisticsError: of a single value.
        NonFiniteError: not finite, or too large for where it is remembered.
    """
    of = within(places)
    for name, one in found.items():
        if one.count < 2 and not of[name][1]:
            raise StatisticsError(
                explain(
                    "a variance needs at least two values per channel",
                    f"one, at {name or 'the model'}",
                    "pass more samples",
                )
            )
        if not bool((one.mean.isfinite() & one.variance.isfinite()).all()):
            raise NonFiniteError(
                explain(
                    "statistics are taken of finite values",
                    f"others in the input of {name or 'the model'}",
                    "look for NaN or infinity in the batches and in the weights before that layer",
                )
            )
        for value, own in zip((one.mean, one.variance), of[name][0].tensors, strict=True):
            if not bool(value.to(own.dtype).isfinite().all()):
                raise NonFiniteError(
                    explain(
                        "moments fit the type in which a layer remembers them",
                        f"{float(value.abs().max()):.3g} for {own.dtype}, at {name or 'the model'}",
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
