"""What is asked of every claim's finding, for the files that invent its runs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from normkit.lab.claims.claim import Claim, Evidence
from normkit.lab.findings import Finding
from normkit.lab.judge import finding


@pytest.fixture(scope="session")
def check_finding() -> Callable[[Claim, Finding], None]:
    """A finding on all planned runs is complete, and plain values."""

    def check(claim: Claim, found: Finding) -> None:
        assert found.charts
        assert found.tables
        assert "seeds" in found.sentence
        assert dict(found.setup)["decided by"] == claim.decision
        for chart in found.charts:
            assert len(chart.text) > 40
            for line in chart.lines:
                assert len(line.x) == len(line.y)
                assert len(line.low) in (0, len(line.x))
                assert line.role == "data" or not line.low
        for table in found.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)
        assert len(found.records) == found.runs
        json.dumps(found.records, allow_nan=False)

    return check


@pytest.fixture(scope="session")
def check_partial() -> Callable[[Claim, Evidence, int], Finding]:
    """Evidence of so many seeds, not all, decides nothing and says how much there is."""

    def check(claim: Claim, evidence: Evidence, seeds: int) -> Finding:
        found = finding(claim, evidence, data="invented")
        runs, planned = len(evidence.runs), len(evidence.planned)
        assert found.sentence.startswith(f"So far {runs} of {planned} runs")
        assert f"{seeds} of {len(evidence.seeds)} seeds" in found.sentence
        # However clear it looks: a verdict at every look would be wrong more than one time in
        # twenty.
        assert found.word == "undecided"
        assert all(each.word == "undecided" for each in found.comparisons)
        return found

    return check
