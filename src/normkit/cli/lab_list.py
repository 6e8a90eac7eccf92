"""``normkit lab list``: the claims, what each costs in minutes, and its verdicts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import STORE, WORD_STYLE, OfClaimsArgument, StoreOption
from normkit.cli.options import Json

if TYPE_CHECKING:
    from rich.console import Console

    from normkit.lab.claims.claim import Arms, Claim
    from normkit.lab.findings import Finding
    from normkit.lab.store import Store

__all__ = ["if_there", "list_claims"]

Row = dict[str, Any]
INDENT = 4


def list_claims(
    claims: OfClaimsArgument = None, store: StoreOption = STORE, as_json: Json = False
) -> None:
    """List the claims: what each says, who says it, how long it takes, and what came out."""
    needs_lab()
    with errors(), if_there(store) as opened:
        from normkit.lab.machine import cores

        rows, count = _rows(opened, claims), cores()
    if as_json:
        print_json(rows)
        return
    out = console()
    for row in rows:
        _print_claim(out, row, count)
    shared = "runs that claims share count for each"
    out.print(
        f"Times are those of {count} cores: measured where all runs are done, else about; {shared}."
    )
    out.print("▸ is what was run last; * is what normkit lab run tests where no claim is named.")
    out.print("All about one: normkit lab show C1. Five in three minutes: normkit lab tour.")
    if not store.exists():
        out.print(f"There is no store {store}: nothing has been run into it.", soft_wrap=True)


def _print_claim(out: Console, row: Row, count: int) -> None:
    """Print a claim in a few short lines, which fit a terminal of any width."""
    mark = " *" if row["demo"] else ""
    out.print(Text.assemble((f"{row['claim']}  ", "bold"), (row["title"], "bold"), mark))
    about = "; ".join([row["sources"][0], row["data"]])
    out.print(Padding(Text(about, style="dim"), (0, 0, 0, INDENT)))
    for preset, cost in row["cost"].items():
        word = row["verdicts"].get(preset)
        last = row["last"] is not None and row["last"]["preset"] == preset
        line = Text(" " * INDENT).append(f"{preset:<7}").append("▸ " if last else "  ")
        verdict = row["parts"][preset].removesuffix(" parts confirmed") if word else "not run"
        line.append(f"{verdict:<17}", WORD_STYLE[word] if word else "dim")
        line.append(f"{cost['runs']:>5,} runs  {_minutes(cost, count)}")
        out.print(line)
    out.print()


def _minutes(cost: Mapping[str, Any], count: int) -> str:
    """Return the time of some runs on so many cores, in minutes.

    >>> _minutes({"seconds": None, "expected_seconds": 2000.0}, 2)
    'about 17 min'
    >>> _minutes({"seconds": 33.0, "expected_seconds": None}, 2)
    '0.3 min'
    >>> _minutes({"seconds": None, "expected_seconds": None}, 2)
    'for a GPU'
    """
    measured = cost["seconds"] is not None
    seconds = cost["seconds"] if measured else cost["expected_seconds"]
    if seconds is None:
        return "for a GPU"
    minutes = seconds / count / 60
    text = f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"
    return f"{'' if measured else 'about '}{text} min"


@contextlib.contextmanager
def if_there(path: Path) -> Iterator[Store | None]:
    """Open the store for reading; None if there is no such file."""
    from normkit.lab.store import Store

    if not path.exists():
        yield None
        return
    with Store(path, read_only=True) as opened:
        yield opened


def _rows(store: Store | None, keys: Sequence[str] | None) -> list[Row]:
    from normkit.lab.claims import registry
    from normkit.lab.claims.claim import PRESETS
    from normkit.lab.data import is_here
    from normkit.lab.judge import judge

    chosen = {claim.key for claim in registry.select(keys, is_here)} if keys else None
    planned = {claim for claim, _ in store.plans()} if store else set()
    claims = [
        claim
        for claim in registry.forms(registry.all_claims().values())
        if (
            claim.key in chosen
            if chosen
            else claim.data == "fashion-mnist" or claim.key in planned or is_here(claim.data)
        )
    ]
    findings: dict[str, dict[str, Finding]] = {}
    if store is not None:
        for preset in PRESETS:
            findings[preset] = {finding.key: finding for finding in judge(store, preset, claims)}
    return [_about_claim(claim, findings, store) for claim in claims]


def _about_claim(
    claim: Claim, findings: Mapping[str, Mapping[str, Finding]], store: Store | None
) -> Row:
    """Return a claim as plain values, with its cost on the full data set."""
    from normkit.lab.claims.claim import Available

    cost = {}
    for preset in claim.presets:
        arms = claim.plan(preset, Available.whole(claim.data))
        finding = findings.get(preset, {}).get(claim.key)
        done = finding is not None and finding.runs == len(finding.records) > 0
        seconds = finding.seconds if finding is not None and done else None
        # What a machine without a GPU would take is no help.
        estimable = seconds is None and preset != "paper"
        cost[preset] = {
            "runs": len(arms),
            "images": sum(config.images for _, config in arms),
            "seconds": seconds,
            "expected_seconds": _expected(arms) if estimable else None,
        }
    judged = {
        preset: by_key[claim.key] for preset, by_key in findings.items() if claim.key in by_key
    }
    verdicts = {preset: finding.word for preset, finding in judged.items()}
    last = store.last_preset(claim.key) if store else None
    sentence = findings[last][claim.key].sentence if last in verdicts else ""
    return {
        "claim": claim.key,
        "title": claim.title,
        "statement": claim.statement,
        "sources": [reference.source for reference in claim.sources],
        "data": ", ".join(
            dict.fromkeys(name for at in claim.presets for name in claim.data_sets(at))
        ),
        "demo": claim.demo,
        "cost": cost,
        "verdicts": verdicts,
        "parts": {preset: finding.verdict for preset, finding in judged.items()},
        "last": {"word": verdicts[last], "preset": last, "sentence": sentence}
        if last in verdicts
        else None,
    }


def _expected(arms: Arms) -> float:
    """Return the expected seconds of some runs on one core; seeds cost the same."""
    from normkit.lab.cost import expected_seconds

    counts = Counter(dataclasses.replace(config, seed=0) for _, config in arms)
    return round(sum(number * expected_seconds(config) for config, number in counts.items()), 1)
