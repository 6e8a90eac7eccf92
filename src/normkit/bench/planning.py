"""Turn options into jobs: the cases of each preset and their time limits."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from normkit.bench.cases import NORMS, Case, preset_cases
from normkit.errors import OptionError, message

__all__ = ["PRESETS", "Network", "Preset", "case_jobs", "select_cases", "step_jobs"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Extent of a benchmark.

    Attributes:
        seconds: time limit for a normalizer with ReLU, forward and backward; half for others.
        min_rounds: rounds to run even if that takes longer.
        compiled: compare with ``torch.compile`` too.
        steps: allocators to measure whole training steps with.
        step_seconds: time limit for the steps of one network in one layout.
        duration: approximate time for all, in words.
    """

    seconds: float
    min_rounds: int
    compiled: bool
    steps: tuple[str, ...]
    step_seconds: float
    duration: str


PRESETS = {
    "quick": Preset(0.1, 3, False, (), 3.0, "half a minute"),
    "default": Preset(0.15, 3, True, ("default",), 10.0, "four minutes"),
    "full": Preset(0.08, 3, True, ("default", "tuned"), 8.0, "half an hour"),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """Network whose training step is measured.

    ``factory`` is ``package.module:attribute``, see :mod:`normkit.bench.steps`; ``layouts`` are
    those of the default preset, the full one takes both.
    """

    name: str
    factory: str
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    layouts: tuple[str, ...] = ("contiguous",)


LARGE = 64 * 2**20
"""For larger inputs, in bytes, only the normalizer with ReLU is measured, to save time."""

# Compiling takes seconds per case, so only these are compared with torch.compile.
_COMPILED = (
    ("bn", (32, 64, 56, 56), "contiguous"),
    ("bn", (32, 256, 14, 14), "channels-last"),
    ("ln", (6304, 768), "contiguous"),
)


def select_cases(
    preset: str, *, pattern: str | None = None, norms: Sequence[str] = ()
) -> list[Case]:
    """Return the cases of a preset that match a pattern and a list of normalizers.

    A pattern with ``*``, ``?`` or ``[`` must match the whole name of a case, one without them any
    part of it. A pattern selects from all cases, whatever the preset.

    Raises:
        OptionError: a normalizer is unknown, or no case matches.

    >>> [case.layout for case in select_cases("quick", pattern="bn*32x64x56x56*")]
    ['contiguous', 'channels-last']
    """
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown:
        raise OptionError(
            message(
                f"normalizers out of {', '.join(NORMS)}",
                ", ".join(unknown),
                "choose from these",
            )
        )
    cases = preset_cases("full" if pattern else preset)
    if pattern:
        glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        cases = tuple(case for case in cases if fnmatch.fnmatchcase(case.name, glob))
    selected = [case for case in cases if not norms or case.norm in norms]
    if not selected:
        raise OptionError(
            message(
                "a pattern and normalizers that match some case",
                f"none for {pattern!r} and {', '.join(norms) or 'all normalizers'}",
                "see the names with normkit bench --list --preset full",
            )
        )
    return selected


def step_jobs(networks: Sequence[Network], preset: Preset, *, both: bool) -> list[dict[str, Any]]:
    """Return the jobs that time training steps; ``both`` selects both layouts of every network."""
    return [
        {
            "job": "step",
            "factory": network.factory,
            "network": network.name,
            "options": dict(network.options),
            "shape": list(network.shape),
            "layout": layout,
            "seconds": preset.step_seconds,
            "min_rounds": preset.min_rounds,
        }
        for network in networks
        for layout in (("contiguous", "channels-last") if both else network.layouts)
    ]


def case_jobs(cases: Sequence[Case], preset: Preset, *, compiled: bool) -> list[dict[str, Any]]:
    """Return the jobs that time these cases."""
    jobs: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        measures = [("act", "train", 1.0)]
        if case.norm == "bn":
            measures.append(("act", "eval", 0.5))
        if case.bytes <= LARGE:
            measures.append(("alone", "train", 0.5))
            if case.residual:
                measures.append(("residual", "train", 0.5))
        for measure, mode, share in measures:
            job = {
                "job": "case",
                "case": dataclasses.asdict(case),
                "measure": measure,
                "mode": mode,
                "seconds": share * preset.seconds,
                "min_rounds": preset.min_rounds,
                "seed": number,
            }
            listed = (case.norm, case.shape, case.layout) in _COMPILED
            if compiled and listed and (measure, mode) == ("act", "train"):
                job["compiled"] = True
            jobs.append(job)
    return jobs
