"""From a store to findings: reads, computes, trains nothing.

A store that is not complete is judged with what is there, and the finding says how much that is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from normkit.lab import settings
from normkit.lab.claims.claim import Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.registry import all_claims, forms
from normkit.lab.config import RunConfig
from normkit.lab.findings import Comparison, Finding
from normkit.lab.runs import Planned, Run
from normkit.lab.sample_size import seeds_needed
from normkit.lab.store import Store
from normkit.lab.tasks import task_of
from normkit.lab.verdicts import corrected, decide

__all__ = ["Judged", "finding", "judge", "judge_with_runs", "last_preset"]


class Judged(NamedTuple):
    """Findings, and the finished runs behind them: each once, whichever claims share it."""

    findings: list[Finding]
    runs: tuple[Run, ...]


def recorded(config: RunConfig) -> tuple[str, ...]:
    """Metrics included in every exported record."""
    figure = task_of(config).figure
    return ("epoch_train_loss", f"epoch_train_{figure}", f"test_{figure}", "test_loss")


def last_preset(store: Store) -> str | None:
    """The preset of the last ``lab run`` on this store, None for a store that has seen none."""
    return store.fact("preset")


def judge(store: Store, preset: str, claims: Sequence[Claim] | None = None) -> list[Finding]:
    """The findings of these claims, or of all that were planned at this preset, in order."""
    return judge_with_runs(store, preset, claims).findings


def judge_with_runs(
    store: Store,
    preset: str,
    claims: Sequence[Claim] | None = None,
    known: dict[str, Run] | None = None,
) -> Judged:
    """Judge as :func:`judge` does, reading each run once, and keep the runs.

    Args:
        known: runs read before, by key, which are not read again; the others are added.
    """
    planned = {claim for claim, at in store.plans() if at == preset}
    chosen = forms(all_claims().values()) if claims is None else claims
    known = {} if known is None else known
    runs: dict[str, Run] = {}
    findings = []
    for claim in chosen:
        if claim.key in planned:
            evidence = Evidence(preset, tuple(store.planned(claim.key, preset, known)))
            runs |= {run.config.key: run for run in evidence.runs}
            findings.append(finding(claim, evidence, data=_data(store, claim, evidence)))
    return Judged(_together(findings), tuple(runs[key] for key in sorted(runs)))


def _together(findings: Sequence[Finding]) -> list[Finding]:
    """Mark the parts that stay confirmed when those of all complete findings are corrected."""
    parts = [
        part
        for finding in findings
        if finding.complete
        for part in finding.comparisons
        if part.decides
    ]
    survives = iter(corrected(parts))
    return [
        dataclasses.replace(
            finding,
            comparisons=tuple(
                dataclasses.replace(part, survives=next(survives)) if part.decides else part
                for part in finding.comparisons
            ),
        )
        if finding.complete
        else finding
        for finding in findings
    ]


def finding(claim: Claim, evidence: Evidence, *, data: str) -> Finding:
    """Judge one claim. ``data`` says in words what the images are and where they are from.

    Until all planned runs are there the word is *open*, whatever the interval says: who may look
    after every seed and stop when it pleases finds two equal arms different more often than one
    time in twenty.
    """
    judgement: Judgement = claim.judge(evidence)
    word, deciding = decide(judgement.decides)
    others = [each for each in judgement.information if each is not None]
    runs = evidence.runs
    missing = len(evidence.planned) - len(runs)
    sentence = judgement.sentence
    stale = bool(runs) and not missing and not deciding and not _knows(claim, evidence)
    if stale:
        sentence = (
            "The runs were planned by another version of normkit, whose arms have other names: "
            f"normkit lab run {claim.key} --preset {evidence.preset} plans them anew, and repeats "
            "none that is the same."
        )
    if missing:
        failed = sum(planned.run.status == "failed" for planned in evidence.planned)
        failures = f", {failed} of them failed" if failed else ""
        sentence = (
            f"So far {len(runs)} of {len(evidence.planned)} runs are done ({missing} missing"
            f"{failures}). {sentence}"
        )
    return Finding(
        key=claim.key,
        title=claim.title,
        statement=claim.statement,
        sources=claim.sources,
        prediction=claim.prediction,
        word="open" if missing else word,
        sentence=sentence,
        comparisons=tuple(
            # Nor a number of seeds, from as few as are there, to stop at.
            dataclasses.replace(each, word="open") if missing else _with_needed(each)
            for each in (*deciding, *others)
        ),
        charts=tuple(judgement.charts),
        tables=tuple(judgement.tables),
        setup=settings.setup(claim, evidence),
        data=settings.images(evidence, data),
        runs=len(runs),
        diverged=sum(run.status == "diverged" for run in runs),
        seconds=sum(run.seconds for run in runs),
        stale=stale,
        differs="" if missing else claim.differs,
        records=tuple(_record(claim, planned) for planned in evidence.planned),
        confirmed=0 if missing else sum(part.word == "confirmed" for part in deciding),
        parts=len(judgement.decides),
        here=settings.here(claim, evidence, judgement.figures),
        at_scale=claim.at_scale,
        holds=judgement.holds,
        practice=judgement.practice,
        topic=claim.topic,
    )


def _knows(claim: Claim, evidence: Evidence) -> bool:
    """Return True if this version plans any of the arms in the store."""
    plan = claim.plan(cast("Preset", evidence.preset), Available.whole(claim.data))
    return not {arm for arm, _ in plan}.isdisjoint(evidence.arms)


def _with_needed(part: Comparison) -> Comparison:
    """Add to an open part the number of seeds that would probably decide it."""
    open_ = part.decides and part.word == "open"
    return dataclasses.replace(part, needed=seeds_needed(part)) if open_ else part


def _data(store: Store, claim: Claim, evidence: Evidence) -> str:
    names = dict.fromkeys(each.run.config.data for each in evidence.planned) or (claim.data,)
    return "; ".join(store.fact(f"data:{name}") or name for name in names)


def _record(claim: Claim, planned: Planned) -> dict[str, Any]:
    run, config = planned.run, planned.run.config
    return {
        "claim": claim.key,
        "arm": planned.arm,
        "status": run.status,
        "diverged_step": run.diverged_step,
        "seconds": round(run.seconds, 2),
        "key": config.key,
        **_described(config),
        **_results(run),
    }


def _results(run: Run) -> dict[str, Any]:
    if run.config.kind == "timing":
        return {name: run.last(name) for name in run.metrics}
    under = [name for name in run.metrics if "@" in name]
    return {name: list(run.by_epoch(name)) for name in (*recorded(run.config), *under)}


def _described(config: RunConfig) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(config.to_json())
    for name in ("probes", "evaluations", "final_evaluations"):  # told by the metrics' names
        described.pop(name, None)
    return described
