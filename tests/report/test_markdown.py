"""The table of verdicts, and its place in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from normkit.errors import StoreError
from normkit.lab.findings import Comparison, Finding
from normkit.report.markdown import BEGIN, END, effect, put_between, table, together

FASTER = Comparison(
    "Faster: how much higher is it?", "points", 13.5752, 11.2751, 15.8752, 5,
    "confirmed", decides=True,
)  # fmt: skip
ASIDE = dataclasses.replace(FASTER, question="And so?", decides=False)


def finding(*comparisons: Comparison, done: int = 10, title: str = "It helps") -> Finding:
    return Finding(
        key="C1", title=title, statement="", sources=(), prediction="", word="confirmed",
        sentence="", comparisons=comparisons, charts=(), tables=(), setup=(), data="", runs=done,
        diverged=0, seconds=1.0, records=({},) * 10, parts=sum(one.decides for one in comparisons),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "unit", "shown"),
    [
        ((0.26, 0.2354, 0.2847), "nats", "0.260 [0.235, 0.285] nats"),
        ((56, 43, 69), "points", "56 [43, 69] points"),
        ((-0.3, -0.7, 0.1), "points", "−0.30 [−0.70, 0.10] points"),
        ((10, 4.9, 15.1), "points", "10 [5, 15] points"),
        ((0.5, 0.5, 0.5), "nats", "0.5 nats"),
        ((1234.0, 1000.0, 1468.0), "steps", "1,234 [1,000, 1,468] steps"),
    ],
)
def test_an_effect_has_the_decimals_that_its_interval_leaves(
    numbers: tuple[float, float, float], unit: str, shown: str
) -> None:
    value, low, high = numbers
    found = Comparison("How much?", unit, value, low, high, 5, "confirmed")
    assert effect(found) == f"How much? {shown}"


def test_a_row_has_what_decides_and_nothing_else() -> None:
    *_, row, _, caption = table([finding(FASTER, ASIDE)], "(caption)").splitlines()
    assert row == (
        "| C1 It helps | confirmed | Faster: how much higher is it? 13.6 [11.3, 15.9] points | 5 |"
    )
    assert caption == "(caption)"


def test_what_is_missing_is_said() -> None:
    open_question = dataclasses.replace(FASTER, needed=(7, 12))
    text = table([finding(open_question, done=7)], "")
    assert "points; 7 to 12 seeds would decide it |" in text
    assert "(7 of 10 runs done)" in text


def test_each_of_several_parts_has_its_word() -> None:
    lower = dataclasses.replace(FASTER, question="Lower?", word="open", needed=(7, None))
    both = dataclasses.replace(finding(FASTER, lower), word="partly", confirmed=1, parts=2)
    row = table([both], "").splitlines()[2]
    assert "| partly, 1 of 2 parts confirmed | Faster: how much higher is it? 13.6 " in row
    assert "points; confirmed<br>Lower? 13.6 " in row
    assert "points; open; 7 seeds or more would decide it | 5 |" in row
    row = table([dataclasses.replace(both, parts=3)], "").splitlines()[2]
    assert "would decide it<br>1 of 3 parts not measured | 5 |" in row


def test_short_rows_have_the_first_part_and_those_not_confirmed() -> None:
    opposite = dataclasses.replace(FASTER, question="Lower?", word="opposite")
    third = dataclasses.replace(FASTER, question="Third?")
    both = dataclasses.replace(finding(FASTER, opposite, third), practice="Use it.")
    head, line, row, *_ = table([both], "", short=True).splitlines()
    assert head.count("|") == line.count("|") == row.count("|") == 4
    assert "| Faster: how much higher is it? 13.6 [11.3, 15.9] points<br>Lower? 13.6 " in row
    assert row.endswith("points; opposite |")
    assert "Third?" not in row
    row = table([finding(opposite, FASTER)], "", short=True).splitlines()[2]
    assert "Lower? 13.6 [11.3, 15.9] points; opposite |" in row
    assert "Faster" not in row
    unsure = dataclasses.replace(FASTER, word="open", needed=(7, 12))
    row = table([finding(unsure)], "", short=True).splitlines()[2]
    assert row.endswith("points; open |")


def test_all_parts_together_are_counted() -> None:
    parts = [dataclasses.replace(FASTER, p=p, survives=p < 0.01) for p in (0.001, 0.02)]
    constant = dataclasses.replace(FASTER, p=None)
    assert together([finding(*parts, constant, ASIDE), finding(*parts, done=7)]) == (
        "2 of 2 deciding parts are confirmed; chance alone would confirm up to 0.1 if no effect "
        "existed. Corrected for all of them together (Holm), 1 stay confirmed."
    )


def test_signs_of_markdown_and_html_are_text() -> None:
    text = table([finding(FASTER, title="a|b <script>")], "")
    assert "a\\|b &lt;script>" in text


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_only_what_is_between_the_marks_changes(tmp_path: Path, line: str) -> None:
    path = tmp_path / "README.md"
    head, tail = f"# Ä title{line}text  {line}{line}", f"{line}{line}more{line}no end of line"
    path.write_bytes(f"{head}{BEGIN}{line}old{line}older{line}{END}{tail}".encode())
    path.chmod(0o640)
    assert put_between(path, "new\n| table |\n")
    new = f"{head}{BEGIN}{line}new{line}| table |{line}{END}{tail}"
    assert path.read_bytes() == new.encode()
    assert not put_between(path, "new\n| table |\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN, BEGIN + END + BEGIN + END])
def test_a_file_without_the_two_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(StoreError, match="once, on a line of its own"):
        put_between(path, "new")
    assert path.read_text() == text


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xfe")
    for name in ("missing", "picture"):
        with pytest.raises(StoreError, match="--into"):
            put_between(tmp_path / name, "new")
    assert (tmp_path / "picture").read_bytes() == b"\xff\xfe"
