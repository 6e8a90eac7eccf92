"""The board of ``lab run``: every claim a line, whatever the size of the terminal."""

from __future__ import annotations

import types
from typing import Any

import pytest
from rich.console import Console

from normkit.cli.lab_board import board, claim_line
from normkit.cli.lab_page import short_title
from normkit.cli.lab_progress import progress_line
from normkit.cli.lab_study import Standing
from normkit.cli.screen import Screen
from normkit.lab.claims.registry import all_claims
from normkit.lab.progress import Progress
from tests.cli.terminal import Terminal

WORDS = ("confirmed", "partly", "refuted", "open")
SENTENCE = "With BN minus without: test accuracy averaged over the epochs +2.5 [+2.1, +2.9] points."


def finding(number: int) -> Any:
    word = WORDS[number % 4]
    of = types.SimpleNamespace(word=word, parts=3, sentence=SENTENCE)
    of.confirmed = {"confirmed": 3, "partly": 2}.get(word, 0)
    return of


def study(settled: int, share: float = 0.5, left: float | None = 754.0) -> Any:
    """A study of all claims: so many settled, the next one in progress, the others waiting."""
    standings = {}
    for number, claim in enumerate(all_claims().values()):
        standing = Standing(claim.key, short_title(claim.title), runs=20)
        if number < settled:
            standing.share, standing.ended, standing.finding = 1.0, 20, finding(number)
        elif number == settled:
            standing.share, standing.ended = share, int(20 * share)
        standings[claim.key] = standing
    done = sum(each.ended for each in standings.values())
    return types.SimpleNamespace(
        standings=standings, progress=Progress(done, 20 * len(standings)), elapsed=65.0,
        share=done / (20 * len(standings)), remaining=types.SimpleNamespace(shown=left),
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [6, 23, 40])
@pytest.mark.parametrize("settled", [0, 1, 12, 25, 27])
def test_fits_the_terminal(width: int, height: int, settled: int) -> None:
    whole = study(settled)
    lines = board(whole, width, height)
    assert len(lines) <= height
    assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)
    # The first claim that is not settled has a line, if there is one.
    keys = [line.plain.split()[0] for line in lines]
    waiting = [each.key for each in whole.standings.values() if not each.settled]
    assert not waiting or waiting[0] in keys


@pytest.mark.parametrize("settled", [0, 9, 20])
def test_what_does_not_fit_is_summed_up(settled: int) -> None:
    lines = [line.plain for line in board(study(settled), 80, 23)]
    shown = sum(line.startswith("C") for line in lines)
    hidden = 0
    for line in lines:
        if line.startswith(("above: ", "below: ")):
            counts = line.split(": ")[2].split(", ")
            hidden += sum(int(part.split()[0]) for part in counts)
    assert shown + hidden == 27
    assert len(lines) == 23


def test_summary_counts_verdicts() -> None:
    (above,) = (line.plain for line in board(study(20), 80, 12) if line.plain.startswith("above"))
    assert above == "above: C1 to C17: 5 confirmed, 4 partly, 4 refuted, 4 open"


def test_line_has_name_bar_and_verdict() -> None:
    standings = study(1).standings
    confirmed, running, waiting = list(standings.values())[:3]
    assert claim_line(confirmed, 80, 3).plain.startswith("C1   BN ")
    line = claim_line(confirmed, 80, 3).plain
    assert "BN converges faster and lower" in line
    assert "━" * 12 in line
    assert line.rstrip().endswith("confirmed, 3 of 3")
    assert "━━━━━━──────  10 of 20 runs" in claim_line(running, 80, 3).plain
    assert claim_line(waiting, 80, 3).plain.rstrip().endswith("────────────  waiting")
    # With room, what was found stands beside it.
    assert "averaged over the epochs" in claim_line(confirmed, 200, 3).plain
    assert claim_line(running, 80, 3, ascii_only=True).plain.isascii()


def test_failed_runs_are_named() -> None:
    standing = next(iter(study(1).standings.values()))
    standing.failed = 2
    assert "2 of 20 failed" in claim_line(standing, 80, 3).plain


def test_remaining_time_is_told_in_all_its_states() -> None:
    def last(**changes: Any) -> str:
        return board(study(3, **changes), 80)[-1].plain

    assert "about 12 min 30 s left" in last()
    assert "estimating the time left" in last(left=None)
    done = study(27, left=0.0)
    assert "0 s left" in board(done, 80)[-1].plain
    stopping = study(3)
    stopping.progress = Progress(60, 540, stopping=True)
    assert "stopping, saving state" in board(stopping, 80)[-1].plain


def test_plain_line_names_claims_in_progress() -> None:
    assert progress_line(study(3)) == (
        "70 of 540 runs, 13 % of the work; about 12 min 30 s left; in progress: C4 (10 of 20 runs)"
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (80, 10)])
def test_drawing_neither_scrolls_nor_blinks(width: int, height: int) -> None:
    terminal = Terminal(width, height)
    out = Console(file=terminal, force_terminal=True, width=width, height=height, emoji=False)
    out.print("Data: Fashion-MNIST")
    with Screen(out) as screen:
        for settled in range(27):
            for share in (0.1, 0.5, 0.9):
                screen.draw(board(study(settled, share), width, height - 1))
                assert terminal.rows[0].startswith("Data") or terminal.gone
        assert len(terminal.gone) <= 1  # the line above, at most
        screen.clear()
    out.print("Report: page.html")
    assert terminal.blanks == 0
    assert terminal.everything[:2] == ["Data: Fashion-MNIST", "Report: page.html"]


def test_only_what_changed_is_written() -> None:
    written: list[str] = []
    terminal = Terminal(80, 24)
    out = Console(file=terminal, force_terminal=True, width=80, height=24)
    with Screen(out) as screen:
        screen.draw(board(study(3, 0.2), 80, 23))
        write = terminal.write

        def noted(text: str) -> int:
            if text:
                written.append(text)
            return write(text)

        terminal.write = noted  # type: ignore[method-assign]
        screen.draw(board(study(3, 0.2), 80, 23))
        assert written == []
        screen.draw(board(study(3, 0.9), 80, 23))
    assert len(written[0]) < 600  # two lines of 23
    assert "C4" in terminal.everything[3] and "18 of 20 runs" in terminal.everything[3]
