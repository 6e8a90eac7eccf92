"""Tables of docs/adaptation.md, from benchmarks/adaptation.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

BEGIN, END = "<!-- adaptation: begin -->", "<!-- adaptation: end -->"
SHIFTED = "mean of eight"


def interval(values: Sequence[float]) -> str:
    """Mean with half the width of its 95 % interval."""
    t = float(stats.t.ppf(0.975, len(values) - 1))
    return f"{fmean(values):.1f} ± {t * stdev(values) / math.sqrt(len(values)):.1f}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def ways_of(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what was measured by corruption."""
    return [name for name in seeds[0] if name not in ("small", "order")]


def corruptions(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy by corruption, mean over the severities."""
    ways = ways_of(seeds)
    names = list(seeds[0][ways[0]])

    def cell(name: str, way: str) -> str:
        return interval([fmean(seed[way][name]) for seed in seeds])

    def over_all(way: str) -> str:
        return interval(
            [fmean(fmean(seed[way][n]) for n in names if n != "none") for seed in seeds]
        )

    rows = [[name, *(cell(name, way) for way in ways)] for name in names]
    rows.append([f"**{SHIFTED}**", *(f"**{over_all(way)}**" for way in ways)])
    return grid(["corruption", *ways], rows)


def strengths(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy by severity, mean over the corruptions."""
    ways = ways_of(seeds)
    names = [name for name in seeds[0][ways[0]] if name != "none"]

    def cell(at: int, way: str) -> str:
        return interval([fmean(seed[way][n][at] for n in names) for seed in seeds])

    count = len(seeds[0][ways[0]][names[0]])
    return grid(
        ["strength", *ways],
        [[str(at + 1), *(cell(at, way) for way in ways)] for at in range(count)],
    )


def small(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy by size of batch and prior."""
    sizes = list(seeds[0]["small"])
    priors = list(seeds[0]["small"][sizes[-1]])
    rows = [
        [size, *(interval([seed["small"][size][p] for seed in seeds])
                 if p in seeds[0]["small"][size] else "–" for p in priors)]
        for size in sizes
    ]  # fmt: skip
    return grid(["batch", *(f"prior {p}" for p in priors)], rows)


def order(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Streams taken for ordered, of how many."""
    rows = []
    for size in dict.fromkeys(one["size"] for one in seeds[0]["order"]):
        row = [str(size)]
        for how in ("sorted", "shuffled"):
            of = [o for s in seeds for o in s["order"] if (o["size"], o["stream"]) == (size, how)]
            noticed = [o for o in of if o["noticed"]]
            row.append(f"{len(noticed)} of {len(of)}")
            if how == "sorted":
                row.append(str(max(o["batches"] for o in noticed)) if noticed else "–")
        rows.append(row)
    return grid(
        ["batch", "sorted: noticed", "after at most (groups)", "shuffled: false alarms"], rows
    )


def pitch(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Accuracy of the pitch tracker."""
    ways = list(next(iter(found.values())))
    rows = [[name, *(interval(rows[way]) for way in ways)] for name, rows in found.items()]
    return grid(["noise", *ways], rows)


def text_of(result: Mapping[str, Any]) -> str:
    """All tables, with their titles."""
    seeds = result["seeds"]
    parts = {
        "Accuracy (%), mean over five strengths": corruptions(seeds),
        "By strength, mean of the eight corruptions": strengths(seeds),
        "Small batches: mean of the eight at strength 3": small(seeds),
        "Streams in order": order(seeds),
    }
    if "torchcrepe" in result:
        parts["torchcrepe (tiny): pitch within 50 cents (%)"] = pitch(result["torchcrepe"])
    return "\n\n".join("\n".join([f"### {title}", "", *lines]) for title, lines in parts.items())


def write(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables into the page, between its marks, and print them."""
    text = text_of(result)
    print(text)
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
