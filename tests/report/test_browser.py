"""The page in a real browser: what it draws, what it saves, what it never does."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from normkit.lab.findings import Chart, Line
from normkit.report import write
from tests.report.browsing import Visit, chromium

api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    """Chromium, for the tests of this file only."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(
    samples: ModuleType, odd: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("report")
    hostile = {odd.POISON: odd.POISON, "notice": odd.POISON}
    return {
        name: write(findings, folder / f"{name}.html", about=about)
        for name, findings, about in (
            ("realistic", samples.realistic(), samples.ABOUT),
            ("bare", [odd.bare()], {}),
            ("tour", samples.tour(), {"notice": "The study is still running."}),
            ("empty", [], {}),
            ("hostile", [odd.poisoned(samples.c1())], hostile),
            ("many", odd.many(samples.c1()), samples.ABOUT),
        )
    }


@pytest.fixture(scope="module")
def desk(browser: api.Browser, files: dict[str, Path]) -> Iterator[Visit]:
    """The realistic page at a desk, for tests that leave it as they found it."""
    visit = Visit(browser, files["realistic"], viewport={"width": 1280, "height": 800})
    yield visit
    visit.check()
    visit.context.close()


@pytest.fixture
def visit(browser: api.Browser, files: dict[str, Path]) -> Iterator[object]:
    """Open a page by its name; at the end of the test it must not have misbehaved."""
    visits: list[Visit] = []

    def go(name: str, **options: object) -> Visit:
        visits.append(Visit(browser, files[name], **options))
        return visits[-1]

    yield go
    for each in visits:
        each.check()
        each.context.close()


@pytest.mark.parametrize("width", [1280, pytest.param(768, marks=pytest.mark.slow), 360])
def test_charts_are_drawn_and_nothing_sticks_out(desk: Visit, width: int) -> None:
    page = desk.page
    page.set_viewport_size({"width": width, "height": 800})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for key in desk.claims():
            article = desk.open(key)
            desk.read()
            for figure in article.locator("figure.chart").all():
                curves = figure.locator(".scatterlayer .trace").count()
                assert curves >= figure.locator(".legend button").count()
                assert figure.locator(".plot").evaluate("it => it.scrollWidth <= it.clientWidth")
            desk.unfold()
            assert desk.faults() == {}, key
        desk.close()
        assert desk.faults() == {}
    page.set_viewport_size({"width": 1280, "height": 800})


def test_curves_are_named_at_their_ends_where_there_is_room(desk: Visit) -> None:
    desk.page.set_viewport_size({"width": 1280, "height": 800})
    figure = desk.open("C20").locator("figure")
    desk.read()
    names = figure.locator(".annotation-text")
    said = ["GroupNorm, ImageNet, published", "LayerNorm", "GroupNorm", "BatchNorm"]
    assert {name.rstrip("…")[:14] for name in names.all_text_contents()} >= {
        name[:14] for name in said
    }
    # No two on top of each other.
    tops = sorted(box["y"] for name in names.all() for box in [name.bounding_box()] if box)
    assert all(b - a >= 14 for a, b in itertools.pairwise(tops))
    desk.page.set_viewport_size({"width": 360, "height": 800})
    names.first.wait_for(state="detached")
    desk.page.set_viewport_size({"width": 1280, "height": 800})
    names.first.wait_for(state="attached")


def test_marks_of_an_axis_do_not_run_into_each_other(browser: api.Browser, odd, tmp_path) -> None:
    sizes = (11_384.0, 12_844.0, 176_258.0, 11_180_000.0)
    lines = tuple(Line(f"{size}", (size,), (1.0,)) for size in sizes)
    chart = Chart("k", "Parameters", "parameters", "accuracy", lines, "", x_log=True)
    finding = dataclasses.replace(odd.bare(), charts=(chart,))
    visited = Visit(browser, write([finding], tmp_path / "r.html", about={}), "#C7")
    visited.read()
    ticks = visited.page.locator(".xtick text")
    boxes = sorted(box["x"] for tick in ticks.all() for box in [tick.bounding_box()] if box)
    assert 2 <= len(boxes) < len(sizes)
    assert all(b - a > 40 for a, b in itertools.pairwise(boxes))
    visited.check()
    visited.context.close()


