"""What the page says, and that nothing but that can come of it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from normkit.errors import StoreError
from normkit.report import payload, write
from normkit.report.page import render

VOID = {"br", "hr", "img", "input", "link", "meta", "path", "circle", "rect", "line"}


class Outline(HTMLParser):
    """The page's elements with their attributes, and the text of its script and style blocks."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, dict[str, str | None], str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "style"):
            self.blocks.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            tag, attrs, text = self.blocks[-1]
            self.blocks[-1] = (tag, attrs, text + data)
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of this name."""
        return [attrs for name, attrs in self.elements if name == tag]

    def words(self) -> str:
        """All that can be read."""
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page(samples: ModuleType) -> str:
    """The realistic sample, rendered."""
    return render(samples.realistic(), about=samples.ABOUT)


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    """The same, taken apart."""
    return Outline(page)


def blocks(outline: Outline) -> list[object]:
    """The data blocks, read back."""
    return [
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        for _, attrs, text in outline.blocks
        if attrs.get("type") == "application/json"
    ]


def test_says_all_of_a_finding(outline: Outline, samples: ModuleType) -> None:
    words = outline.words().replace("\xa0", " ")
    for finding in samples.realistic():
        for said in (finding.title, finding.statement, finding.prediction, finding.sentence):
            assert said in words
        assert finding.data in words
        for what, value in finding.setup:
            assert what.capitalize() in words
            assert value in words
        for chart in finding.charts:
            assert chart.title in words
            assert chart.text in words
        for source in finding.sources:
            assert source.figures in words
    for value in samples.ABOUT.values():
        assert value in words
    assert "140, of which 30 diverged" in words


def test_counts_the_verdicts_and_names_their_claims(page: str) -> None:
    tally = page[page.index('<ul class="tally"') : page.index('class="contrary"')]
    said = " ".join(Outline(f"<main>{tally.rsplit('</ul>', 1)[0]}</ul></main>").words().split())
    assert said == "4 supported C1 C2 C3 C20 1 not supported C13 1 undecided C11"


def test_where_the_source_says_otherwise_it_is_said_and_why(page: str, samples: ModuleType) -> None:
    words = Outline(page).words().replace("\xa0", " ")
    against, open_ = samples.c13(), samples.c11()
    assert f"The source says otherwise. Why it may be: {against.differs}" in words
    assert f"The source says yes, and these runs cannot tell. Why it may be: {open_.differs}" in (
        words
    )
    # A list near the top leads to these two and to no other.
    box = page[page.index('class="contrary"') : page.index('id="overview"')]
    assert re.findall(r'href="#([^"]+)"', box) == ["C11-differs", "C13-differs"]
    # Nobody knows why: that is said as well. Undecided without a reason is no contradiction.
    unknown = dataclasses.replace(against, differs="")
    assert (
        "The source says otherwise. We have no explanation."
        in Outline(render([unknown], about={})).words()
    )
    unsaid = dataclasses.replace(open_, differs="")
    assert "Where we do not confirm" not in Outline(render([unsaid], about={})).words()


def test_tells_what_decides_and_how_surely(samples: ModuleType) -> None:
    words = Outline(render([samples.c1(), samples.c11()], about={})).words().replace("\xa0", " ")
    first, second = words.split("These decide")[1:]
    decide, rest = first.split("For information", 1)
    assert "Is test accuracy higher after epoch 5?" in decide
    assert "matters from 0.5 p-value under 0.1 %" in decide
    assert "Is 87 % reached in fewer epochs?" in decide
    assert "1.2 %" in decide
    assert rest.lstrip().startswith("Is the last training loss lower?")
    assert "corrected for the 2 questions that decide" in rest
    assert "about 460 seeds would decide it" in second
    assert "41 %" in second


def test_the_overview_shows_the_effect_on_which_the_verdict_hangs(samples: ModuleType) -> None:
    good, bad = samples.c1().comparisons[:2]
    bad = dataclasses.replace(bad, word="refuted", effect=-7.5)
    finding = dataclasses.replace(samples.c1(), word="refuted", comparisons=(good, bad))
    page = render([finding], about={})
    overview = page[page.index('id="overview"') : page.index('id="rule"')]
    assert "−7.5" in overview
    assert "+1.62" not in overview


def test_links_lead_only_to_the_web_or_within(outline: Outline) -> None:
    links = [attrs["href"] or "" for attrs in outline.all("a")]
    ids = {attrs.get("id") for _, attrs in outline.elements}
    assert "https://arxiv.org/abs/1502.03167" in links
    for link in links:
        assert link.startswith("https://") or link.removeprefix("#") in ids


def test_reads_well_to_a_screen_reader(outline: Outline) -> None:
    ids = [attrs["id"] for _, attrs in outline.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for _, attrs in outline.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attrs.get(name) or "").split()) <= set(ids)
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    for landmark in ("main", "nav", "header", "footer"):
        assert outline.all(landmark)
    assert len(outline.all("table")) == len(outline.all("caption"))
    assert all(attrs.get("scope") in ("row", "col", "rowgroup") for attrs in outline.all("th"))
    pictures = [attrs for attrs in outline.all("div") if attrs.get("role") == "img"]
    assert len(pictures) == len(outline.all("figure")) == 10
    assert all(attrs["aria-label"] and attrs["aria-describedby"] for attrs in pictures)
    assert all(
        attrs.get("aria-hidden") == "true" and attrs.get("focusable") == "false"
        for attrs in outline.all("svg")
    )
    assert all(attrs.get("type") == "button" for attrs in outline.all("button"))


def test_policy_allows_what_is_there_and_no_network(outline: Outline) -> None:
    policy = next(
        attrs["content"] or ""
        for attrs in outline.all("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for _, attrs, text in outline.blocks:
        if attrs.get("type") != "application/json":
            if attrs.get("type") == "text/plain":  # packed; the page unpacks it before it runs
                text = gzip.decompress(base64.b64decode(text)).decode()
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    for _, attrs in outline.elements:
        assert "style" not in attrs
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs)


def test_hostile_text_stays_text(samples: ModuleType, odd: ModuleType) -> None:
    hostile = odd.poisoned(samples.c1())
    harmless = Outline(render([samples.c1()], about={"machine": "a", "notice": "b"}))
    page = render([hostile], about={odd.POISON: odd.POISON, "notice": odd.POISON})
    poisoned = Outline(page)
    # The same elements as with harmless text, and no more.
    tags = [tag for tag, _ in poisoned.elements]
    assert tags.count("script") == [tag for tag, _ in harmless.elements].count("script")
    assert "img" not in tags
    assert "{{7*7}}" in poisoned.words()
    assert not [attrs for attrs in poisoned.all("a") if (attrs["href"] or "")[0] != "#"]
    for _, attrs in poisoned.elements:
        assert not any(name.startswith("on") for name in attrs)
    assert len(blocks(poisoned)) == len(blocks(harmless))
    specs = [block for block in blocks(poisoned) if isinstance(block, dict) and "lines" in block]
    assert specs[0]["title"] == odd.POISON


def test_says_what_to_do_when_nothing_was_judged() -> None:
    outline = Outline(render([], about={}))
    assert "Nothing has been judged yet" in outline.words()
    assert "normkit lab run --preset quick" in outline.words()
    assert not outline.all("table")


def test_partial_findings_pass(odd: ModuleType) -> None:
    outline = Outline(render([odd.bare(), odd.bare()], about={"preset": "quick"}))
    assert "not measured" not in outline.words()
    assert "−∞ to +∞" in outline.words()
    names = [block["name"] for block in blocks(outline) if "name" in block]  # type: ignore[operator,index]
    assert names == ["normkit-verdicts", "normkit-C7", "normkit-C7--2"]
    without = dataclasses.replace(odd.bare(), comparisons=(), charts=(), records=())
    assert "not measured" in Outline(render([without], about={})).words()


@pytest.mark.parametrize("key", ["main", "Title", "verdicts"])
def test_a_key_does_not_take_the_pages_own_names(odd: ModuleType, key: str) -> None:
    finding = dataclasses.replace(odd.bare(), key=key)
    ids = [a["id"] for _, a in Outline(render([finding], about={})).elements if a.get("id")]
    assert len(ids) == len(set(ids))


def test_data_comes_back_as_it_was(samples: ModuleType) -> None:
    finding = samples.c1()
    (download,) = payload.downloads([finding], ["C1"])
    block = json.loads(download.block)
    rows = [dict(zip(block["columns"], row, strict=True)) for row in block["rows"]]
    assert rows == list(finding.records)
    assert block["about"]["verdict"] == "confirmed"
    assert block["about"]["comparisons"][0]["effect"] == 1.62


def test_large_data_is_packed_and_too_large_data_stays_out(
    samples: ModuleType, odd: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = samples.c1(), odd.many(samples.c1(), 1)[0]
    packed = json.loads(payload.downloads([large], ["C1"])[0].block)
    unpacked = json.loads(gzip.decompress(base64.b64decode(packed["gzip"])))
    assert len(unpacked["rows"]) == 6000
    monkeypatch.setattr(payload, "BUDGET", 20_000)
    kept = payload.downloads([large, small], ["a", "b"])
    assert not kept[0].block
    assert kept[1].block
    assert "6,000 rows lie behind this claim" in Outline(render([large], about={})).words()


def test_values_of_other_libraries_become_plain() -> None:
    odd = {"a": np.float32(0.5), "b": np.int64(3), "c": np.nan, "d": Path("x"), "e": {1}}
    assert payload.plain(odd) == {"a": 0.5, "b": 3, "c": None, "d": "x", "e": [1]}
    assert json.loads(payload.embed({"x": np.array([1.0, np.inf])})) == {"x": "[ 1. inf]"}


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, samples: ModuleType) -> None:
    path = tmp_path / "deep" / "er" / "report.html"
    assert write([samples.c1()], path, about={}) == path
    first = path.read_bytes()
    assert len(first) < 2_500_000
    write([samples.c1()], path, about={})
    assert path.read_bytes() == first
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]

    (path.parent / "taken").mkdir()
    with pytest.raises(StoreError, match=r"writable file for the report.*Fix: name"):
        write([], path.parent / "taken", about={})
    with pytest.raises(StoreError, match=r"report\.html"):
        write([], path / "below.html", about={})
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "taken"]


def test_text_without_bytes_does_not_stop_the_page(tmp_path: Path, odd: ModuleType) -> None:
    finding = dataclasses.replace(odd.bare(), title="half a sign: \ud83d", key="\ud83d")
    written = write([finding], tmp_path / "r.html", about={}).read_text(encoding="utf-8")
    assert "half a sign: ?" in written
