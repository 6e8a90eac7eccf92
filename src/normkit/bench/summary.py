"""Summarize records as figures, each with its target and whether it is reached."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

__all__ = [
    "MIN_RATIO",
    "NAMES",
    "Figure",
    "geometric_mean",
    "ratio_target",
    "summarize",
    "tuned_gain",
]

Record = Mapping[str, Any]

MIN_RATIO = 0.95
"""Least speed of any layer relative to PyTorch's."""

NAMES = {
    "bn": "BatchNorm",
    "gn": "GroupNorm",
    "ln": "LayerNorm",
    "in": "InstanceNorm",
    "rms": "RMSNorm",
}
# Target speed relative to PyTorch, forward and backward, by (normalizer, measure, allocator).
_RATIOS: dict[tuple[str, str, str], float] = {
    ("bn", "act", "default"): 5.0,
    ("bn", "act", "tuned"): 3.0,
    ("bn", "alone", "default"): 3.0,
    ("bn", "alone", "tuned"): 3.0,
    **{
        (norm, "act", allocator): 2.0
        for norm in ("gn", "ln", "in", "rms")
        for allocator in ("default", "tuned")
    },
}
_TRAIN_COPIES = {"contiguous": 4.0, "channels-last": 5.0}
_EVAL_COPIES = 1.3
_STEPS = {"resnet18": 1.25, "densenet": 1.3}
_WORDS = {"act": " + ReLU", "alone": " alone", "residual": " + residual + ReLU"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure; ``value`` should be at least, or at most, ``target``, unless that is None."""

    key: str
    text: str
    value: float
    unit: str
    target: float | None = None
    bound: Literal["at least", "at most"] = "at least"
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """True if the target is reached; None without a target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


def geometric_mean(values: Iterable[float], weights: Iterable[float] | None = None) -> float:
    """Return the geometric mean: ratios of 2 and 1/2 cancel.

    >>> geometric_mean([2.0, 0.5]), round(geometric_mean([4.0, 1.0], [1, 3]), 3)
    (1.0, 1.414)
    """
    logs = [math.log(value) for value in values]
    shares = [1.0] * len(logs) if weights is None else list(weights)
    weighted = sum(log * share for log, share in zip(logs, shares, strict=True))
    return math.exp(weighted / sum(shares))


def ratio_target(norm: str, measure: str, allocator: str) -> float | None:
    """Return the target speed of a kind of layer relative to PyTorch; None if there is none."""
    return _RATIOS.get((norm, measure, allocator))


def summarize(
    cases: Sequence[Record], steps: Sequence[Record] = (), *, l2_bytes: int | None, libc: str = ""
) -> list[Figure]:
    """Return all figures that the records allow, the most important first.

    Args:
        l2_bytes: size of the second-level cache, if known.
        libc: name of the C library, whose allocator the setting "tuned" belongs to.
    """
    return [
        *_ratios(cases),
        *_slow(cases),
        *_copies([r for r in cases if r["bytes"] > (l2_bytes or 2**20)], l2_bytes or 2**20),
        *_compiled(cases),
        *filter(None, [tuned_gain(cases, steps, libc=libc)]),
        *_steps(steps),
    ]


def _select(records: Sequence[Record], **fields: Any) -> list[Record]:
    return [r for r in records if all(r[name] == value for name, value in fields.items())]


def _ratios(cases: Sequence[Record]) -> Iterable[Figure]:
    for measure in ("act", "alone", "residual"):
        for norm, name in NAMES.items():
            for allocator in ("default", "tuned"):
                selected = _select(
                    cases, norm=norm, measure=measure, mode="train", allocator=allocator
                )
                if not selected:
                    continue
                ratios = [r["ratio"] for r in selected]
                by_times = geometric_mean(ratios, [r["times"] for r in selected])
                yield Figure(
                    key=f"{norm}-{measure}-{allocator}",
                    text=f"{name}{_WORDS[measure]}, forward and backward, {allocator} allocator",
                    value=geometric_mean(ratios),
                    unit="times as fast as torch.nn",
                    target=ratio_target(norm, measure, allocator),
                    note=f"geometric mean of {len(selected)} cases from {min(ratios):.2f} to "
                    f"{max(ratios):.2f}; weighted by how often they occur {by_times:.2f}",
                )


def _slow(cases: Sequence[Record]) -> Iterable[Figure]:
    for mode, words in (("train", "forward and backward"), ("eval", "evaluation")):
        selected = _select(cases, mode=mode)
        if not selected:
            continue
        slow = sorted((r for r in selected if r["ratio"] < MIN_RATIO), key=lambda r: r["ratio"])
        listed = [f"{r['case']} {r['measure']} {r['allocator']} {r['ratio']:.2f}" for r in slow]
        more = f"; and {len(listed) - 8} more" if len(listed) > 8 else ""
        yield Figure(
            key=f"slow-{mode}",
            text=f"cases below {MIN_RATIO} of torch.nn's speed, {words}, of {len(selected)}",
            value=float(len(slow)),
            unit="cases",
            target=0.0,
            bound="at most",
            note="; ".join(listed[:8]) + more,
        )


def _copies(cases: Sequence[Record], l2_bytes: int) -> Iterable[Figure]:
    size = f"above {l2_bytes / 2**20:g} MiB"
    for layout, limit in _TRAIN_COPIES.items():
        yield from _within(
            _select(
                cases, norm="bn", measure="act", mode="train", allocator="tuned", layout=layout
            ),
            limit,
            key=f"copies-{layout}",
            text=f"BatchNorm + ReLU {size}, {layout}, tuned allocator",
        )
    yield from _within(
        _select(cases, norm="bn", measure="act", mode="eval", allocator="tuned"),
        _EVAL_COPIES,
        key="evaluation",
        text=f"BatchNorm + ReLU {size}, evaluation mode, tuned allocator",
    )


def _within(selected: Sequence[Record], limit: float, *, key: str, text: str) -> Iterable[Figure]:
    if not selected:
        return
    worst = max(selected, key=lambda r: r["copies"])
    inside = sum(r["copies"] <= limit for r in selected)
    yield Figure(
        key=key,
        text=text,
        value=worst["copies"],
        unit=f"copies at worst, limit {worst['limit_copies']:g}",
        target=limit,
        bound="at most",
        note=f"median {median(r['copies'] for r in selected):.2f}; {inside} of {len(selected)} "
        f"cases within; worst {worst['case']}",
    )


def _compiled(cases: Sequence[Record]) -> Iterable[Figure]:
    for allocator in ("default", "tuned"):
        selected = [r for r in _select(cases, allocator=allocator) if "compiled_ratio" in r]
        if selected:
            yield Figure(
                key=f"compiled-{allocator}",
                text=f"against torch.compile of torch.nn's layers, {allocator} allocator",
                value=geometric_mean([r["compiled_ratio"] for r in selected]),
                unit="times as fast as torch.compile",
                note="; ".join(f"{r['case']} {r['compiled_ratio']:.2f}" for r in selected),
            )


def tuned_gain(cases: Sequence[Record], steps: Sequence[Record], *, libc: str) -> Figure | None:
    """Compare the allocator's settings, which are measured one after the other.

    None where not both were measured, or the C library has no such setting.
    """
    pairs = _by_allocator(_select(cases, mode="train"), "case", "measure")
    pairs = pairs or _by_allocator(steps, "network", "layout")
    if not pairs or not libc.startswith("glibc"):
        return None
    ours, theirs = (
        geometric_mean([default["ms"][side] / tuned["ms"][side] for default, tuned in pairs])
        for side in ("ours", "torch")
    )
    return Figure(
        key="tuned",
        text="tuned allocator, as normkit.keep_freed_memory() sets it in a program",
        value=ours,
        unit="times as fast as with the default allocator",
        note=f"with torch.nn {theirs:.2f}; geometric means of {len(pairs)} training measurements",
    )


def _by_allocator(records: Sequence[Record], *names: str) -> list[tuple[Record, Record]]:
    """Return each measurement made with the default and with the tuned allocator."""
    tuned = {tuple(r[name] for name in names): r for r in _select(records, allocator="tuned")}
    default = {tuple(r[name] for name in names): r for r in _select(records, allocator="default")}
    return [(default[key], tuned[key]) for key in default if key in tuned]


def _steps(steps: Sequence[Record]) -> Iterable[Figure]:
    for r in steps:
        low, high = r["ratio_interval"]
        words = [f"[{low:.2f}, {high:.2f}]"]
        for what, times in (("step", r["ms"]), *_parts(r)):
            words.append(f"{what} {times['torch']:.1f} and {times['ours']:.1f} ms")
        if r.get("peak"):
            live, rss = (
                [r["peak"][side][name] for side in ("torch", "ours")]
                for name in ("live_bytes", "rss_bytes")
            )
            words.append(f"peak memory {_mib(live[0])} and {_mib(live[1])} MiB")
            if None not in rss:
                words.append(f"growth of the process {_mib(rss[0])} and {_mib(rss[1])} MiB")
        yield Figure(
            key=f"step-{r['network']}-{r['layout']}-{r['allocator']}",
            text=f"training step of {r['network']}, {'×'.join(map(str, r['shape']))}, "
            f"{r['layout']}, {r['allocator']} allocator",
            value=r["ratio"],
            unit="times as fast as with torch.nn",
            target=_STEPS.get(r["network"]) if r["layout"] == "contiguous" else None,
            note="; ".join(words),
        )


def _parts(step: Record) -> Iterable[tuple[str, dict[str, float]]]:
    for kind, word in (("norm", "normalization"), ("convolution", "convolution")):
        yield (
            word,
            {
                side: parts[f"{kind}_forward"] + parts[f"{kind}_backward"]
                for side, parts in step["parts_ms"].items()
            },
        )


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f}"
