"""The live page in Chromium: it computes what PyTorch computes, and everyone can use it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import normkit as nk
from normkit.lab import data
from normkit.lab.data.corruptions import CORRUPTIONS, corrupted
from normkit.lab.data.split import Split
from normkit.report.live import load, write
from normkit.report.live.model import images, network
from normkit.report.live.page import PRIORS, SIZES

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
# Float32 sums in another order, through four layers. Of two samples a variance may be small.
CLOSE = 1e-4
READY = "#controls:not(.asking)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"none of {', '.join(NAMES)} is installed")
        pytest.skip("no browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(load(), tmp_path_factory.mktemp("live") / "live.html")


@pytest.fixture
def visit(browser: Any, path: Path) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end of the test it must not have complained or asked the network."""
    contexts: list[Any] = []
    complaints: list[str] = []
    requests: list[str] = []

    def go(query: str = "", script: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        if script:
            page.add_init_script(script)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri() + query)
        page.locator(READY).wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
    outside = [u for u in requests if not u.startswith((path.as_uri(), "blob:", "data:"))]
    assert outside == []


def put(page: Any, **settings: Any) -> dict[str, Any]:
    """Move the controls as a reader does, and return the numbers that the page saves."""
    for name, value in settings.items():
        if name in ("n", "severity", "prior"):
            place = {"n": SIZES, "prior": PRIORS}.get(name, range(6)).index(value)
            page.locator(f"#{name}").fill(str(place))
        elif name == "mode":
            page.locator(f"[name=mode][value={value}]").check()
        else:
            page.locator(f"#{name}").select_option(value)
    page.locator(READY).wait_for()
    with page.expect_download() as waiting:
        page.locator("#save").click()
    return json.loads(waiting.value.path().read_text(encoding="utf-8"))


POSITIONS: list[dict[str, Any]] = [
    {"severity": 0, "n": 64, "mode": "remembered"},
    {"kind": "fog", "severity": 3, "n": 64, "mode": "batch"},
    {"kind": "contrast", "severity": 2, "n": 2, "mode": "batch"},
    {"kind": "noise", "severity": 4, "n": 3, "prior": 16, "mode": "mixed"},
    {"kind": "blur", "severity": 1, "n": 1, "prior": 4, "mode": "mixed"},
    {"kind": "inversion", "severity": 5, "n": 128, "prior": 512, "mode": "mixed"},
]


def test_page_computes_what_pytorch_computes(visit: Callable[..., Any]) -> None:
    recording = load()
    model, pool = network(recording), images(recording)
    page = visit()
    for position in POSITIONS:
        saved = put(page, **position)
        assert position.items() <= saved.items()
        n = position["n"]
        pixels = torch.tensor(saved["pixels"], dtype=torch.uint8).view(n, 1, 28, 28)
        batch = Split(pixels, torch.tensor(saved["labels"]), pool.mean, pool.std)
        x, _ = next(data.batches(batch, n, seed=0, shuffle=False))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if position["mode"] == "remembered":
                y = model(x)
            else:
                with nk.adapt(model, prior=saved["prior"] * (position["mode"] == "mixed")):
                    y = model(x)
            inputs = model.conv1(x)
        logits = torch.tensor(saved["logits"]).view(n, 10)
        assert (logits - y).abs().max() < CLOSE, position
        # What the chart shows: the means of the first layer's input.
        means = torch.tensor(saved["layers"][0]["batch"]["mean"])
        assert (means - inputs.mean((0, 2, 3))).abs().max() < CLOSE
        # And the images are the lab's.
        assert pool.labels[saved["indices"]].tolist() == saved["labels"]
        shown = corrupted(pool, [*CORRUPTIONS].index(saved["kind"]) + 1, saved["severity"]) if (
            saved["severity"]) else pool  # fmt: skip
        off = (shown.images[saved["indices"]].int() - pixels.int()).abs()
        assert off.max() <= 1, position
        assert (off > 0).sum() <= 2, position
        right = (y.argmax(1) == batch.labels).sum()
        assert page.locator("#right").text_content() == f"{right} of {n} right"