def test_a_failure_is_seen_and_told(desk: Visit) -> None:
    for key, nth, crosses in (("C3", 0, 3), ("C13", 1, 1)):
        figure = desk.open(key).locator("figure").nth(nth)
        desk.read()
        assert figure.get_by_text("diverged or did not learn").first.is_visible()
        thin = figure.locator(".xy2 .point, .x2y .point")
        assert thin.count() == crosses
    # Seen without colour: a cross is no other curve's sign.
    dots = desk.page.locator("#C13 figure >> nth=1")
    dots.evaluate("it => it.scrollIntoView({behavior: 'instant', block: 'center'})")
    box = dots.locator(".x2y .point").first.bounding_box()
    assert box is not None
    desk.page.mouse.move(box["x"] - 40, box["y"])
    desk.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    label = dots.locator(".hoverlayer .hovertext")
    label.first.wait_for()
    assert "before the first layer" in (label.first.text_content() or "")
    assert "did not learn" in (label.first.text_content() or "")


def test_a_page_of_many_claims_draws_what_is_near(visit, files: dict[str, Path]) -> None:
    assert files["many"].stat().st_size < 15_000_000
    page = visit("many", viewport={"width": 1280, "height": 800})
    page.page.locator("#title").wait_for()
    # Cards have pictures of their own, and only what is opened is drawn.
    assert page.page.locator(".plot.drawn").count() == 0
    page.open("C24")
    page.page.locator("#C24 figure").last.scroll_into_view_if_needed()
    page.page.locator("#C24 .plot.drawn").last.wait_for()
    assert page.page.locator(".plot.drawn").count() <= 2
    with page.page.expect_download() as waiting:
        page.page.locator("#C24 [data-save=csv]").click()
    rows = waiting.value.path().read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1201


