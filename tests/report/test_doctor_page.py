"""Page of a diagnosis: its figures, its pictures, and how it behaves in a real browser."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normkit.doctor import Diagnosis, Finding, Gain
from normkit.doctor.profile import Channels, Profile
from normkit.errors import StoreError
from normkit.report.doctor import render, write
from normkit.report.doctor_charts import diagnosis_charts
from normkit.statistics.estimates.gaps import Gap

POISON = "</script><img src=x onerror=alert(1)>"
GAIN = Gain(79.0, 82.4, 3.4, 2.6, 4.2, "points", 10_000)
CHANNELS = Channels(
    "5", (0.5, 4.0, 1.0), (1.0, 2.0, 0.5), (0.0, 2.0, 1.0), (1.0, 1.0, 1.0), (0.1,) * 3, 16
)


def diagnosis(layers: int = 3, **changes: Any) -> Diagnosis:
    gaps = {f"block.{n}": Gap(0.05 * n, 1 + 0.1 * n, 2.0 * n, 1.0) for n in range(layers)}
    findings = (
        Finding(
            "error",
            ("stem.norm",),
            f"Wrong {POISON}.",
            f"mend({POISON!r})",
            1.0,
            None,
            GAIN,
            "NK104",
        ),
        Finding(
            "warning",
            tuple(f"block.{n}.bn" for n in range(20)),
            "Off.",
            "recalibrate",
            rule="NK290",
        ),
        Finding("note", (), "Of the data.", "shuffle", rule="NK204"),
    )
    one = Diagnosis(
        findings, 79.0, "points", GAIN, "3 rules on 3 layers", ("A note.",), 3, 1.5,
        {"recalibrate": GAIN, "momentum 1,2": GAIN}, Profile(gaps, CHANNELS),
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def test_page_has_figures_findings_and_explanations() -> None:
    page = render(diagnosis(), about={"model": f"train:model {POISON}"})
    text = re.sub(r"<[^>]+>|\s+", " ", page[page.index("<main") :])
    for words in ("79.0 %", "82.4 %", "+3.4", "10,000 evaluation samples", "stem.norm", "NK290"):
        assert words in text.replace("\u00a0", " "), words
    assert text.count("Why, and when it is right") == 3
    assert POISON not in page


def test_page_without_data_or_findings() -> None:
    bare = diagnosis(findings=(), score=None, unit=None, gain=None, tried={}, profile=None)
    page = render(bare, about={})
    assert "Nothing found." in page
    assert "A note." in page
    assert "evaluation now" not in page
    assert 'class="chart"' not in page


def test_charts_hold_what_was_measured() -> None:
    treatments, means, variances, channels, deviations = diagnosis_charts(diagnosis())
    assert treatments.rows[:2] == ("as they are", "of the training batches")
    assert treatments.lines[0].y == (79.0, 82.4, 82.4)
    assert treatments.lines[0].low[1] == pytest.approx(81.6)
    assert means.lines[0].y == (0.0, 0.05, 0.1)
    assert variances.lines[0].y == (1.0, 1.1, 1.2)
    # Sorted; in deviations of the training batches, with the spread of a single batch's mean.
    assert channels.lines[0].y == (0.0, 0.5, 2.0)
    assert channels.lines[1].high == pytest.approx((0.784,) * 3)
    assert deviations.lines[0].y == (0.5, 1.0, 2.0)


def test_loss_is_drawn_as_it_falls() -> None:
    gain = Gain(0.7, 0.5, 0.2, 0.1, 0.3, "loss", 100)
    (chart,) = diagnosis_charts(
        diagnosis(gain=gain, unit="loss", tried={"recalibrate": gain}, profile=None)
    )
    line = chart.lines[0]
    assert line.y == (0.7, 0.5)
    assert (line.low[1], line.high[1]) == pytest.approx((0.4, 0.6))


def test_many_layers_and_figures_that_are_not_finite() -> None:
    many = diagnosis(200)
    assert many.profile is not None
    assert {chart.kind for chart in diagnosis_charts(many)[1:]} == {"line"}
    assert "Largest: block.199 (9.95), block.198" in diagnosis_charts(many)[1].text
    odd = Channels("5", (math.nan, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0), (math.nan,) * 2, 1)
    gaps = {"a": Gap(math.nan, math.inf, math.nan, math.nan)}
    one = dataclasses.replace(many, profile=Profile(gaps, odd))
    charts = diagnosis_charts(one)
    assert charts[1].lines[0].y == (None,)
    assert charts[3].lines[1].high == (None,)
    render(one, about={})
    dead = Channels("5", (0.0,), (1.0,), (0.0,), (0.0,), (0.0,), 4)
    assert len(diagnosis_charts(dataclasses.replace(many, profile=Profile(gaps, dead)))) == 3


def test_a_file_of_others_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(diagnosis(), path, about={})
    write(diagnosis(), path, about={})
    path.write_text("notes of mine")
    with pytest.raises(StoreError, match="did not write"):
        write(diagnosis(), path, about={})


NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"none of {', '.join(NAMES)} is installed")
        pytest.skip("no browser")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    path = write(diagnosis(30), tmp_path / "page.html", about={"model": POISON})
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    figures = page.locator("figure.chart").all()
    assert len(figures) == 5
    for figure in figures:
        figure.evaluate("it => it.scrollIntoView({behavior: 'instant', block: 'center'})")
        figure.locator(".plot.drawn").wait_for(state="attached")
    for summary in page.locator("summary").all():
        summary.click()
    sides = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert sides[0] <= sides[1]
    assert complaints == []
    assert [u for u in requests if not u.startswith((path.as_uri(), "blob:", "data:"))] == []
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{colour[4:-1]}]")) > 384) == (scheme == "light")
    context.close()
