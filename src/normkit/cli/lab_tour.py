"""The tour: verdicts as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from normkit.cli.lab_page import line, write
from normkit.lab.claims.claim import Claim
from normkit.lab.judge import judge_with_runs
from normkit.lab.runner import Progress
from normkit.lab.runs import Run
from normkit.lab.store import Store

__all__ = ["Tour"]


class Tour:
    """Print each claim's verdict, and update the report, as soon as its last run has ended."""

    def __init__(self, store: Store, claims: Sequence[Claim], report: Path, out: Console) -> None:
        self.store, self.report, self.out = store, report, out
        self.keys = {
            claim.key: [each.run.config.key for each in store.planned(claim.key, "tour")]
            for claim in claims
        }
        self._waiting = set(self.keys)
        self._known: dict[str, Run] = {}

    def look(self, now: Progress) -> None:
        """Take in how far the runs have come."""
        ended = {claim for claim in self._waiting if now.ended.issuperset(self.keys[claim])}
        if not ended:
            return
        judged = judge_with_runs(self.store, "tour", known=self._known)
        # What was read of a run that goes on is out of date the next time.
        self._known = {run.config.key: run for run in judged.runs}
        for finding in judged.findings:
            if finding.key in ended:
                self.out.print(line(finding), soft_wrap=True)
        write(judged, self.report, "tour", None)
        self._waiting -= ended
