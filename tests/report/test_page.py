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
from normkit.lab.findings import Chart, Finding, Line
from normkit.report import intervals, payload, write
from normkit.report.page import render
from normkit.report.surprises import RULE, surprises
from normkit.report.text import tidy
from normkit.report.thumbnails import HEIGHT, WIDTH, thumbnail

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


def read(findings: list[Finding], **about: str) -> str:
    """The words of a page of these findings."""
    return Outline(render(findings, about=about)).words().replace("\xa0", " ")


def test_says_all_of_a_finding(outline: Outline, samples: ModuleType) -> None:
    words = outline.words().replace("\xa0", " ")
    for finding in samples.realistic():
        for said in (finding.title, finding.statement, finding.prediction, finding.sentence,
                     finding.holds, finding.practice, finding.differs):  # fmt: skip
            assert tidy(said).replace("\xa0", " ") in words
        assert finding.data in words
        for what, value in finding.setup:
            assert what.capitalize() in words
            assert tidy(value).replace("\xa0", " ") in words
        for chart in finding.charts:
            assert tidy(chart.title) in words
            assert tidy(chart.text).replace("\xa0", " ") in words
        for source in finding.sources:
            assert source.figures in words
        for row in finding.here.rows if finding.here else ():
            assert " ".join((row[0].capitalize(), *row[1:])) in words
        for larger in finding.at_scale:
            assert f"{larger.word} {larger.figures} ( {larger.source} )" in words
    for value in samples.ABOUT.values():
        assert value in words
    assert "20, of which 3 diverged" in words


def cards(findings: list[Finding]) -> str:
    """The words of the wall of cards."""
    page = render(findings, about={})
    start = page.index('<ul class="cards"')
    return (
        Outline(f"<main>{page[start : page.index('<p id=', start)]}</main>")
        .words()
        .replace("\xa0", " ")
    )


def test_the_first_screen_counts_parts_and_verdicts(outline: Outline, page: str) -> None:
    score = page[page.index('<div class="score"') : page.index('<div class="surprises"')]
    said = Outline(score).words()
    assert said == (
        "Verdicts 6 of 11 parts confirmed 7 claims: 4 confirmed 1 partly 1 refuted 1 open "
        "How claims are judged"
    )


def test_surprises_are_chosen_by_the_rule_beside_them(samples: ModuleType) -> None:
    chosen = surprises(samples.realistic())
    # Opposite, by multiples of what matters; then too small; one of each claim; none of what is
    # not complete.
    assert [(finding.key, part.word) for finding, part in chosen] == [
        ("C4", "opposite"), ("C13", "opposite"), ("C1", "confirmed"),
    ]  # fmt: skip
    small = dataclasses.replace(samples.c4(), comparisons=samples.c4().comparisons[:2])
    assert [part.word for _, part in surprises([samples.c1(), small])] == [
        "too small to matter", "confirmed",
    ]  # fmt: skip
    assert surprises([samples.begun(), samples.planned()]) == []
    words = read(samples.realistic())
    assert "Results that stand out" in words
    # What was claimed and asked comes before the answer, lest the claim be taken for the result.
    before, _, _ = words.partition("opposite −5.9 points (95 % interval −8.4 to −3.4)")
    assert before.rindex("C4 claims: ") < before.rindex("No wider gap")
    assert RULE in words
    against = [dataclasses.replace(samples.c13(), key=f"C{i}") for i in range(3)]
    assert "Results that surprise" in read(against)
    assert 'class="surprises"' not in render(samples.tour()[1:], about={})