def test_corruptions_equal_the_lab_s_pixel_for_pixel(visit: Callable[..., Any]) -> None:
    """All but a few in a million: there, float32 sums in another order fall on another side."""
    pool = images(load())
    page = visit()
    for number, kind in enumerate(CORRUPTIONS, 1):
        for severity in (1, 3, 5):
            packed = page.evaluate(
                """([kind, severity]) => {
                    const out = Corrupt.corrupted(Page.arrays.images, kind, severity);
                    let text = "";
                    for (let i = 0; i < out.length; i += 9999)
                        text += String.fromCharCode(...out.subarray(i, i + 9999));
                    return btoa(text);
                }""",
                [kind, severity],
            )
            ours = np.frombuffer(base64.b64decode(packed), dtype=np.uint8).astype(int)
            off = np.abs(ours - corrupted(pool, number, severity).images.numpy().ravel())
            assert off.max() <= 1, (kind, severity)
            assert (off > 0).mean() < 2e-5, (kind, severity)


def test_survey_is_of_all_images_in_batches_of_that_size(visit: Callable[..., Any]) -> None:
    recording = load()
    model, pool = network(recording), images(recording)
    page = visit()
    put(page, kind="contrast", severity=2, n=32, prior=16)
    said = [text.rstrip(" %") for text in page.locator(".survey").all_text_contents()]
    dim = corrupted(pool, 3, 2)
    hits = []
    for prior in (None, 0, 16):
        right = count = 0
        for x, labels in data.batches(dim, 32, seed=0, shuffle=False, drop_last=True):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if prior is None:
                    y = model(x)
                else:
                    with nk.adapt(model, prior=prior):
                        y = model(x)
            right += int((y.argmax(1) == labels).sum())
            count += len(labels)
        hits.append(f"{100 * right / count:.1f}")
    assert said == hits
    assert f"in {count} images, in batches of 32" in (
        page.locator("#surveyed").text_content() or ""
    )
    # What the first three steps of the page tell.
    assert float(hits[1]) > float(hits[0]) + 5


