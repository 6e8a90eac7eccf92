"""The wall of cards in a real browser: what opens, what is found, and how tall it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from normkit.report import write
from tests.report.browsing import Visit, chromium

api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

DESK = {"viewport": {"width": 1280, "height": 800}}
FULL = Path(__file__).parents[2] / "docs" / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    """Chromium, for the tests of this file only."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(samples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The realistic page."""
    folder = tmp_path_factory.mktemp("wall")
    return write(samples.realistic(), folder / "report.html", about=samples.ABOUT)


@pytest.fixture
def desk(browser: api.Browser, path: Path) -> Iterator[Visit]:
    """It, at a desk."""
    visit = Visit(browser, path, **DESK)
    yield visit
    visit.check()
    visit.context.close()


def shown(visit: Visit) -> list[str]:
    cards = visit.page.locator(".card:not([hidden])")
    return cards.evaluate_all("them => them.map(it => it.dataset.claim)")


def test_the_first_screen_says_what_came_out(desk: Visit) -> None:
    for part in ("#title", ".score", ".surprises ol"):
        box = desk.page.locator(part).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 800, part


def test_an_address_opens_its_claim_and_back_leads_back(
    browser: api.Browser, path: Path, desk: Visit
) -> None:
    page = desk.page
    # Anywhere on the card.
    page.locator('.card[data-claim="C13"] .picture').click(force=True)
    assert page.url.endswith("#C13")
    assert page.locator("#C13 h2").is_visible()
    assert page.locator("#wall").is_hidden()
    assert page.title().startswith("C13 ")
    page.wait_for_function("scrollY === 0")
    page.locator("#C13 .turn >> nth=0").get_by_role("link", name="C11").click()
    assert page.locator("#C11 h2").is_visible()
    assert not page.locator("#C13 h2").is_visible()
    page.go_back()
    page.locator("#C13 h2").wait_for()
    page.go_back()
    page.locator("#wall").wait_for()
    # The card that was read stands in view, and has the keyboard.
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#C13"
    assert page.locator('.card[data-claim="C13"] h3').evaluate(
        "it => ((top) => top > 0 && top < innerHeight)(it.getBoundingClientRect().top)"
    )
    page.go_forward()
    page.locator("#C13 h2").wait_for()
    page.locator("#C13").get_by_role("link", name="How to read this").click()
    assert page.locator("#rule").is_visible()
    assert page.evaluate("document.activeElement.id") == "rule"
    # From elsewhere, too, and to a part of a claim.
    other = Visit(browser, path, "#C4", **DESK)
    assert other.page.locator("#C4 h2").is_visible()
    assert not other.page.locator(".card").first.is_visible()
    other.check()
    other.context.close()
    small = Visit(browser, path, "#c13", **DESK)
    assert small.page.locator("#C13 h2").is_visible()
    small.context.close()
    part = Visit(browser, path, "#C1-table-1", **DESK)
    assert part.page.locator("#C1-table-1").is_visible()
    part.context.close()


def test_filters_and_search_work_together(desk: Visit) -> None:
    page = desk.page
    every = shown(desk)
    assert page.locator("#matches").text_content() == "7 claims"
    page.get_by_role("button", name="training").click()
    assert shown(desk) == ["C1", "C2", "C3", "C4"]
    assert page.locator("#matches").text_content() == "4 of 7 claims"
    page.get_by_role("button", name="partly").click()
    assert shown(desk) == ["C4"]
    page.get_by_role("button", name="all", exact=True).last.click()
    # In any order, in what is closed as well.
    page.locator("#search").fill("rates LARGER")
    assert shown(desk) == ["C3"]
    page.locator("#search").fill("no such word")
    assert shown(desk) == []
    page.get_by_role("button", name="Show all claims").click()
    assert shown(desk) == every
    assert page.evaluate("document.activeElement.id") == "search"
    # A claim by its key, and not those whose keys begin with it; numbers as one types them.
    page.locator("#search").fill("c1")
    assert shown(desk) == ["C1"]
    for typed in ("1e-10", "10^-10", "10⁻¹⁰"):
        page.locator("#search").fill(typed)
        assert shown(desk) == ["C11"], typed
    page.locator("#search").fill("")
    # A claim that is filtered out can still be opened, and left.
    page.get_by_role("button", name="architecture").click()
    desk.open("C1")
    desk.close()
    assert shown(desk) == ["C13"]


def test_browsers_search_finds_what_is_closed(desk: Visit) -> None:
    closed = desk.page.locator("article#C20")
    assert closed.get_attribute("hidden") == "until-found"
    closed.evaluate("it => it.dispatchEvent(new Event('beforematch', {bubbles: true}))")
    desk.page.locator("#C20 h2").wait_for()
    assert desk.page.url.endswith("#C20")


def test_a_study_is_a_few_screens_of_cards(
    browser: api.Browser, samples: ModuleType, odd: ModuleType, tmp_path: Path
) -> None:
    path = write(odd.many(samples.c1()), tmp_path / "study.html", about={})
    for width, height, screens in ((1280, 800, 14), (390, 844, 28)):
        visit = Visit(browser, path, viewport={"width": width, "height": height})
        tall = visit.page.evaluate("document.documentElement.scrollHeight")
        assert tall <= screens * height
        visit.check()
        visit.context.close()


def test_wide_tables_say_that_they_scroll(browser: api.Browser, path: Path) -> None:
    visit = Visit(browser, path, "#C1", viewport={"width": 390, "height": 844})
    box = visit.page.locator("#C1 .scroll.over").last
    box.wait_for()
    said = box.locator("caption").first.evaluate("it => getComputedStyle(it, '::after').content")
    assert "Scroll sideways" in said
    assert box.get_attribute("tabindex") == "0"
    visit.check()
    visit.context.close()


def test_what_is_measured_would_be_noticed(browser: api.Browser, path: Path) -> None:
    visit = Visit(browser, path, **DESK)
    assert visit.faults() == {}
    visit.page.evaluate(
        """() => {
            const put = (css, text) => {
                const it = document.body.appendChild(document.createElement("p"));
                it.textContent = text;
                it.style.cssText = `position: absolute; left: 40px; ${css}`;
            };
            const {top} = document.getElementById("title").getBoundingClientRect();
            put(`top: ${top + 4}px`, "over the title");
            put("top: 0; color: #999", "faint");
            put("top: 0; left: 1200px; width: 300px", "beyond");
            document.querySelector(".small-chart text").setAttribute("x", "-9");
        }"""
    )
    assert {*visit.faults()} == {"overlap", "faint", "beyond", "cut", "sideways"}
    visit.context.close()


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="without the documents")
# CI has the time for the narrowest in the dark and the widest in the light.
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "dark"), (1280, "light")]
    + [
        pytest.param(*each, marks=pytest.mark.minutes)
        for each in ((390, "light"), (768, "light"), (768, "dark"), (1280, "dark"))
    ],
)
def test_the_page_of_the_full_run(browser: api.Browser, width: int, scheme: str) -> None:
    """Every claim opened, every chart drawn, all that is folded unfolded: nothing is wrong."""
    visit = Visit(browser, FULL, viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong = {"wall": visit.faults()}
    for key in visit.claims():
        visit.open(key)
        visit.read()
        visit.unfold()
        visit.read()
        wrong[key] = visit.faults()
    assert {key: faults for key, faults in wrong.items() if faults} == {}
    visit.check()
    visit.context.close()
