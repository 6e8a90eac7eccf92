"""Limits that a run must show, and its page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from normkit.bench.markdown import table
from normkit.bench.summary import geometric_mean

__all__ = ["Limit", "limits", "lines", "page"]

Record = Mapping[str, Any]

LARGE = 64e6
"""Bytes of an input from which on a layer has to reach a share of the speed of copying."""


class Limit(NamedTuple):
    """A figure with the least value that it must have; ``value`` is None if nothing was timed."""

    text: str
    value: float | None
    least: float
    note: str

    @property
    def word(self) -> str:
        """Verdict on the figure."""
        if self.value is None:
            return "not measured"
        return "pass" if self.value >= self.least else "FAIL"


def limits(layers: Sequence[Record]) -> list[Limit]:
    """Return the limits, from the records of layers that were timed without compiling."""
    training = [r for r in layers if r["mode"] == "training"]
    groups = [r for r in training if (r["norm"], r["batch"]) == ("gn", 1)]
    batch = [r for r in training if r["norm"] == "bn" and not r["residual"]]
    large = [r for r in training if r["bytes"] > LARGE]
    return [
        _mean("GroupNorm + SiLU at batch 1, forward and backward, contiguous, times torch.nn",
              [r for r in groups if r["layout"] == "contiguous"], 5.0),
        _mean("BatchNorm + ReLU, forward and backward, contiguous, times torch.nn",
              [r for r in batch if r["layout"] == "contiguous"], 1.5),
        _mean("BatchNorm + ReLU, forward and backward, channels-last, times torch.nn",
              [r for r in batch if r["layout"] == "channels-last"], 0.95),
        _worst("inputs above 64 MB, forward and backward, share of the speed of copying", large,
               0.8),
    ]  # fmt: skip


def _mean(text: str, records: Sequence[Record], least: float) -> Limit:
    ratios = [r["ratios"]["torch"][0] for r in records]
    if not ratios:
        return Limit(text, None, least, "")
    note = f"geometric mean of {len(ratios)}, from {min(ratios):.2f} to {max(ratios):.2f}"
    return Limit(text, geometric_mean(ratios), least, note)


def _worst(text: str, records: Sequence[Record], least: float) -> Limit:
    if not records:
        return Limit(text, None, least, "")
    worst = min(records, key=lambda r: float(r["of_copy"]))
    middle = median(r["of_copy"] for r in records)
    inside = sum(r["of_copy"] >= least for r in records)
    note = (
        f"the lowest of {len(records)}: {worst['case']}, {worst['layout']}; median {middle:.2f}, "
        f"{inside} reach it"
    )
    return Limit(text, worst["of_copy"], least, note)


def page(results: Record) -> str:
    """Return a run as a Markdown page."""
    about = results["machine"]
    parts = [
        f"# Layers on {about['card']}",
        "Measured with `python -m benchmarks.gpu`; not written by hand.",
        *["Toy sizes, to try the script: times and limits mean nothing."] * results["toy"],
        table(("", ""), [(name, str(value)) for name, value in about.items()]),
        "## Verdicts",
        table(("part", "verdict", "more"), _verdicts(results)),
        *_limits(results),
        *_skipped(results),
        *_layers(results),
        *_steps(results),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(results: Record) -> Iterator[tuple[str, str, str]]:
    for name, part in results["parts"].items():
        yield name, part["verdict"], _escape(part.get("detail", ""))


def _limits(results: Record) -> list[str]:
    if not results["layers"]:
        return []
    rows = [
        (each.text, "" if each.value is None else f"{each.value:.2f}", f"{each.least:g}", each.word,
         _escape(each.note))
        for each in limits(results["layers"])
    ]  # fmt: skip
    return ["## Limits", table(("what", "measured", "at least", "", "of"), rows)]


def _skipped(results: Record) -> list[str]:
    if not results["skipped"]:
        return []
    return ["## Skipped", "\n".join(f"- {line}" for line in results["skipped"])]


def _layers(results: Record) -> list[str]:
    text = []
    for name, title in (("layers", "Layers"), ("compiled", "Layers, compiled too")):
        records = results[name]
        if not records:
            continue
        sides = list(dict.fromkeys(side for r in records for side in r["ms"] if side != "copy"))
        rows = [
            (
                r["case"], r["network"], "cl" if r["layout"] == "channels-last" else "", r["mode"],
                *(f"{r['ms'][side]:.4f}" if side in r["ms"] else "" for side in sides),
                f"{r['ratios']['torch'][0]:.2f}",
                f"{r['gb_per_s']:.0f}", f"{100 * r['of_copy']:.0f}", r["computed_by"],
            )
            for r in records
        ]  # fmt: skip
        head = ("layer", "network", "", "mode", *(f"{side}, ms" for side in sides),
                "times torch.nn", "GB/s", "% of copy", "computed by")  # fmt: skip
        text += [f"## {title}", _METHOD, table(head, rows)]
    return text


_METHOD = (
    "cl: channels-last. Medians of the time between two events on the device, all sides in turn, "
    "the caches overwritten before each. GB/s: bytes that the layer has to read and write "
    "(forward: the input twice and the output; backward: input and gradient twice and the input's "
    "gradient; rows once) per second; % of copy: relative to the rate of copying the input. What "
    "a cache holds between two passes can exceed 100."
)


def _steps(results: Record) -> list[str]:
    if not results["steps"]:
        return []
    rows = [
        (
            r["network"], "×".join(map(str, r["shape"])), r["layout"],
            "yes" if r["compiled"] else "",
            *(f"{r['ms'][side]:.2f}" for side in ("torch", "ours")),
            "{:.2f} [{:.2f}, {:.2f}]".format(*r["ratio"]),
            *(_mib(r["peak_bytes"].get(side)) for side in ("torch", "ours")),
        )
        for r in results["steps"]
    ]  # fmt: skip
    head = ("network", "batch", "layout", "compiled", "torch.nn, ms", "normkit, ms",
            "times torch.nn", "torch.nn, peak MiB", "normkit, peak MiB")  # fmt: skip
    return ["## Training steps, autocast to bfloat16", table(head, rows)]


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.0f}"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def lines(rows: Iterable[Limit]) -> list[str]:
    """Return the limits as lines for a terminal."""
    words = []
    for each in rows:
        value = "-"
        if each.value is not None:
            value = f"{each.value:.2f}, at least {each.least:g}; {each.note}"
        words.append(f"{each.word:13}{each.text}: {value}")
    return words
