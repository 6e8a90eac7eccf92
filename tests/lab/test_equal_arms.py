"""The rule that gives verdicts, tried on real runs whose answer is known.

``recorded/runs.json`` holds 64 seeds of one small training with batch normalization and 64 without
(``recorded/record.py`` made them). Runs of one arm, dealt out to two, are equal arms; runs of one
arm to which a known amount is added differ by that amount. Both go through the claims' own judges.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy import stats

import normkit.lab
from normkit.lab.claims.c01 import CLAIM as C1
from normkit.lab.claims.c05 import CLAIM as C5
from normkit.lab.claims.c12 import CLAIM as C12
from normkit.lab.claims.claim import Claim, Evidence, Judgement
from normkit.lab.claims.study import WITH, WITHOUT
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Comparison, PartWord, Verdict
from normkit.lab.verdicts import decide

Values = Mapping[str, Sequence[float]]
Synthetic = Callable[..., Evidence]

SIMULATIONS = 200
RECORDED: dict[str, list[Values]] = json.loads(
    (Path(__file__).parent / "recorded" / "runs.json").read_text(encoding="utf-8")
)["runs"]


def judged(
    claim: Claim, synthetic: Synthetic, first: Sequence[Values], second: Sequence[Values]
) -> tuple[Verdict, list[PartWord]]:
    """The words on a claim whose arms have these runs, one for each seed, and on its parts."""
    by_arm = {WITH: first, WITHOUT: second}

    def values(arm: str, config: RunConfig) -> Values:
        run = {"test_loss": (1.0,) * 5} | dict(by_arm[arm][config.seed])
        # Recorded once, with the moving average: it stands for what a condition would give.
        under = {named("test_accuracy", each): run["test_accuracy"] for each in config.evaluations}
        return run | under

    word, parts = decide(claim.judge(synthetic(claim, values)).decides)
    return word, [part.word for part in parts]


def studies(
    claim: Claim,
    synthetic: Synthetic,
    seeds: int,
    arm: str,
    gain: float = 0.0,
    count: int = SIMULATIONS,
) -> list[tuple[Verdict, list[PartWord]]]:
    """Many simulated claims: runs of one arm dealt out to two, the first better by ``gain``."""
    rng = np.random.default_rng(1502)
    runs = RECORDED[arm]
    found = []
    for _ in range(count):
        dealt = [runs[index] for index in rng.permutation(len(runs))[: 2 * seeds]]
        first = [
            {name: [value + gain for value in values] for name, values in run.items()}
            for run in dealt[:seeds]
        ]
        found.append(judged(claim, synthetic, first, dealt[seeds:]))
    return found


def share(words: Sequence[str], word: str) -> float:
    return words.count(word) / len(words)


def share_with(found: Sequence[tuple[Verdict, list[PartWord]]], word: PartWord) -> float:
    """The share of studies in which some part has this word."""
    return sum(word in parts for _, parts in found) / len(found)


def without_smallest(claim: Claim) -> Claim:
    """The claim's parts with nothing too small to matter, so that every effect above zero counts.

    What matters makes *confirmed* rarer; without it, what is left is the interval alone.
    """

    def judge(evidence: Evidence) -> Judgement:
        judgement = claim.judge(evidence)
        parts = [part and again(part) for part in judgement.decides]
        return dataclasses.replace(judgement, decides=parts)

    def again(part: Comparison) -> Comparison:
        word: PartWord = "confirmed" if part.low > 0 else "opposite" if part.high < 0 else "open"
        return dataclasses.replace(part, word=word, smallest=0.0)

    return dataclasses.replace(claim, judge=judge)


CLAIMS = {"C1": (C1, 5), "C5": (C5, 5), "C12": (C12, 10)}


@pytest.mark.parametrize("arm", [WITH, WITHOUT])
@pytest.mark.parametrize("key", CLAIMS)
def test_equal_arms_of_real_runs(key: str, arm: str, synthetic: Synthetic) -> None:
    claim, seeds = CLAIMS[key]
    found = studies(claim, synthetic, seeds, arm)
    for word in ("confirmed", "opposite"):
        # 5 % at most, as the slow test shows; 400 studies may show a little more by chance.
        assert share_with(found, word) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / SIMULATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("arm", [WITH, WITHOUT])
# C12 takes a jackknife in each study, a minute for the four thousand.
@pytest.mark.parametrize("key", ["C1", "C5", pytest.param("C12", marks=pytest.mark.minutes)])
@pytest.mark.parametrize("bare", [False, True], ids=["as it is", "no smallest effect"])
def test_many_studies_of_equal_arms(key: str, arm: str, bare: bool, synthetic: Synthetic) -> None:
    """4,000 studies each; ``-s`` prints the shares."""
    claim, seeds = CLAIMS[key]
    found = studies(without_smallest(claim) if bare else claim, synthetic, seeds, arm, count=4000)
    shares = {word: share_with(found, word) for word in get_args(PartWord)}
    parts = len(found[0][1])
    print(f"{key} {arm}, {parts} parts{', no smallest effect' if bare else ''}: {shares}")
    for word in ("confirmed", "opposite"):
        assert shares[word] <= 0.05


@pytest.mark.parametrize("deviations", [1.0, 2.0, 3.0])
def test_known_difference_is_found_as_often_as_theory_says(
    deviations: float, synthetic: Synthetic
) -> None:
    # Of the plain arm, whose last accuracies are near normal; the other arm's have a long tail.
    last = [run["test_accuracy"][-1] for run in RECORDED[WITHOUT]]
    spread = math.sqrt(2) * float(np.std(last, ddof=1))  # of the difference of two runs
    studied = studies(C5, synthetic, 5, WITHOUT, gain=deviations * spread)
    # Above zero by Student's interval, and at least what matters.
    draws = np.random.default_rng(5).normal(deviations, 1, (20_000, 5))
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / math.sqrt(5)
    smallest = float(re.search(r"matters from (\S+) points", C5.decision)[1])  # type: ignore[index]
    power = (mean > stats.t.ppf(0.975, 4) * error) & (mean >= smallest / (100 * spread))
    words = [word for word, _ in studied]
    assert share(words, "confirmed") == pytest.approx(power.mean(), abs=0.08)


def test_recorded_difference_is_found(synthetic: Synthetic) -> None:
    rng = np.random.default_rng(7)
    found = []
    for _ in range(100):
        picked = rng.permutation(len(RECORDED[WITH]))[:5]
        arms = [[RECORDED[arm][index] for index in picked] for arm in (WITH, WITHOUT)]
        found.append(judged(C1, synthetic, *arms)[0])
    assert share(found, "confirmed") >= 0.9


def test_nothing_that_trains_knows_a_verdict() -> None:
    # Who may stop when the verdict pleases finds equal arms different too often. What trains, and
    # decides when a run ends, cannot look: it does not import what judges.
    package = Path(normkit.lab.__file__).parent
    trains = [package / name for name in ("training.py", "runner.py", "worker.py", "leases.py")]
    trains += sorted((package / "executors").glob("*.py"))
    assert len(trains) > 6
    for path in trains:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert imported, path
        assert not [name for name in imported if "verdict" in name or "judge" in name], path
