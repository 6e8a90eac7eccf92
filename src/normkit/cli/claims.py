"""``normkit lab list``: the claims, what each costs, what was found last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from normkit.cli.console import console, errors, needs_lab, print_json
from normkit.cli.lab_options import STORE, JsonOption, StoreOption

if TYPE_CHECKING:
    from normkit.lab.claims.claim import Claim

__all__ = ["list_claims"]


def list_claims(store: StoreOption = STORE, as_json: JsonOption = False) -> None:
    """List the claims: source, data, cost, and the last verdict in the store."""
    needs_lab()
    with errors():
        from normkit.lab.claims.registry import all_claims

        verdicts = _verdicts(store)
        rows = [_about_claim(claim, verdicts.get(claim.key)) for claim in all_claims().values()]
    if as_json:
        print_json(rows)
        return
    table = Table("claim", "what it says", "source", "data", "demo", "cost", "last verdict")
    for row in rows:
        last = row["last"]
        costs = [
            f"{name}: {cost['runs']} runs, {cost['images'] / 1e6:.1f} M images"
            for name, cost in row["cost"].items()
        ]
        table.add_row(
            row["claim"],
            row["title"],
            row["sources"][0],
            row["data"],
            "yes" if row["demo"] else "no",
            "\n".join(costs),
            f"{last['word']} ({last['preset']})" if last else "not run",
        )
    console().print(table)
    console().print(
        "An image that goes through a training step counts once each time. "
        "Without a claim named, normkit lab run does those of the demo."
    )


def _about_claim(claim: Claim, last: dict[str, str] | None) -> dict[str, Any]:
    """A claim as plain values; its cost is that on the whole data set."""
    from normkit.lab.claims.claim import PRESETS, Available

    cost = {}
    for preset in PRESETS:
        arms = claim.plan(preset, Available("full", train=60_000, test=10_000))
        cost[preset] = {
            "runs": len(arms),
            "images": sum(config.images for _, config in arms),
        }
    return {
        "claim": claim.key,
        "title": claim.title,
        "statement": claim.statement,
        "sources": [reference.source for reference in claim.sources],
        "data": claim.data,
        "demo": claim.demo,
        "cost": cost,
        "last": last,
    }


def _verdicts(store: Path) -> dict[str, dict[str, str]]:
    """The last verdict on each claim in a store, if there is a store."""
    if not store.is_file():
        return {}
    from normkit.lab.judge import judge, last_preset
    from normkit.lab.store import Store as OpenStore

    with OpenStore(store, read_only=True) as opened:
        preset = last_preset(opened)
        findings = judge(opened, preset) if preset else []
    return {
        finding.key: {"word": finding.word, "preset": str(preset), "sentence": finding.sentence}
        for finding in findings
    }
