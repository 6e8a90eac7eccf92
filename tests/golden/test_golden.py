"""Nothing a user can measure changes while the package is simplified.

Plans and figures are those of the version before and are never recorded again. Words are: what
``reprs.json`` and ``helps.json`` hold is recorded anew (``python -m tests.golden.record reprs
helps``) when docs/log.md says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest

from normkit.lab.claims.claim import Available, Claim, Evidence
from normkit.lab.claims.registry import all_claims, forms
from normkit.lab.config import RunConfig
from normkit.lab.judge import finding
from normkit.lab.runs import Planned, Points, Run
from tests.golden import record

CLAIMS = forms(all_claims().values())
every = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
FIGURES = ("effect", "low", "high", "seeds", "word", "smallest", "p", "decides", "needed",
           "shared", "freedom")  # fmt: skip
# What differs from the version before, and why: (claim, what): reason. See docs/log.md.
EXPLAINED: dict[tuple[str, str], str] = {
    ("C6", "tables"): "training loss and test accuracy, seed by seed, have a digit more",
    ("C11", "tables"): "seeds and gains of the arms stand in the comparisons and the chart",
    ("C15", "charts"): "a run's last error is its last epoch's; stored ones are never missing",
    ("C15", "tables"): "the same",
}
# The comparisons for information, by their place or question, that said again what a margin says.
DROPPED: dict[str, tuple[int | str, ...]] = {
    "C13": ("For information: what is that gain?",),
    "C22": ("For information: how much higher is DenseNet's test accuracy than ResNet-18's?",),
}


@pytest.fixture(scope="session")
def before() -> Any:
    return record.load("findings.json.gz")


@every
def test_plans(claim: Claim) -> None:
    assert record.plans(claim) == record.load("plans.json")[claim.key]


@every
def test_figures(claim: Claim, before: Any) -> None:
    """Every effect with its interval, and what is drawn and tabled, is the same."""
    now = record.judged(claim)
    for case, old in before[claim.key].items():
        new = now[case]
        if isinstance(old, str):  # it raised; a mended fault does not
            continue
        assert not isinstance(new, str), f"{case}: {new}"
        assert new["word"] == old["word"], case
        lines = record.differences(_kept(claim, old), _as_before(new), case)
        assert list(lines) == []
        for what in ("charts", "tables"):
            if (claim.key.split("-")[0], what) not in EXPLAINED:
                gone = _missing(old[what], new[what])
                assert not gone, f"{case}: {what} lost {gone[:10]}"


@pytest.mark.parametrize("key", sorted(record.load("recorded_full.json.gz")["claims"]))
def test_recorded_full_run(key: str) -> None:
    """The recorded full run (docs/report.html) is judged as it was, without a training.

    Its page holds what was measured after each epoch of all 695 runs. C2, C6 and C7 also need what
    was measured within steps, which the page has in part.
    """
    recorded = record.load("recorded_full.json.gz")
    claim = all_claims()[key]
    planned = [
        Planned(arm, _run(config, recorded["runs"][config.key]))
        for arm, config in claim.plan("full", Available.whole(claim.data))
    ]
    found = dataclasses.asdict(finding(claim, Evidence("full", tuple(planned)), data="recorded"))
    old = recorded["claims"][key]
    assert found["word"] == old["word"]
    assert list(record.differences(_kept(claim, old), _as_before(found))) == []


def test_reprs() -> None:
    assert list(record.differences(record.load("reprs.json"), record.reprs())) == []


def test_helps() -> None:
    assert list(record.differences(record.load("helps.json"), record.helps())) == []


def _run(config: RunConfig, recorded: Any) -> Run:
    metrics: dict[str, Points] = {}
    for name, values in recorded["metrics"].items():
        if config.kind == "timing":
            metrics[name] = ((1, 0, values),)
            continue
        first = config.epochs - len(values)
        metrics[name] = tuple(
            ((epoch + 1) * config.steps_per_epoch, epoch, value)
            for epoch, value in enumerate(values, start=first)
        )
    return Run(
        config=config,
        status=recorded["status"],
        step=config.steps,
        seconds=1.0,
        diverged_step=recorded["diverged_step"],
        error="",
        versions={},
        machine="",
        finished=None,
        metrics=metrics,
        vectors={},
    )


def _kept(claim: Claim, finding: Any) -> list[Any]:
    """The comparisons of the version before, but for those that are dropped."""
    dropped = DROPPED.get(claim.key.split("-")[0], ())
    return [
        {name: each[name] for name in FIGURES}
        for i, each in enumerate(finding["comparisons"])
        if i not in dropped and each["question"] not in dropped
    ]


def _as_before(finding: Any) -> list[Any]:
    """The comparisons as they were stored: shares where there are points now, margins added."""
    before = []
    for each in finding["comparisons"]:
        scale = 100 if each["unit"].startswith(("points", "%")) else 1
        values = {name: each[name] for name in FIGURES}
        for name in ("effect", "low", "high"):
            values[name] = (each[name] + each["margin"]) / scale
        for name in ("smallest", "shared"):
            values[name] = each[name] / scale
        before.append(values)
    return before


def _missing(old: Any, new: Any) -> list[float]:
    """The numbers of ``old`` that ``new`` does not hold, as they are or in percent."""
    have = {_digits(value) for value in _numbers(new)}
    return [
        value
        for value in _numbers(old)
        if not have & {_digits(value), _digits(100 * value), _digits(value / 100)}
    ]


def _digits(value: float) -> str:
    return f"{value:.6g}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)
