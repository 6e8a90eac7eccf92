"""What holds for every claim, on invented evidence: its plan, its finding, its words.

A claim's own test file, where there is one, tests the odd measure that it reads its runs with.
``effects.json`` holds each claim's effects on the invented evidence, so that a claim whose sign or
measure changes is noticed; after a change on purpose:

    python -W ignore -m tests.lab.claims.test_every_claim
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from normkit.errors import OptionError
from normkit.lab.claims.claim import PRESETS, SETUP, Available, Claim, Preset
from normkit.lab.claims.registry import all_claims, select
from normkit.lab.findings import Finding, ScaleWord
from normkit.lab.judge import finding
from tests.lab.claims.invented import evidence

CLAIMS = list(all_claims().values())
every = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
AT = [(claim, preset) for claim in CLAIMS for preset in claim.presets]


def at(*presets: Preset) -> pytest.MarkDecorator:
    """For every claim at these presets, where it has runs."""
    return pytest.mark.parametrize(
        ("claim", "preset"),
        [
            pytest.param(*pair, id="-".join((pair[0].key, pair[1])))
            for pair in AT
            if pair[1] in presets
        ],
    )


EFFECTS = Path(__file__).with_name("effects.json")


def judged(claim: Claim, preset: Preset = "quick", world: str = "clear", **options: Any) -> Finding:
    return finding(claim, evidence(claim, preset, world, **options), data="invented")


def test_tour_has_five_claims_and_the_other_presets_all() -> None:
    tour = [claim.key for claim, preset in AT if preset == "tour"]
    assert tour == ["C1", "C3", "C16", "C19", "C24"]
    others = [(claim, preset) for claim in CLAIMS for preset in PRESETS if preset != "tour"]
    assert [pair for pair in AT if pair[1] != "tour"] == others
    assert [claim.key for claim in select(preset="tour")] == tour
    assert select(["all"], preset="tour") == select(preset="tour")
    with pytest.raises(OptionError, match=r"C16, C19, C24 at preset tour"):
        select(["C17"], preset="tour")


def test_tour_comes_claim_by_claim_with_an_incomplete_batch_kept_in_c24() -> None:
    (claim,) = select(["C24"])
    kept = {c.drop_last: c for _, c in claim.plan("tour", Available.whole(claim.data))}
    assert 0 < kept[False].train_images % kept[False].batch_size < 128
    assert kept[True].steps == kept[False].steps - kept[False].epochs


@at(*PRESETS)
def test_plan_names_each_run_once(claim: Claim, preset: Preset) -> None:
    arms = claim.plan(preset, Available.whole(claim.data))
    assert len({config.key for _, config in arms}) == len(arms)
    seeds = {config.seed for _, config in arms}
    assert seeds == set(range(len(seeds)))


@at("tour", "quick")
def test_plan_fits_small_data(claim: Claim, preset: Preset) -> None:
    for _, config in claim.plan(preset, Available("subset", 5000, 1000)):
        assert config.edition == "subset"
        assert config.train_images <= 5000
        assert config.test_images <= 1000


@every
def test_words_are_complete(claim: Claim) -> None:
    assert any(reference.url.startswith("https://") for reference in claim.sources)
    # All are the articles' but three that the field asks for, which are of papers.
    of_papers = claim.key in ("C25", "C26", "C27")
    assert of_papers or any("article" in reference.source for reference in claim.sources)
    assert claim.statement.endswith(".")
    assert claim.prediction
    assert 2 <= claim.differs.count(". ") + 1 <= 5
    assert claim.differs.endswith(".")
    assert set(claim.source_setup) == set(SETUP)
    assert all(claim.source_setup.values())
    assert claim.at_scale
    for larger in claim.at_scale:
        assert larger.word in get_args(ScaleWord)
        assert larger.figures
        assert larger.source
        assert larger.url.startswith("https://") or not larger.url


def test_at_most_eight_claims_stand_in_the_readme() -> None:
    assert sum(claim.headline for claim in all_claims().values()) <= 8


@at("tour", "quick", "full")
def test_finding_is_complete_and_plain(claim: Claim, preset: Preset) -> None:
    found = judged(claim, preset)
    assert found.key == claim.key
    assert found.charts
    assert found.tables
    assert " seeds" in found.sentence
    assert not re.search(r"(?<![\w–])-\d", found.sentence)  # the minus is −
    assert any(each.decides for each in found.comparisons)
    assert dict(found.setup)["decided by"] == claim.decision
    assert found.parts >= sum(each.decides for each in found.comparisons)
    assert found.here is not None
    assert [row[0] for row in found.here.rows] == list(SETUP)
    assert all(cell for row in found.here.rows for cell in row)
    assert found.holds.endswith(".")
    assert found.practice.endswith(".")
    assert len(found.records) == found.runs == len(claim.plan(preset, Available.whole(claim.data)))
    check(found)


@pytest.mark.parametrize("seeds", [0, 1, 2])
@at("tour", "quick", "full")
def test_finding_copes_with_diverged_runs(claim: Claim, preset: Preset, seeds: int) -> None:
    found = judged(claim, preset, "broken", seeds=seeds)
    assert found.runs == len(found.records)
    check(found)


@at("tour", "quick", "full")
def test_finding_copes_with_scattered_runs(claim: Claim, preset: Preset) -> None:
    check(judged(claim, preset, "broken"))
    check(judged(claim, preset, "partial"))


@pytest.mark.parametrize("seeds", [0, 1, 2])
@at("tour", "quick", "full")
def test_partial_evidence_decides_nothing(claim: Claim, preset: Preset, seeds: int) -> None:
    found = judged(claim, preset, "partial", seeds=seeds)
    assert found.sentence.startswith(f"So far {found.runs} of {len(found.records)} runs")
    assert f"{seeds} of " in found.sentence
    # However clear it looks: a verdict at every look would be wrong more than one time in twenty.
    assert found.word == "open"
    assert all(each.word == "open" for each in found.comparisons)
    if seeds < 2:
        assert found.comparisons == ()
    check(found)


@every
def test_effects_are_those_recorded(claim: Claim) -> None:
    assert effects(claim) == pytest.approx(json.loads(EFFECTS.read_text())[claim.key])


def effects(claim: Claim) -> dict[str, float]:
    """By its place and unit: each effect on the invented evidence."""
    found = judged(claim).comparisons
    return {f"{at} {each.unit}": float(f"{each.effect:.8g}") for at, each in enumerate(found)}


def check(found: Finding) -> None:
    """Shapes fit, numbers are finite or None, and texts say what they mean to."""
    for chart in found.charts:
        assert chart.lines
        assert len(chart.text) > 40
        for line in chart.lines:
            assert len(line.x) == len(line.y)
            assert len(line.low) == len(line.high)
            assert len(line.low) in (0, len(line.x))
            assert line.role == "data" or not line.low
            assert all(math.isfinite(x) for x in line.x)
            if chart.kind == "dots":
                assert set(line.x) <= set(range(len(chart.rows)))
    for table in found.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    plain = dataclasses.asdict(found)
    json.dumps(plain, allow_nan=False)
    for text in texts({**plain, "records": ()}):
        assert not re.search(r"\b(None|nan|inf)\b|[{}]|<|object at|  ", text), text
        assert not re.search(r"^(Decides|For information):|\(decides\)", text), text


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)


if __name__ == "__main__":
    recorded = {claim.key: effects(claim) for claim in CLAIMS}
    EFFECTS.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
