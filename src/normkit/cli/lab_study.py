"""A study while it runs: how far each claim has come, its verdict once settled, the time left."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from normkit.cli.lab_page import short_title, write
from normkit.lab.claims.claim import Claim, Preset
from normkit.lab.cost import expected_seconds, kind_of
from normkit.lab.findings import Finding
from normkit.lab.judge import judge_with_runs
from normkit.lab.progress import Progress, progress_of
from normkit.lab.remaining import Cost, Remaining
from normkit.lab.runs import Run
from normkit.lab.store import Store

__all__ = ["Standing", "Study"]


@dataclasses.dataclass
class Standing:
    """Progress of a claim.

    Attributes:
        share: of its expected time.
        ended, failed: numbers of runs.
        finding: once all its runs have ended.
    """

    key: str
    title: str
    runs: int
    share: float = 0.0
    ended: int = 0
    failed: int = 0
    finding: Finding | None = None

    @property
    def begun(self) -> bool:
        """True from the first step of a run on."""
        return self.share > 0 or self.ended > 0

    @property
    def settled(self) -> bool:
        """True once it is judged."""
        return self.finding is not None


class Study:
    """Follow a study: judge each claim as soon as its last run has ended.

    Args:
        page: where to write the report after each verdict; None for not before the end.
        workers: how many runs are carried out at once.
    """

    def __init__(
        self,
        store: Store,
        claims: Sequence[Claim],
        preset: Preset,
        keys: Sequence[str],
        *,
        workers: int = 1,
        page: Path | None = None,
    ) -> None:
        self.store, self.claims, self.preset, self.page = store, claims, preset, page
        self.keys = list(keys)
        planned: dict[str, list[str]] = {claim.key: [] for claim in claims}
        arms: dict[str, str] = {}
        for part in store.parts():
            if part.preset == preset and part.claim in planned:
                planned[part.claim].append(part.key)
                arms.setdefault(part.key, f"{part.claim} {part.arm}")
        self.planned = {key: list(dict.fromkeys(runs)) for key, runs in planned.items()}
        self.arms = arms
        configs = store.configs(keys)
        costs = {
            key: Cost(expected_seconds(configs[key]), kind_of(configs[key]),
                      alone=configs[key].kind == "timing")
            for key in keys
        }  # fmt: skip
        # In the order of the queue.
        costs = dict(sorted(costs.items(), key=lambda pair: not pair[1].alone))
        self.costs = costs
        self.remaining = Remaining(costs, workers)
        self.standings = {
            claim.key: Standing(claim.key, short_title(claim.title), len(self.planned[claim.key]))
            for claim in claims
        }
        self.progress = progress_of(store, keys)
        for key, (seconds, whole) in store.times(keys).items():
            self.remaining.learn(key, seconds, whole=whole)
        self._known: dict[str, Run] = {}
        self._begin = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the study began here."""
        return time.monotonic() - self._begin

    @property
    def share(self) -> float:
        """Share of the expected time that is done."""
        return self._share(self.keys, self.progress.shares)

    def _share(self, keys: Sequence[str], shares: Mapping[str, float]) -> float:
        whole = sum(self.costs[key].seconds for key in keys)
        done = sum(self.costs[key].seconds * shares.get(key, 0.0) for key in keys)
        return done / whole if whole else 1.0

    def end(self, run: Run) -> None:
        """Take in a run that ended here."""
        if run.finished_training:
            self.remaining.learn(run.config.key, run.seconds, whole=run.status == "done")

    def look(self, now: Progress) -> list[Finding]:
        """Take in how far the runs have come; return the findings of claims settled by it.

        At most one is judged at a time, as workers wait meanwhile; :meth:`finish` judges the rest.
        """
        settled = self._take_in(now)
        return self._judge(settled if self.page else settled[:1]) if settled else []

    def finish(self, now: Progress) -> list[Finding]:
        """Take in the end; return the findings of all claims that it settles."""
        settled = self._take_in(now)
        return self._judge(settled) if settled else []

    def _take_in(self, now: Progress) -> list[str]:
        """Take in how far the runs have come; return the claims that can be judged."""
        self.progress = now
        self.remaining.update(time.monotonic(), now.shares, now.ended)
        settled = []
        for key, standing in self.standings.items():
            mine = self.planned[key]
            standing.share = self._share(mine, now.shares)
            standing.ended = len(now.ended.intersection(mine))
            standing.failed = len(now.failed.intersection(mine))
            if not standing.settled and now.ended.issuperset(mine):
                settled.append(key)
        return settled

    def _judge(self, keys: Sequence[str]) -> list[Finding]:
        """Judge these claims; for the page, all."""
        claims = [claim for claim in self.claims if claim.key in keys]
        judged = judge_with_runs(
            self.store, self.preset, None if self.page else claims, known=self._known
        )
        # What was read of a run that goes on is out of date the next time.
        self._known = {run.config.key: run for run in judged.runs} if self.page else {}
        findings = {finding.key: finding for finding in judged.findings if finding.key in keys}
        for key, finding in findings.items():
            self.standings[key].finding = finding
        if self.page:
            write(judged, self.page, self.preset, None)
        return list(findings.values())
