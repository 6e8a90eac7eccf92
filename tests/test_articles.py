"""The walk-throughs of articles: tables of the last full run, commands that exist, equal languages.

That their code blocks run is tested with those of the guides (:mod:`tests.test_readme`).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normkit.report.markdown import BEGIN, END

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for page in (ROOT / "docs" / "articles").glob("*.md") if not page.name.startswith("README")
)
FENCES = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _generated(text: str) -> str:
    return text.split(BEGIN)[1].split(END)[0] if BEGIN in text else ""


def _rows(text: str) -> list[str]:
    return re.findall(r"^\| C\d+ .*$", text, re.MULTILINE)


def _keys(words: str) -> list[str]:
    return re.findall(r"\bC\d+\b", words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verdicts_are_those_of_the_last_full_run(page: Path) -> None:
    """Otherwise: make tables."""
    everything = _rows((ROOT / "docs" / "claims.md").read_text())
    assert not set(_rows(_generated(page.read_text()))) - set(everything)


@pytest.mark.parametrize("page", ["comparison.md", "comparison.zh.md"])
def test_errors_by_batch_size_are_those_of_the_report(page: str) -> None:
    """This table is written by hand; the page of the run has it with the published figures."""
    report = (ROOT / "docs/report.html").read_text()
    table = report.split('id="C20-table-1"')[1].split("</table>")[0]
    ours = re.findall(r'<th scope="row">(\w+)</th><td>ours</td>(.*?)</tr>', table)
    assert [name for name, _ in ours] == ["BN", "GN", "LN", "IN"]
    text = (ROOT / "docs/articles" / page).read_text()
    for name, cells in ours:
        figures = re.findall(r"<td[^>]*>([^<]*)", cells)
        assert f"| {name} | {' | '.join(figures)} |" in text


def test_make_rewrites_each_table() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    called = dict(
        line.strip().removeprefix("$(call article,").removesuffix(")").split(",", 1)
        for line in lines
        if "$(call article," in line
    )
    for page in PAGES:
        rows = _rows(_generated(page.read_text()))
        if rows:
            name = page.name.removesuffix(".md").removesuffix(".zh")
            assert _keys(called[name]) == [_keys(row)[0] for row in rows], page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_claims_that_exist(page: Path) -> None:
    from normkit.lab.claims.registry import all_claims

    commands = re.findall(r"^normkit lab run ([^#\n]*)", page.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        assert set(_keys(command)) <= set(all_claims())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = FENCES.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_index_lists_every_page() -> None:
    for index, ending in (("README.md", ".md"), ("README.zh.md", ".zh.md")):
        text = (ROOT / "docs" / "articles" / index).read_text()
        for page in PAGES:
            if page.name.endswith(".zh.md") == (ending == ".zh.md"):
                assert f"]({page.name})" in text