def test_page_computes_without_a_worker(visit: Callable[..., Any]) -> None:
    saved = put(visit(), n=8, mode="batch")
    alone = put(visit(script="delete window.Worker"), n=8, mode="batch")
    assert alone["logits"] == saved["logits"]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "dark"),
        (1280, "light"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [(390, "light"), (768, "light"), (768, "dark"), (1280, "dark")]
        ),
    ],
)
def test_nothing_sticks_out_and_the_result_is_seen_first(
    visit: Callable[..., Any], width: int, scheme: str
) -> None:
    height = 844 if width < 700 else 800
    for query in ("", "?lang=zh"):
        page = visit(query, viewport={"width": width, "height": height}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = page.evaluate(
            """() => [...document.querySelectorAll("main *, header *")]
                .filter(it => it.getClientRects().length && !it.closest(".unseen")
                    && (it.getBoundingClientRect().right > innerWidth + 1
                        || it.getBoundingClientRect().left < -1))
                .map(it => it.outerHTML.slice(0, 80))"""
        )
        assert beyond == []
        for place in ("#right", "#images"):
            box = page.locator(place).bounding_box()
            assert box["y"] + box["height"] <= height, place
        if width == 1280:
            for place in ("#means", "#cube", "#controls"):
                box = page.locator(place).bounding_box()
                assert box["y"] + box["height"] <= height, place


def test_chinese_is_a_switch_away_and_nothing_stays_english(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#language").click()
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.locator("h1").text_content() == "归一化，实时演示"
    assert "幅正确" in page.locator("#right").text_content()
    words = page.evaluate(
        """() => [...document.querySelectorAll("[data-t], figcaption p, #told, #surveyed, option")]
            .map(it => it.textContent).filter(text => text && !/[\\u4e00-\\u9fff]/.test(text))"""
    )
    assert words == ["English"]
    page.locator("#language").click()
    assert page.locator("h1").text_content() == "Normalization, live"
    # By the address, or else by the browser's own language.
    for options in ({"query": "?lang=zh"}, {"locale": "zh-CN"}):
        assert visit(**options).locator("h1").text_content() == "归一化，实时演示"
    assert visit("?lang=en", locale="zh-CN").locator("h1").text_content() == "Normalization, live"


def test_keyboard_and_screen_reader_get_everything(visit: Callable[..., Any]) -> None:
    page = visit()
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, ring, label = page.evaluate(
            """() => {
                const it = document.activeElement;
                const label = it.labels?.[0]?.textContent || it.textContent || it.ariaLabel;
                return [it.id || it.name || it.dataset.story || it.tagName,
                    getComputedStyle(it).outlineStyle !== "none", (label ?? "").trim()];
            }"""
        )
        if name == "BODY":  # after the last one
            continue
        names.add(name)
        assert ring, name
        assert label, name
    assert names >= {
        "language", "theme", "which", "1", "5", "mode", "n", "kind", "severity", "prior", "next",
        "play", "layer", "pool", "save", "record-layer", "moment", "step", "to-rest",
    }  # fmt: skip
    page.locator("#n").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#n").get_attribute("aria-valuetext") == "48 images"
    page.locator(READY).wait_for()
    page.locator("#said", has_text="48 images").wait_for(state="attached")
    page.locator("#which").focus()
    page.keyboard.press("End")
    assert (page.locator("#which").get_attribute("aria-valuetext") or "").startswith("48: ")
    wrong = 48 - int((page.locator("#right").text_content() or "").split()[0])
    assert wrong > 1
    page.locator("#wrong summary").press("Enter")
    # The list is filled by an event of its own, after the key's.
    rows = page.locator("#wrong tbody tr")
    rows.nth(wrong - 1).wait_for()
    assert rows.count() == wrong
    page.locator("[name=pool][value=gn]").check()
    assert "groups of 2 channels: 144 means" in (page.locator("#pool-said").text_content() or "")
    # One value of each feature, and no prior: PyTorch refuses, and the page says so.
    page.locator("#n").press("Home")
    page.locator("[name=mode][value=batch]").check()
    page.locator("#refused").wait_for()


def test_batches_are_drawn_and_played(visit: Callable[..., Any]) -> None:
    page = visit(reduced_motion="reduce")
    first = put(page, n=16)["indices"]
    page.locator("#next").click()
    second = put(page)["indices"]
    assert len(set(second)) == 16
    assert set(first) != set(second)
    play = page.locator("#play")
    play.click()
    assert play.get_attribute("aria-pressed") == "true"
    assert play.text_content() == "Pause"
    before = page.locator("#means .batch").get_attribute("d")
    page.wait_for_function(
        "d => document.querySelector('#means .batch').getAttribute('d') !== d",
        arg=before,
        timeout=2600,
    )
    play.click()
    page.locator("[data-story='4']").click()
    assert put(page)["n"] == 2


def test_training_is_looked_through_step_by_step(visit: Callable[..., Any]) -> None:
    recording = load()
    accuracy, sizes = recording.arrays["accuracy"], recording.arrays["sizes"]
    page = visit()
    said = page.locator("#step-said")
    for step in (1, 40, 200):
        page.locator("#step").fill(str(step))
        text = said.text_content() or ""
        assert f"Step {step}, a batch of {sizes[step - 1]:.0f}." in text
        for share in accuracy[step - 1]:
            assert f"{100 * share:.1f} %" in text
    page.locator("#to-rest").click()
    assert f"a batch of {sizes.min():.0f}." in (said.text_content() or "")
    page.locator("[name=moment][value=variances]").check()
    page.locator("#record-layer").select_option("3")
    variance = recording.arrays["variances"][3, int(page.locator("#step").input_value()) - 1, 1]
    assert f"{variance:.2f}" in (said.text_content() or "")


# Moves a slider once a frame. Without a limit, the time between two frames is what they cost.
MOVE = """async (name) => {
    const slider = document.getElementById(name), gaps = [];
    const values = [...Array(1 + Number(slider.max)).keys()].slice(1);
    let last = await new Promise(requestAnimationFrame);
    for (let i = 0; i < 300; i++) {
        slider.value = values[i % values.length];
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        const now = await new Promise(requestAnimationFrame);
        gaps.push(now - last);
        last = now;
    }
    return gaps.sort((a, b) => a - b);
}"""


@pytest.mark.slow
def test_frames_while_a_slider_moves(browser: Any, path: Path, capsys: Any) -> None:
    """Time between frames at 64 images, as on a screen and without its limit: for the log."""
    for limits in ((), ("--disable-frame-rate-limit", "--disable-gpu-vsync")):
        free = browser.browser_type.launch(
            executable_path=next(filter(None, map(shutil.which, NAMES))), args=[*ARGS, *limits]
        )
        page = free.new_page(viewport={"width": 1280, "height": 800})
        page.goto(path.as_uri())
        page.locator(READY).wait_for()
        for name in ("severity", "prior", "step"):
            gaps = page.evaluate(MOVE, name)
            with capsys.disabled():
                print(
                    f"\n{'without limit' if limits else '60 Hz'}, {name}: frames of "
                    f"{statistics.median(gaps):.2f} ms (median), {gaps[284]:.2f} (95 %), "
                    f"{gaps[-1]:.1f} (longest)"
                )
            assert len(gaps) == 300
        free.close()
