"""``normkit`` with a tour of two claims, four runs each of less than a second.

    python -m tests.cli.touring lab tour --store …

For tests that need a process of its own: on a terminal, or to be interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable

from normkit.lab import data, judge
from normkit.lab.claims import c01, c05, registry
from normkit.lab.claims.claim import Arms, Available, Claim, Preset
from normkit.lab.config import RunConfig

__all__ = ["claims", "small"]


def small(config: RunConfig, epochs: int = 2) -> RunConfig:
    """Return the same run on a few images: less than a second."""
    return dataclasses.replace(
        config,
        train_images=128,
        test_images=50,
        batch_size=64,
        epochs=epochs,
        evaluations=tuple((name, 128, 64) for name, *_ in config.evaluations),
    )


def claims(epochs: int = 2) -> dict[str, Claim]:
    """C1 and C5 with a tour of four runs each."""

    def plan(claim: Claim) -> Callable[[Preset, Available], Arms]:
        def runs(preset: Preset, available: Available) -> Arms:
            if preset != "tour":
                return []
            arms = claim.plan("quick", available)
            return [(arm, small(config, epochs)) for arm, config in arms if config.seed < 2]

        return runs

    return {
        claim.key: dataclasses.replace(claim, plan=plan(claim)) for claim in (c01.CLAIM, c05.CLAIM)
    }


def main() -> None:
    made = claims(int(os.environ.get("EPOCHS", "2")))
    for module in (registry, judge):
        module.all_claims = lambda: made  # type: ignore[attr-defined]
    load = data.load
    data.load = lambda name, **_: load(name, offline=True)
    from normkit.cli.main import main as normkit

    normkit()


if __name__ == "__main__":
    sys.exit(main())
