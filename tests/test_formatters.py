"""Every function that prints a number prints extreme ones too as a reader expects them."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import normkit
from normkit.bench.summary import Figure
from normkit.bench.terminal import format_value
from normkit.lab.claims.study import charts, endpoints, units
from normkit.lab.findings import Comparison
from normkit.report import intervals, text

EXTREME = [
    0.0, -0.0, math.nan, math.inf, -math.inf, 1e-12, -1e-12, 0.0049, 0.5, 1.0, 9.99, 10.0, 99.95,
    123.4, -123.4, 4321.0, 1e6, -1e6,
]  # fmt: skip
# "nan %", "1.2e+02 %", a bare "inf", several signs, a unit without a number.
WRONG = re.compile(r"\bnan\b|\binf\b|\de[+-]?\d|[-−+]{2}|^\s*%|Infinity|None", re.IGNORECASE)


def _comparison(value: float) -> Comparison:
    return Comparison("how much higher?", "points", value, value, value, 5, "open")


def _interval(comparison: Comparison) -> str:
    shown = intervals.interval(comparison)
    return f"{shown.effect} {shown.bounds}"


def _functions() -> Iterator[tuple[str, Callable[[float], Any]]]:
    """Yield what is called format_… anywhere in the package and takes one number; and others."""
    for module in pkgutil.walk_packages(normkit.__path__, "normkit."):
        if module.name.endswith(("_cpu", "__main__", "lightning")):
            continue
        for name, function in vars(importlib.import_module(module.name)).items():
            if not (inspect.isfunction(function) and name.lstrip("_").startswith("format_")):
                continue
            parameters = list(inspect.signature(function).parameters.values())
            if function.__module__ == module.name and parameters[0].annotation == "float":
                yield f"{module.name}.{name}", function
    for kind in ("PERCENT", "POINTS", "NATS", "DB", "DECADES", "HALVINGS", "NUMBER"):
        unit = getattr(units, kind)
        yield f"{kind}.text", unit.text
        yield f"{kind} on a chart", lambda value, unit=unit: charts.printed(value, unit)
    yield "number", text.number
    yield "a signed number", lambda value: text.number(value, signed=True)
    yield "a number of decimals", lambda value: text.number(value, decimals=2)
    yield "duration", text.duration
    yield "an effect", lambda value: f"{endpoints.Effect(_comparison(value))}"
    yield "an effect alone", lambda value: f"{endpoints.Effect(_comparison(value)):plain}"
    yield "a power of two", lambda value: f"{endpoints.Effect(_comparison(value)):x2}"
    yield "a power of ten", lambda value: f"{endpoints.Effect(_comparison(value)):x10}"
    yield "an interval", lambda value: _interval(_comparison(value))
    yield "a figure", lambda value: format_value(Figure("k", "t", value, "times"))
    yield "a count", lambda value: format_value(Figure("k", "t", value, "cases"))


FUNCTIONS = dict(_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_extreme_values(name: str) -> None:
    wrong = {}
    for value in EXTREME:
        shown = str(FUNCTIONS[name](value))
        if not shown or WRONG.search(shown) or len(shown) > 80:
            wrong[value] = shown
    assert not wrong


def test_formatters_are_found_by_their_names() -> None:
    names = {name.rpartition(".")[2] for name in FUNCTIONS}
    assert {"format_percent", "format_deviations", "format_factor"} <= names


@pytest.mark.parametrize("shown", ["nan %", "1.2e+02 %", "inf σ", "+-3", "−−3", " %", "1e-12"])
def test_wrong_text_is_noticed(shown: str) -> None:
    assert WRONG.search(shown)
