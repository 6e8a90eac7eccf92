"""Advice from the results of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normkit.bench.summary import MIN_RATIO, NAMES, geometric_mean, tuned_gain

__all__ = ["advice"]

Record = Mapping[str, Any]

WORTHWHILE = 1.05
"""A gain is named from here on."""
WIDE = 0.2
"""Half of the intervals are wider than this, as a share: something else was running."""


def advice(results: Mapping[str, Any]) -> list[str]:
    """Return what to do, by what was measured, the most important first; a sentence or two each."""
    cases, steps = results["cases"], results["steps"]
    lines = [_kernels(results["machine"]), _gain(cases, steps), _allocator(results), _slower(cases)]
    return [line for line in (*lines, _busy(cases)) if line]


def _kernels(machine: Mapping[str, Any]) -> str:
    kernels = str(machine.get("kernels", ""))
    if not kernels.startswith("portable"):
        return ""
    return f"The fused kernels were not used: {kernels.partition(': ')[2]}."


def _gain(cases: Sequence[Record], steps: Sequence[Record]) -> str:
    """Say what converting a model brings, and how."""
    by_norm = {
        name: [r["ratio"] for r in cases
               if (r["norm"], r["measure"], r["mode"]) == (norm, "act", "train")]
        for norm, name in NAMES.items()
    }  # fmt: skip
    gains = {name: geometric_mean(ratios) for name, ratios in by_norm.items() if ratios}
    gains = {name: gain for name, gain in gains.items() if gain >= WORTHWHILE}
    if not gains:
        return ""
    listed = ", ".join(f"{name} {gain:.1f}" for name, gain in gains.items())
    whole = [f"{r['network']} {r['ratio']:.2f}" for r in steps if r["ratio"] >= WORTHWHILE]
    text = (
        "nk.accelerate(model) replaces a model's layers by normkit's, with the activation behind "
        f"them: as many times as fast in training, layer by layer: {listed}."
    )
    return f"{text} Whole training steps: {', '.join(dict.fromkeys(whole))}." if whole else text


def _allocator(results: Mapping[str, Any]) -> str:
    figure = tuned_gain(
        results["cases"], results["steps"], libc=results["machine"].get("libc") or ""
    )
    if figure is None or figure.value < WORTHWHILE:
        return ""
    return (
        "nk.keep_freed_memory(), once at the start of a program, keeps memory that a step frees: "
        f"normkit's layers are {figure.value:.1f} times as fast with it here."
    )


def _slower(cases: Sequence[Record]) -> str:
    slow = sorted((r for r in cases if r["ratio"] < MIN_RATIO), key=lambda r: float(r["ratio"]))
    if not slow:
        return ""
    norm, _, size, layout = slow[0]["case"].split("/")
    worst = f"{NAMES.get(norm, norm)} of {size.replace('x', '×')}, {layout}"
    return (
        f"{len(slow)} of {len(cases)} measurements are slower than torch.nn, the slowest {worst}, "
        f"at {slow[0]['ratio']:.2f} of its speed: keep torch.nn's layers where most are such."
    )


def _busy(cases: Sequence[Record]) -> str:
    if not cases:
        return ""
    widths = sorted((r["ratio_interval"][1] - r["ratio_interval"][0]) / r["ratio"] for r in cases)
    if widths[len(widths) // 2] <= WIDE:
        return ""
    return "Intervals are wide, as on a machine that is busy: measure again when it is idle."
