"""Passes over batches, in step with other ranks, until a stop is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.estimates.bias import MAX_BIAS, Tally
from normkit.statistics.estimates.estimate import Estimate, Units, merge_statistics
from normkit.statistics.estimates.layer_statistics import LayerStatistics, relative_error
from normkit.statistics.layers.find import layers_by_bank
from normkit.statistics.layers.preserve import is_sharded, preserve_rng
from normkit.statistics.measuring.observer import Observer
from normkit.statistics.measuring.share import Share
from normkit.statistics.printing.progress import Bar
from normkit.statistics.processes.lockstep import MET, in_step
from normkit.statistics.processes.ranks import Ranks, fingerprint

__all__ = ["FIRST_COUNTS", "Passes"]

FIRST_COUNTS = {False: 4, True: MET}
"""Numbers that the ranks add up when they first meet, by whether they run each forward together."""

MIN_BATCHES = 8
"""Batches before the standard errors are first compared with a tolerance."""

GROWTH = 1.2
"""They are compared again after this many times as many batches."""

MAX_ROUNDS = 32
"""Batches between two meetings of the ranks, so that none waits long for another."""


SAME = 1e-5
"""Below this share of a deviation two passes had the same batches, up to the order of summation."""


class Passes:
    """Passes over the batches, in step with other ranks.

    The ranks meet to add up a few numbers (:meth:`Ranks.status`): when a stop may be due, and
    after 1, 2, 4, … batches more, ``MAX_ROUNDS`` at the latest. As long as no batch is larger than
    those before, they stop exactly where meeting at every batch would stop them.

    Attributes:
        samples, batches: of all ranks together, in the first pass.
        own_samples, own_batches: of this rank, in the first pass.
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
        self.observer = observer
        self._batches = DetachedLoader(batches)
        self._forward = forward
        self._ranks = ranks
        self._progress = progress
        self._layers = layers_by_bank(observer.layers)
        self._fingerprint = fingerprint(observer.layers)
        self._max_rounds = MAX_ROUNDS if ranks.size > 1 else 1
        self._in_step = ranks.size > 1 and is_sharded(observer.model)
        self.own_batches = self.own_samples = 0
        self._remainder = 0  # samples of this rank's last batch, where it was smaller
        self.samples = self.batches = self.count = 0
        self.units: dict[str, int] = {}
        self._firsts: list[LayerStatistics | None] = []

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
        growing = self._growing()
        self.observer.start({})
        with preserve_rng():
            while True:
                total, batches, active, per_round = self._advance(share, rounds)
                self.own_batches, self.own_samples = share.batches, share.samples
                self._remainder = share.remainder
                self.samples, self.batches = total, batches
                if not active or (samples is not None and total >= samples):
                    break
                if tolerance is not None and batches >= compare_at:
                    compare_at = math.ceil(GROWTH * batches)
                    if self._precise(merged := self._merge(), tolerance):
                        self.count = 1
                        return merged
                rounds = next(growing)
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
        self.observer.start(fixed)
        self.go_over()
        self._firsts = [*self._firsts[-1:], self.observer.first_input()]
        return self._merge()

    def go_over(self, run: Callable[[Any, bool], int] | None = None) -> None:
        """Go over as many batches as the first pass, in another one.

        Args:
            run: called with each batch and whether it counts, in place of :meth:`run`.
        """
        self._progress.begin(self.samples)
        share, active = self._share(self.own_batches), 1
        # The same order in every pass, whichever generator the loader draws it from.
        with preserve_rng():
            for rounds in self._growing():
                if not active:
                    break
                _, _, active, _ = self._advance(share, rounds, run)
        self.count += 1

    def run(self, batch: Any, counts: bool) -> int:
        """Run a batch and return its number of samples; 0 if it runs along with other ranks'."""
        if counts:
            return self.observer.run(batch, self._forward)
        return self.observer.run_along(batch, self._forward)

    def batches_differ(self) -> bool:
        """Return whether the last two repeated passes had other batches, at any rank.

        They show in the first input of the first layer, which depends on no statistics.
        """
        one, other = self._firsts
        differ = one is not None and other is not None and not _same(one, other)
        return self._any_rank(differ)

    def calls_again(self) -> bool:
        """Return whether a pass calls a layer several times, at any rank."""
        return self._any_rank(any(one.calls for one in self.observer.estimates.values()))

    def _any_rank(self, value: bool) -> bool:
        return self._ranks.status([int(value)], self._fingerprint)[0] > 0

    def _growing(self) -> Iterator[int]:
        """Yield how many batches may pass until the next meeting: about as many as before it."""
        rounds = 1
        while True:
            rounds = min(2 * rounds, self._max_rounds)
            yield rounds

    def begins_again(self) -> bool:
        """Return True if every rank can go over its batches once more, as far as can be known."""
        ending = not self._batches.begins_again()
        return self._ranks.status([int(ending)], self._fingerprint)[0] == 0

    def without_remainders(self) -> float:
        """Return by which factor batches per sample fall without each rank's smaller last one."""
        counts = [self._remainder, int(self._remainder > 0)]
        samples, batches = self._ranks.status(counts, self._fingerprint)
        return (self.batches - batches) / (self.samples - samples) * self.samples / self.batches

    def _advance(
        self, share: Share, rounds: int, run: Callable[[Any, bool], int] | None = None
    ) -> list[int]:
        """Run some batches, meet the other ranks, and return the counts of all.

        Raises:
            StatisticsError: another rank has failed, or has other layers.
        """
        try:
            share.advance(rounds, run or self.run)
        except BaseException as error:
            # Others in step know of it where it came before the forward; from within one of their
            # own they could not hear of it.
            if not self._in_step:
                self._ranks.status(share.counts(), self._fingerprint, error)
            raise
        counts = self._ranks.status(share.counts(), self._fingerprint)
        self._progress.at(counts[0])
        return counts

    def _share(self, limit: float) -> Share:
        """Return this rank's batches for one pass, up to ``limit`` of them."""

        batches = self._batches
        if not self._in_step:
            return Share(lambda: ((batch, True) for batch in batches), limit)
        # A rank that has had all of its own goes on as long as the others.
        model, forward = self.observer.model, self._forward
        return Share(lambda: in_step(batches, self._ranks, model, forward, limit), math.inf)

    def _merge(self) -> dict[str, LayerStatistics]:
        """Merge what all ranks have observed in this pass."""
        estimates = self.observer.estimates
        units = {name: one.units() for name, one in estimates.items()}
        return self.merge_units(units, {name: one.tally for name, one in estimates.items()})

    def merge_units(
        self, units: Mapping[str, Units], tallies: Mapping[str, Tally]
    ) -> dict[str, LayerStatistics]:
        """Merge the units of this rank with those of all others, by layer."""
        # Alone, only layers that were called; together, all ranks name the same.
        units = {
            name: units[name] if name in units else Estimate(one.tensors[0].shape[-1]).units()
            for name, one in self._layers.items()
            if name in units or self._ranks.size > 1
        }
        if not units:
            return {}
        per_sample = {name: one.per_sample for name, one in self._layers.items()}
        merged, self.units = merge_statistics(units, per_sample, self._ranks.sum, tallies)
        # In the order of calls, which several ranks need not share.
        order = self.observer.estimates if self._ranks.size == 1 else self._layers
        return {name: merged[name] for name in order if name in merged}

    def _precise(self, merged: Mapping[str, LayerStatistics], tolerance: float) -> bool:
        """Return whether all standard errors are below ``tolerance``."""
        trusted = {name: one for name, one in merged.items() if one.bias <= MAX_BIAS}
        # Batches of few samples show the errors of the first layers only. Those of later ones are
        # seldom twice as large, and will be measured.
        limit = tolerance if len(trusted) == len(merged) else tolerance / 2
        errors = [relative_error(one, self._layers[name].eps) for name, one in trusted.items()]
        # NaN (a layer seen in one batch only) is below no tolerance.
        return bool(errors) and all(error < limit for error in errors)


def _same(one: LayerStatistics, other: LayerStatistics) -> bool:
    # Sums in float32 differ by a share of the mean, too; a single value has no variance.
    scale = one.variance.nan_to_num(0.0).sqrt() + 0.1 * one.mean.abs()
    return bool(((one.mean - other.mean).abs() <= SAME * scale).all())