def test_a_card_has_claim_chart_verdict_parts_and_practice(samples: ModuleType) -> None:
    every = [samples.c1(), samples.c4(), samples.begun(), samples.planned()]
    words = cards(every)
    assert words.startswith("C1 training Batch normalization converges faster and lower Test acc")
    assert "confirmed both parts confirmed: Is test accuracy higher after epoch 5?" in words
    for word, part in zip(
        ("confirmed", "too small to matter", "opposite", "open"),
        samples.c4().comparisons,
        strict=False,
    ):
        assert f"{word}: {part.question}" in words
    assert "partly 1 of 4 parts" in words
    assert "In practice With BN, leave dropout out of the convolutions" in words
    # What has no runs yet has its marks as well, and no advice.
    assert "open 7 of 20 runs done open: Is test accuracy higher after epoch 5? open: not" in words
    assert words.count("open: not measured yet") == 2 + 3
    assert words.count("In practice") == 2
    # One sentence of several.
    two = dataclasses.replace(samples.c1(), practice="Do one thing (et al. 2018). Do another.")
    assert "Do another" not in cards([two])
    page = render(every, about={})
    assert re.findall(r'data-topic="([^"]*)" data-verdict="([^"]*)"', page) == [
        ("training", "confirmed"), ("training", "partly"), ("small batches", "open"),
        ("statistics", "open"),
    ]  # fmt: skip


def test_a_small_chart_has_the_first_curves_and_their_marks(samples: ModuleType) -> None:
    chart = samples.c1().charts[0]
    small = thumbnail(chart, {"BN": 0, "plain": 1})
    assert small is not None
    # Ours alone: the published ones are on the chart itself.
    assert [curve.key.label for curve in small.curves] == ["with BN", "without BN"]
    assert small.omitted == 2
    assert all(len(curve.marks) == 5 and curve.band for curve in small.curves)
    assert [words for _, words in small.across] == ["1", "2", "3", "4", "5"]
    failed = thumbnail(samples.c3().charts[0], {})
    assert failed is not None
    assert [len(curve.crosses) for curve in failed.curves] == [0, 3]
    dots = thumbnail(samples.c13().charts[1], {})
    assert dots is not None
    assert [" ".join(words) for _, words in dots.up] == list(dots.chart.rows)
    assert dots.zero is None
    lines = (Line("a", (0.0, 1.0), (-1.0, 2.0)),)
    around = thumbnail(Chart("k", "t", "x", "y", lines, "", kind="dots", rows=("p", "q")), {})
    assert around is not None
    assert around.zero is not None
    assert around.curves[0].marks[0][0] < around.zero < around.curves[0].marks[1][0]
    assert sum(len(curve.crosses) for curve in dots.curves) == 1
    for each in (small, failed, dots):
        for curve in each.curves:
            for x, y in (*curve.marks, *curve.crosses):
                assert 0 <= x <= WIDTH
                assert 0 <= y <= HEIGHT
    assert thumbnail(Chart("k", "t", "x", "y", (), ""), {}) is None
    lost = Line("dead", (1.0, 2.0), (None, None))
    assert thumbnail(Chart("k", "t", "x", "y", (lost,), ""), {}) is None
    one = thumbnail(Chart("k", "t", "x", "y", (Line("one", (2.0,), (0.0,)),), ""), {})
    assert one is not None
    assert len(one.curves[0].marks) == 1


def test_no_minus_of_another_kind(samples: ModuleType) -> None:
    for said in (read(samples.realistic()), cards(samples.realistic())):
        assert not re.search(r"(?<![\w–-])-\d", said)
        assert not re.search(r"\d+e-?\d", said)
    assert "An ε of 10⁻⁵" in read([dataclasses.replace(samples.c1(), title="An ε of 1e-5")])


