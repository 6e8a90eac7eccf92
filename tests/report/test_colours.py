"""Colours and signs: one arm, one colour; and both themes can be told apart by all eyes."""

from __future__ import annotations

import itertools
import re
from types import ModuleType

import numpy as np
import pytest

from normkit.lab.claims.registry import all_claims
from normkit.lab.findings import Chart, Line
from normkit.lab.judge import finding
from normkit.report import charts
from normkit.report.arms import ARMS
from normkit.report.page import render
from tests.lab.claims.invented import evidence

Theme = dict[str, np.ndarray]

# Behind text, or lines that nothing hangs on.
GROUNDS = {"paper", "raised", "band", "rule", "note", "rule-strong", "note-edge"}

# Seen without long, or without medium, cones: Machado, Oliveira & Fernandes 2009, severity 1.
EYES = {
    "all cones": np.eye(3),
    "no red": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "no green": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def test_an_arm_keeps_its_colour_and_no_chart_shows_one_twice(samples: ModuleType) -> None:
    every = [chart for finding in samples.realistic() for chart in finding.charts]
    colours = charts.palette(every)
    for chart in every:
        drawn = charts.keys(chart, colours)
        assert len({(key.colour, key.sign, key.dash, key.role) for key in drawn}) == len(drawn)
        for line, key in zip(chart.lines, drawn, strict=True):
            assert key.colour == colours.get(charts.arm(line), charts.INK)
    # Several curves of one arm share its colour and nothing else.
    alike = Chart("k", "t", "x", "y", tuple(Line(f"{i}", (), (), arm="a") for i in range(5)), "")
    drawn = charts.keys(alike, charts.palette([alike]))
    assert len({key.colour for key in drawn}) == 1
    assert len({key.sign for key in drawn}) == 5
    # More arms than colours, two at a time: no two of one chart are alike.
    pairs = [
        Chart("k", "t", "x", "y", tuple(Line(f"{n}", (), ()) for n in (i, i + 1)), "")
        for i in range(30)
    ]
    colours = charts.palette(pairs)
    assert all(colours[f"{i}"] != colours[f"{i + 1}"] for i in range(30))


def test_an_arm_has_one_colour_on_every_page() -> None:
    charts_of = {
        claim.key: [
            chart
            for preset in claim.presets
            if preset != "paper"
            for chart in finding(claim, evidence(claim, preset), data="").charts
        ]
        for claim in all_claims().values()
    }
    alone = {key: charts.palette(drawn) for key, drawn in charts_of.items()}
    together = charts.palette(chart for drawn in charts_of.values() for chart in drawn)
    for key, drawn in charts_of.items():
        # Whatever else is on the page.
        assert alone[key] == {arm: together[arm] for arm in alone[key]}
        for chart in drawn:
            arms = {charts.arm(line) for line in chart.lines if charts.arm(line)}
            assert arms <= ARMS.keys(), (key, chart.key)
            own = {charts.arm(line) for line in chart.lines if line.role == "data"}
            assert len({ARMS[arm] for arm in own}) == len(own), (key, chart.key)


def test_bands_end_where_a_logarithmic_axis_does() -> None:
    line = Line("a", (1.0, 2.0), (0.5, 2.0), (-1.0, None), (1.0, None))
    drawn = charts.spec(Chart("k", "t", "x", "y", (line,), "", y_log=True), {"a": 0})
    assert drawn["lines"][0]["low"] == [0.5, None]


def test_dots_of_one_row_stand_apart_and_keep_its_name() -> None:
    lines = (
        Line("ours", (0, 1, 7), (1.0, None, 9.0), (0.5, None, 8.0), (1.5, None, 10.0), failed=(1,)),
        Line("theirs", (0,), (2.0,), role="published"),
    )
    chart = Chart("k", "t", "arm", "gain", lines, "", kind="dots", rows=("conv", "dense"))
    ours, theirs = charts.spec(chart, {})["lines"]
    # What has no row is left out.
    assert ours["value"] == [1, None]
    assert ours["place"][0] < 0 < theirs["place"][0]
    assert ours["place"][1] == 1
    assert ours["failed"] == [1]
    found = charts.numbers(chart)
    assert found is not None
    assert found.columns == ("arm", "ours", "theirs, published")
    assert [name for name, _ in found.rows] == ["conv", "dense"]
    assert found.rows[1][1] == (charts.Cell(None, None, None, True), None)


def test_two_points_at_one_place_are_drawn_both_and_not_tabled() -> None:
    line = Line("least to greatest", (5.0, 5.0), (1.0, 2.0))
    chart = Chart("k", "t", "x", "y", (line,), "")
    assert charts.spec(chart, {})["lines"][0]["value"] == [1, 2]
    assert charts.numbers(chart) is None


def test_the_name_at_a_curves_end_leaves_out_how_many_were_averaged() -> None:
    lines = (
        Line("with BN", (1.0,), (2.0,), note="mean of 10"),
        Line("with BN", (1.0,), (2.0,), role="published", note="least, median, greatest"),
        Line("γ (1)", (1.0,), (2.0,)),
    )
    chart = Chart("k", "t", "x", "y", lines, "")
    drawn = charts.spec(chart, {})["lines"]
    assert [line["short"] for line in drawn] == ["with BN", "with BN, publ.", "γ (1)"]
    assert [key.note for key in charts.keys(chart, {})] == [line.note for line in lines]


@pytest.fixture(scope="module")
def themes() -> list[Theme]:
    """The style sheet's themes, light and dark, each colour as linear red, green and blue."""
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", body))
        for body in re.findall(r"\{([^{}]*color-scheme[^{}]*)\}", render([], about={}))
    ]
    light, dark, chosen = found
    assert dark == chosen
    return [{name: linear(colour) for name, colour in theme.items()} for theme in (light, dark)]


def linear(colour: str) -> np.ndarray:
    """Linear light of an sRGB colour."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Ottosson 2020: a space in which equal steps look equal."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    axes = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return axes @ np.cbrt(cones @ np.clip(light, 0, 1))


def test_colours_stand_out_from_the_paper(themes: list[Theme]) -> None:
    for theme in themes:
        assert len([name for name in theme if name.startswith("arm-")]) == charts.COLOURS + 1
        bright = {name: float(rgb @ [0.2126, 0.7152, 0.0722]) for name, rgb in theme.items()}
        for name in theme.keys() - GROUNDS:
            # WCAG 2: 3:1 for what is drawn (1.4.11), 4.5:1 for text (1.4.3).
            drawn = name.startswith("arm-")
            for ground in ("paper",) if drawn or name == "ink-quiet" else ("paper", "raised"):
                dim, light = sorted((bright[ground], bright[name]))
                assert (light + 0.05) / (dim + 0.05) >= (3.0 if drawn else 4.5), (name, ground)


@pytest.mark.parametrize("eyes", EYES)
def test_arms_can_be_told_apart(themes: list[Theme], eyes: str) -> None:
    for theme in themes:
        arms = [oklab(EYES[eyes] @ theme[f"arm-{i}"]) for i in range(charts.COLOURS)]
        for a, b in itertools.combinations(range(charts.COLOURS), 2):
            # A just noticeable step is about 0.02; thin lines want several. The first five, which
            # most charts live on, are held further apart than the rest.
            least = 0.12 if b < 5 else 0.09
            assert np.linalg.norm(arms[a] - arms[b]) >= least, (a, b)
