"""A page in Chromium that is watched, and what can be measured of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]

_TEXTS = """
    const shown = (it) =>
        it.checkVisibility({visibilityProperty: true, opacityProperty: true});
    const texts = () => {
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        const found = [];
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            const it = node.parentElement;
            if (!node.data.trim() || !shown(it)
                || it.closest(".unseen, .small .word, .skip, script, style, title")) continue;
            found.push([node, it]);
        }
        return found;
    };
"""
# Text over text: pairs of boxes of lines, each cut to what its scrolling ancestors show.
_OVERLAPS = (
    "() => {"
    + _TEXTS
    + """
    const block = (it) => {
        while (it.parentElement && getComputedStyle(it).display.startsWith("inline")
            && !(it instanceof SVGElement)) it = it.parentElement;
        return it;
    };
    const boxes = [];
    for (const [node, it] of texts()) {
        const range = document.createRange();
        range.selectNodeContents(node);
        const frames = [];
        for (let up = it; up; up = up.parentElement)
            if (getComputedStyle(up).overflow !== "visible" && up !== document.documentElement)
                frames.push(up.getBoundingClientRect());
        for (const rect of range.getClientRects()) {
            const box = {left: rect.left, right: rect.right, top: rect.top + 0.12 * rect.height,
                bottom: rect.bottom - 0.12 * rect.height, of: block(it), words: node.data.trim()};
            for (const frame of frames) {
                box.left = Math.max(box.left, frame.left);
                box.right = Math.min(box.right, frame.right);
                box.top = Math.max(box.top, frame.top);
                box.bottom = Math.min(box.bottom, frame.bottom);
            }
            if (box.right - box.left > 1 && box.bottom - box.top > 1) boxes.push(box);
        }
    }
    boxes.sort((a, b) => a.top - b.top);
    const over = [];
    boxes.forEach((a, i) => {
        for (let j = i + 1; j < boxes.length && boxes[j].top < a.bottom - 1.5; j += 1) {
            const b = boxes[j];
            if (a.of !== b.of && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5)
                over.push(`${a.words.slice(0, 40)} / ${b.words.slice(0, 40)}`);
        }
    });
    return over;
}"""
)
# Text whose contrast with its ground is under what WCAG 2 AA asks for.
_FAINT = (
    "() => {"
    + _TEXTS
    + """
    const parts = (colour) => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const light = (rgb) => rgb.slice(0, 3)
        .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (it) => {
        for (; it; it = it.parentElement) {
            const rgb = parts(getComputedStyle(it).backgroundColor);
            if (rgb.length < 4 || rgb[3] > 0.5) return rgb;
        }
        return [255, 255, 255];
    };
    const faint = new Set();
    for (const [node, it] of texts()) {
        const style = getComputedStyle(it);
        const ink = parts(it instanceof SVGElement ? style.fill : style.color);
        const [dim, bright] = [light(ink), light(ground(it))].sort((a, b) => a - b);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        const ratio = (bright + 0.05) / (dim + 0.05);
        // An arm's name at its curve has the curve's colour, and its legend beside it in ink.
        const least = large || it.closest(".annotation") ? 3 : 4.5;
        if (ratio < least) faint.add(`${node.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
    }
    return [...faint];
}"""
)
# What reaches out of the window, or out of a box that does not scroll.
_BEYOND = """() => [...document.querySelectorAll("body *")].filter((it) =>
    !it.closest(".scroll, .unseen, .skip, .stack thead, .plot, pre, .small .word")
    && it.checkVisibility() && it.getBoundingClientRect().right > innerWidth + 1)
    .map((it) => it.outerHTML.slice(0, 90))"""
# Figures of a small chart that its own frame would cut.
_CUT = """() => [...document.querySelectorAll("svg.small-chart text")].filter((it) => {
    if (!it.checkVisibility()) return false;
    const [box, frame] = [it.getBBox(), it.ownerSVGElement.viewBox.baseVal];
    return box.x < -0.5 || box.x + box.width > frame.width + 0.5 || box.y < -0.5
        || box.y + box.height > frame.height + 0.5;
}).map((it) => it.textContent)"""


def program() -> str:
    """Where Chromium is; skips the test where there is none, but in CI."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = f"none of {', '.join(NAMES)} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium; it leaves an event loop running meanwhile."""
    api = pytest.importorskip("playwright.sync_api")
    path = program()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


class Visit:
    """A page that is watched: all that it asks for and all that it complains about."""

    def __init__(self, browser: Any, path: Path, at: str = "", **options: object) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.uri = path.as_uri()
        self.page.goto(self.uri + at)

    def claims(self) -> list[str]:
        """The claims of the page, by the name in its address."""
        return self.page.locator(".card").evaluate_all("them => them.map(it => it.dataset.claim)")

    def open(self, key: str) -> Any:
        """Open a claim by the address, and return it."""
        self.page.evaluate("it => { location.hash = it; }", key)
        article = self.page.locator(f"article#{key}")
        article.wait_for()
        return article

    def close(self) -> None:
        """Go back to the wall."""
        self.page.evaluate("location.hash = 'claims'")
        self.page.locator("#wall").wait_for()

    def unfold(self) -> None:
        """Open all that is folded in what is shown."""
        self.page.evaluate(
            "() => document.querySelectorAll('details').forEach((it) => { it.open = true; })"
        )

    def read(self) -> None:
        """Bring every chart that is shown before the eye once, and wait until it is drawn."""
        for figure in self.page.locator("figure.chart:visible").all():
            figure.evaluate("it => it.scrollIntoView({behavior: 'instant', block: 'center'})")
            figure.locator(".plot.drawn").wait_for(state="attached")
        # Another width is another drawing.
        self.page.wait_for_function(
            """() => [...document.querySelectorAll(".plot.drawn")].every(it => !it.checkVisibility()
                || it.querySelector(".main-svg").clientWidth === it.clientWidth)"""
        )

    def faults(self) -> dict[str, list[str]]:
        """What overlaps, is too faint, reaches out sideways or is cut off; empty if nothing."""
        measured = {
            "overlap": self.page.evaluate(_OVERLAPS),
            "faint": self.page.evaluate(_FAINT),
            "beyond": self.page.evaluate(_BEYOND),
            "cut": self.page.evaluate(_CUT),
        }
        wide, window = self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        if wide > window:
            measured["sideways"] = [f"{wide} of {window}"]
        return {name: what for name, what in measured.items() if what}

    def check(self) -> None:
        """No complaint, and no request but for the page itself and what it made."""
        assert self.complaints == []
        outside = [u for u in self.requests if not u.startswith((self.uri, "blob:", "data:"))]
        assert outside == []