def test_a_part_shows_its_effect_and_what_would_matter(samples: ModuleType) -> None:
    claim = read([samples.c4()]).split("Part Effect", 1)[1]
    assert "+1.5 points 95 % interval +0.2 to +2.8 matters from ±1 confirmed" in claim
    assert "−8.4 to −3.4 margin: may lose up to 2 opposite" in claim
    assert "open 8 to 41 seeds would decide it" in claim
    decide, rest = claim.split("For information, deciding nothing", 1)
    # No word for what decides nothing.
    assert "And with both? +1.9 points 95 % interval +0.7 to +3.1 matters from ±1 5 seed" in rest
    assert "not if corrected for all 4 parts" in decide
    page = render([samples.c4()], about={})
    pictures = re.findall(r'<svg class="whisker.*?</svg>', page[page.index("<article") :], re.S)
    # The band of what does not matter, or the margin, each within its picture.
    assert [picture.count('class="small"') for picture in pictures] == [1, 1, 0, 1, 1]
    assert [picture.count('class="margin"') for picture in pictures] == [0, 0, 1, 0, 0]
    shown = intervals.interval(samples.c4().comparisons[0])
    assert shown.low is not None
    assert shown.matters is not None
    assert 0 < shown.low < shown.matters < (shown.dot or 0) < (shown.high or 0) < intervals.HALF
    margin = intervals.interval(samples.c4().comparisons[2])
    assert margin.high is not None
    assert margin.high < (margin.margin or 0) < 0


def test_says_how_far_the_whole_page_can_be_trusted(samples: ModuleType) -> None:
    words = read(samples.realistic())
    assert "11 parts are judged here, and 6 are confirmed" in words
    assert "a chance of up to 2.5 %: up to 0.3 of them on average" in words
    assert "Corrected for all 11 together (Holm)" in words
    assert "4 stay confirmed" in words
    assert "They share their seeds" in words
    # A single part is its own family, and one that is not judged yet is in none.
    assert "1 part is judged here, and 1 is confirmed" in read([samples.c2()])
    assert "if corrected" not in read([samples.c2()])
    assert "judged here" not in read([samples.begun()])


def test_a_study_under_way_promises_nothing(samples: ModuleType) -> None:
    words = read(samples.tour()).split("C16 The normalization batch size", 1)[-1]
    assert samples.begun().practice not in words
    assert samples.begun().holds not in words
    assert "Runs 7 of 20 runs done" in words
    assert "Runs 0 of 20 runs done" in words


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
    images = [attrs for attrs in outline.all("div") if attrs.get("role") == "img"]
    assert all((attrs["aria-label"] or "").startswith("Chart: ") for attrs in images)
    pictures = [attrs for attrs in images if attrs.get("class") == "plot"]
    assert len(pictures) == len(outline.all("figure")) == 10
    assert all(attrs["aria-describedby"] for attrs in pictures)
    # A card for each claim; two have no chart.
    assert len(images) - len(pictures) == 7 - 2
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
    assert specs[0]["title"] == tidy(odd.POISON)


def test_says_what_to_do_when_nothing_was_judged() -> None:
    outline = Outline(render([], about={}))
    assert "Nothing has been judged yet" in outline.words()
    assert "normkit lab run --preset quick" in outline.words()
    assert not outline.all("table")


def test_partial_findings_pass(odd: ModuleType) -> None:
    outline = Outline(render([odd.bare(), odd.bare()], about={"preset": "quick"}))
    assert "0 of 1 runs done" in outline.words()
    assert "−∞ to +∞" in outline.words()
    names = [block["name"] for block in blocks(outline) if "name" in block]  # type: ignore[operator,index]
    assert names == ["normkit-verdicts", "normkit-C7", "normkit-C7--2"]
    without = dataclasses.replace(odd.bare(), comparisons=(), charts=(), records=())
    assert "No chart yet." in Outline(render([without], about={})).words()


@pytest.mark.parametrize("key", ["main", "Title", "verdicts", "wall", "Claims", "search"])
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
    assert len(unpacked["rows"]) == 1200
    monkeypatch.setattr(payload, "BUDGET", 6_000)
    kept = payload.downloads([large, small], ["a", "b"])
    assert not kept[0].block
    assert kept[1].block
    assert "1,200 rows lie behind this claim" in Outline(render([large], about={})).words()


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
