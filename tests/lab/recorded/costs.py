"""Record what runs were expected to take, and what they took.

    python -W ignore -m tests.lab.recorded.costs runs/lab.sqlite full

``costs.json`` has for each preset its runs in the order of the queue: claims, kind, whether nothing
ran beside it, expected seconds, measured seconds, and whether it took all its steps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

from normkit.lab.claims.registry import all_claims
from normkit.lab.cost import expected_seconds, kind_of
from normkit.lab.store import Store

FILE = Path(__file__).parent / "costs.json"


class Row(NamedTuple):
    claims: list[str]
    kind: str
    alone: bool
    expected: float
    seconds: float
    whole: bool


def load(preset: str) -> list[Row]:
    """The recorded runs of a preset."""
    return [Row(*row) for row in json.loads(FILE.read_text())[preset]]


def rows(path: Path, preset: str) -> list[Row]:
    """The runs of a preset in a store."""
    with Store(path, read_only=True) as store:
        claims: dict[str, list[str]] = {}
        order = {key: place for place, key in enumerate(all_claims())}
        parts = [part for part in store.parts() if part.preset == preset]
        for part in sorted(parts, key=lambda part: (order[part.claim], part.position)):
            if part.claim not in claims.setdefault(part.key, []):
                claims[part.key].append(part.claim)
        configs, times = store.configs(claims), store.times(claims)
    found = []
    for key, names in claims.items():
        config, (seconds, whole) = configs[key], times[key]
        alone = config.kind == "timing"
        expected = expected_seconds(config)
        found.append(
            Row(names, kind_of(config), alone, round(expected, 2), round(seconds, 2), whole)
        )
    return sorted(found, key=lambda row: not row.alone)


def main(path: str, preset: str) -> None:
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    recorded[preset] = rows(Path(path), preset)
    lines = (
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in recorded[name]) + "\n]"
        for name in sorted(recorded)
    )
    FILE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
