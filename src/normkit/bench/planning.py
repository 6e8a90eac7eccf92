"""From options to jobs: what is measured at each preset, and for how long."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from normkit.bench.cases import NORMS, Case, preset_cases
from normkit.errors import OptionError, explain

__all__ = ["PRESETS", "Network", "Preset", "case_jobs", "choose", "step_jobs"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        seconds: for a normalizer with ReLU, forward and backward; the others get half.
        least: rounds in any case.
        compiled: against ``torch.compile`` too.
        steps: allocators that whole training steps are measured with.
        step_seconds: for the steps of one network in one layout.
        about: how long it takes, in words.
    """

    seconds: float
    least: int
    compiled: bool
    steps: tuple[str, ...]
    step_seconds: float
    about: str


PRESETS = {
    "quick": Preset(0.1, 3, False, (), 3.0, "half a minute"),
    "default": Preset(0.15, 3, True, ("default",), 10.0, "four minutes"),
    "full": Preset(0.08, 3, True, ("default", "tuned"), 8.0, "half an hour"),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network whose training step is measured.

    ``factory`` is ``package.module:attribute``, see :mod:`normkit.bench.steps`; ``layouts`` are
    those of the default preset, the full one takes both.
    """

    name: str
    factory: str
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    layouts: tuple[str, ...] = ("contiguous",)


LARGE = 64 * 2**20
"""Of inputs with more bytes, only the normalizer with ReLU is measured: they take the most time."""

# Compiling takes seconds a case, so only these are measured against torch.compile.
_COMPILED = (
    ("bn", (32, 64, 56, 56), "contiguous"),
    ("bn", (32, 256, 14, 14), "channels-last"),
    ("ln", (6304, 768), "contiguous"),
)


def choose(preset: str, *, pattern: str | None = None, norms: Sequence[str] = ()) -> list[Case]:
    """The cases of a preset that a pattern and a choice of normalizers leave.

    A pattern with ``*``, ``?`` or ``[`` must match the whole name of a case, one without only a
    part of it. It chooses from all cases, whatever the preset.

    Raises:
        OptionError: an unknown normalizer, or nothing is left.

    >>> [case.layout for case in choose("quick", pattern="bn*32x64x56x56*")]
    ['contiguous', 'channels-last']
    """
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown:
        raise OptionError(
            explain(
                f"a normalizer is one of {', '.join(NORMS)}", ", ".join(unknown), "choose of them"
            )
        )
    found = preset_cases("full" if pattern else preset)
    if pattern:
        whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        found = tuple(case for case in found if fnmatch.fnmatchcase(case.name, whole))
    left = [case for case in found if not norms or case.norm in norms]
    if not left:
        raise OptionError(
            explain(
                "the cases to measure match the pattern and the normalizers asked for",
                f"none for {pattern!r} and {', '.join(norms) or 'all normalizers'}",
                "normkit bench --list --preset full shows their names",
            )
        )
    return left


def step_jobs(networks: Sequence[Network], preset: Preset, *, both: bool) -> list[dict[str, Any]]:
    """The training steps to measure, for a worker; ``both`` takes both layouts of all."""
    return [
        {
            "job": "step",
            "factory": network.factory,
            "network": network.name,
            "options": dict(network.options),
            "shape": list(network.shape),
            "layout": layout,
            "seconds": preset.step_seconds,
            "least": preset.least,
        }
        for network in networks
        for layout in (("contiguous", "channels-last") if both else network.layouts)
    ]


def case_jobs(cases: Sequence[Case], preset: Preset, *, compiled: bool) -> list[dict[str, Any]]:
    """The measurements of these cases, for a worker."""
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
                "least": preset.least,
                "seed": number,
            }
            wanted = (case.norm, case.shape, case.layout) in _COMPILED
            if compiled and wanted and (measure, mode) == ("act", "train"):
                job["compiled"] = True
            jobs.append(job)
    return jobs
