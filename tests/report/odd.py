"""Findings as they should not be, or hardly ever are: hostile, empty, far too large."""

from __future__ import annotations

import dataclasses
import math

from normkit.lab.findings import Chart, Comparison, Finding, Line, Reference, Table

POISON = (
    "\"'><img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"
    '<a href="javascript:window.hacked=1">{{7*7}}{% x %}${8*8}%{x}</a>\n--> <!-- ]]> &lt;b&gt;'
)


def poisoned(value: object) -> object:
    """The same value with hostile text in every place that holds text of ours.

    Words that the types fix (a verdict, a role) stay; an address becomes a script's.
    """
    if isinstance(value, str):
        return POISON
    if isinstance(value, tuple):
        return tuple(poisoned(item) if item is not None else None for item in value)
    if isinstance(value, dict):
        return {f"{POISON}{key}": poisoned(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{
                field.name: old
                if field.name in ("word", "role", "kind")
                else "javascript:window.hacked=1"
                if field.name == "url"
                else poisoned(old)
                for field in dataclasses.fields(value)
                for old in [getattr(value, field.name)]
            }
        )
    return value


def bare() -> Finding:
    """A claim of which nothing is known yet."""
    return Finding(
        key="C7",
        title="γ and β give back capacity",
        statement="",
        sources=(Reference("A source without figures", ""),),
        prediction="",
        word="open",
        sentence="So far 0 of 20 runs are done.",
        comparisons=(
            Comparison("?", "points", math.nan, math.nan, math.nan, 0, "open"),
            Comparison("??", "", 0.0, -math.inf, math.inf, 1, "open"),
        ),
        charts=(
            Chart("none", "No curve", "x", "y", (), "Nothing."),
            Chart(
                "gaps",
                "Gaps only",
                "x",
                "y",
                (
                    Line("dead", (1.0, 2.0, 3.0), (None, None, None)),
                    Line("odd", (1.0, math.nan, 3.0), (math.nan, 1.0, math.inf), (0.0,), (2.0,)),
                    Line("one", (2.0,), (1.0,), (0.0,), (2.0,)),
                ),
                "Nothing either.",
                y_log=True,
            ),
        ),
        tables=(
            Table("empty", "Empty", (), ()),
            Table("ragged", "Ragged", ("a", "b"), ((1, math.nan), (None,), ("x", 2.5, 3))),
        ),
        setup=(),
        data="",
        runs=0,
        diverged=0,
        seconds=math.nan,
        records=({"loss": math.inf, "path": math.nan},),
    )


def many(base: Finding, count: int = 24) -> list[Finding]:
    """As many claims as the lab has, each with two charts and more rows than most will have."""
    rows = tuple(
        {**row, "step": step, "train_loss": row["test_accuracy"]}
        for step in range(60)
        for row in base.records
    )
    return [
        dataclasses.replace(
            base, key=f"C{i}", title=f"{base.title}, {i}", records=rows, runs=len(rows)
        )
        for i in range(1, count + 1)
    ]