@pytest.mark.slow
def test_a_whole_study_in_one_page(
    browser: api.Browser, samples: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 claims of 80 runs each: how heavy the page is, and how long it takes, for the log."""
    path = write(samples.study(), tmp_path / "study.html", about=samples.ABOUT)
    size = path.stat().st_size
    without = [dataclasses.replace(each, records=()) for each in samples.study()]
    bare = write(without, tmp_path / "bare.html", about=samples.ABOUT).stat().st_size
    begun = time.perf_counter()
    visited = Visit(browser, path, viewport={"width": 1280, "height": 800})
    loaded = time.perf_counter() - begun
    tall = visited.page.evaluate("document.documentElement.scrollHeight") / 800
    begun = time.perf_counter()
    for key in visited.claims():
        visited.open(key)
        visited.read()
    drawn = time.perf_counter() - begun
    charts = visited.page.locator("figure.chart").count()
    with capsys.disabled():
        print(
            f"\n{size / 1e6:.2f} MB, of which data {(size - bare) / 1e6:.2f} MB; "
            f"{tall:.1f} screens; opened in {loaded:.1f} s; "
            f"all {charts} charts drawn in {drawn:.1f} s"
        )
    assert size < 15_000_000
    assert loaded < 5
    assert tall < 20
    visited.check()
    visited.context.close()


def test_downloads_hold_the_data(desk: Visit, samples: ModuleType) -> None:
    page = desk.page
    desk.open("C1")
    with page.expect_download() as waiting:
        page.locator("#C1 [data-save=csv]").click()
    assert waiting.value.suggested_filename == "normkit-C1.csv"
    text = waiting.value.path().read_bytes().decode()
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    # A column for each epoch.
    assert found == [
        {"arm": row["arm"], "seed": f"{row['seed']}"}
        | {f"test_accuracy {i}": f"{value}" for i, value in enumerate(row["test_accuracy"], 1)}
        for row in samples.c1().records
    ]
    with page.expect_download() as waiting:
        page.locator("#C1 [data-save=json]").click()
    assert waiting.value.suggested_filename == "normkit-C1.json"
    data = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    assert data["claim"] == "C1"
    assert data["records"] == list(samples.c1().records)
    desk.close()
    with page.expect_download() as waiting:
        page.locator("#wall [data-save=csv]").click()
    found = list(csv.DictReader(io.StringIO(waiting.value.path().read_text(encoding="utf-8"))))
    assert " ".join(row["claim"] for row in found) == "C1 C1 C1 C2 C2 C3 C4 C4 C4 C4 C4 C11 C13 C20"
    assert found[5]["high"] == ""
    desk.open("C1")
    with page.expect_download() as waiting:
        page.locator("#C1 [data-act=picture]").first.click()
    assert waiting.value.suggested_filename == "normkit-C1-chart-1.png"
    assert waiting.value.path().read_bytes().startswith(b"\x89PNG")


def test_a_spreadsheet_finds_no_formula(browser: api.Browser, odd: ModuleType, tmp_path) -> None:
    rows = (
        {"=cmd|'/c calc'!A1": "@SUM(1)", "n": -0.5, "t": '"a", \r\n b', "__proto__": "\t=1+1"},
        {"=cmd|'/c calc'!A1": "＝1", "n": None, "t": [1.5, None, 2], "__proto__": "-2+3"},
    )
    finding = dataclasses.replace(odd.bare(), records=rows)
    page = Visit(browser, write([finding], tmp_path / "r.html", about={}), "#C7")
    with page.page.expect_download() as waiting:
        page.page.locator("#C7 [data-save=csv]").click()
    text = waiting.value.path().read_bytes().decode()
    first, second, third = csv.reader(io.StringIO(text, newline=""))
    assert first == ["'=cmd|'/c calc'!A1", "n", "t 1", "t 2", "t 3", "__proto__"]
    assert second == ["'@SUM(1)", "-0.5", '"a", \r\n b', "", "", "'\t=1+1"]
    assert third == ["'＝1", "", "1.5", "", "2", "'-2+3"]
    with page.page.expect_download() as waiting:
        page.page.locator("#C7 [data-save=json]").click()
    data = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    assert data["records"] == [dict(row) for row in rows]
    page.check()
    page.context.close()


def test_hostile_text_runs_nothing(visit) -> None:
    page = visit("hostile", viewport={"width": 360, "height": 900})
    assert page.faults() == {}
    page.page.locator(".card a").click()
    page.read()
    for plot in page.page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.hover()
        # The label at the pointer names the curves: as text, to the letter.
        label = page.page.locator(".hoverlayer .legendtext").first
        label.wait_for(state="attached")
    names = page.page.locator("#C1, article").locator(".hoverlayer .legendtext").all_text_contents()
    assert names
    assert all(name.startswith("\"'><img src=x") for name in names)
    with page.page.expect_download():
        page.page.locator("[data-act=picture]").first.click()
    with page.page.expect_download() as waiting:
        page.page.locator("article [data-save=csv]").click()
    assert "<" not in waiting.value.suggested_filename
    assert page.page.evaluate("window.hacked") is None
    # Long words break rather than widen the page.
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.page.locator("img, iframe, object, embed, a[href^=javascript]").count() == 0
    assert page.page.evaluate("document.scripts.length") == 5 + 4


def test_partial_and_empty_pages_open(visit) -> None:
    page = visit("bare")
    page.open("C7")
    page.read()
    assert page.page.locator("#C7 figure .main-svg").count() > 0
    tour = visit("tour", viewport={"width": 390, "height": 844}).page
    assert tour.locator(".cards").get_by_text("7 of 20 runs done").is_visible()
    assert tour.evaluate("document.documentElement.scrollWidth") == 390
    assert visit("empty").page.get_by_text("normkit lab run --preset quick").is_visible()


def test_the_keyboard_reaches_everything(visit) -> None:
    visited = visit("realistic", viewport={"width": 1280, "height": 800})
    page = visited.page

    def tabs(count: int) -> list[str]:
        seen = []
        for _ in range(count):
            page.keyboard.press("Tab")
            name, ring = page.evaluate(
                """() => {
                    const it = document.activeElement;
                    const drawn = (one) => getComputedStyle(one).outlineStyle !== "none";
                    const name = it.getAttribute("href") || it.id || it.textContent.trim();
                    return [it === document.body ? "" : name, drawn(it)
                        || drawn(it.closest(".card") ?? it)];
                }"""
            )
            if not name:  # past the last stop
                break
            assert ring, name
            seen.append(name)
        return seen

    names = tabs(40)
    assert names[0] == "#main"
    assert {"theme", "search", "#C1", "#C20", "#rule", "Verdicts as CSV"} <= set(names)
    # Into a claim by the keyboard, through it, and back to its card.
    page.locator(".card a").first.press("Enter")
    assert page.evaluate("document.activeElement.id") == "C1"
    # For an address of its own Chromium focuses the place once more, with the next picture.
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    assert {"#claims", "with BN", "Save picture", "Data as CSV"} <= set(tabs(30))
    page.keyboard.press("Escape")
    page.locator("#wall").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#C1"
    page.locator(".skip").press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    # A box with nothing to scroll is no stop.
    visited.open("C1")
    assert page.locator("#C1 .scroll[tabindex]").count() < page.locator("#C1 .scroll").count()


def test_the_theme_is_chosen_kept_and_reaches_the_charts(visit) -> None:
    visited = visit("tour", color_scheme="light")
    page = visited.page
    visited.open("C1")
    visited.read()
    tick = page.locator(".xtick text").first

    def look() -> list[str]:
        return [
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            tick.evaluate("it => getComputedStyle(it).fill"),
            page.locator(".js-line").first.evaluate("it => getComputedStyle(it).stroke"),
        ]

    light = look()
    # The button says what it does.
    toggle = page.locator("#theme")
    assert toggle.text_content() == "Dark theme"
    toggle.press("Enter")
    assert toggle.text_content() == "Light theme"
    assert all(a != b for a, b in zip(light, look(), strict=True))
    page.reload()
    assert toggle.text_content() == "Light theme"
    toggle.click()
    visited.read()
    assert look() == light


def test_a_curve_can_be_hidden_and_a_view_undone(desk: Visit) -> None:
    page = desk.page
    desk.open("C1")
    figure = page.locator("#C1 figure").first
    figure.scroll_into_view_if_needed()
    figure.locator(".plot.drawn").wait_for()
    lines = figure.locator(".scatterlayer .trace")
    before = lines.count()
    button = figure.get_by_role("button", name="without BN").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert lines.count() == before - 2  # the curve and its band
    button.click()
    assert lines.count() == before
    reset = figure.get_by_role("button", name="Show all again")
    assert reset.is_hidden()
    box = figure.locator(".plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 200, steps=4)
    page.mouse.up()
    reset.click()
    reset.wait_for(state="hidden")


def test_paper_gets_every_chart_in_light(visit) -> None:
    visited = visit("tour", color_scheme="dark", viewport={"width": 1280, "height": 800})
    page = visited.page
    visited.read()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".plot.drawn").count() == page.locator("figure.chart").count()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.emulate_media(media="print")
    for part in ("#wall .card", "#C1 .ground", "#C16 .ground", "#C24 .ground"):
        assert page.locator(part).first.is_visible(), part
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") is None
    # What is not shown is drawn when it is.
    assert page.locator(".plot.drawn").count() == 0
    everything = page.pdf()
    assert everything[:4] == b"%PDF"
    # A claim that is open is printed alone.
    visited.open("C16")
    visited.read()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".plot.drawn").count() == page.locator("#C16 figure").count()
    page.emulate_media(media="print")
    assert page.locator("#C16 .ground").is_visible()
    for part in ("#wall .card", "#C1 .ground", "#C24 .ground"):
        assert not page.locator(part).first.is_visible(), part
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert len(page.pdf()) < len(everything)


def test_without_scripts_the_figures_remain(visit) -> None:
    page = visit("realistic", java_script_enabled=False).page
    assert page.get_by_text("need JavaScript").is_visible()
    assert page.locator("#theme").is_hidden()
    assert page.locator("#filters").is_hidden()
    assert page.locator(".card").first.is_visible()
    page.locator("#C1 summary").first.click()
    assert page.locator("#C1 details table").first.is_visible()
