"""The board of a study: one line a claim, and what does not fit on the terminal summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from normkit.cli.lab_options import WORD_STYLE
from normkit.cli.lab_study import Standing, Study
from normkit.lab.findings import Finding
from normkit.report.text import duration, shorten

__all__ = ["about", "board", "claim_line", "duration_text", "percent", "short_verdict"]

BEFORE = 2
"""Settled claims that are shown above the first one in progress, where not all fit."""
LONGEST_TITLE = 60
SENTENCE = 40
"""Columns that must be left for a settled claim's finding to stand beside its verdict."""
VERDICT = 17


def about(seconds: float) -> float:
    """Round a time to what it is known to: a second, five, ten, half a minute, a minute.

    >>> [about(s) for s in (0, 7.6, 62, 318, 1003, 5000)]
    [0, 8, 60, 320, 990, 4980]
    """
    steps = ((60, 1), (200, 5), (600, 10), (1200, 30))
    step = next((step for limit, step in steps if seconds < limit), 60)
    return round(seconds / step) * step


def duration_text(seconds: float) -> str:
    """Return a time in whole seconds.

    >>> duration_text(8), duration_text(754)
    ('8 s', '12 min 34 s')
    """
    return f"{seconds:.0f} s" if seconds < 60 else duration(seconds)


def percent(share: float) -> str:
    """Return a share in whole percent, the whole only once it is done.

    >>> percent(0.126), percent(0.999), percent(1.0)
    ('13 %', '99 %', '100 %')
    """
    return f"{100 if share >= 1 else min(99, round(100 * share))} %"


def short_verdict(finding: Finding) -> str:
    """Return the verdict with its parts, short.

    >>> import types
    >>> of = lambda word, n: types.SimpleNamespace(word=word, confirmed=n, parts=3)
    >>> short_verdict(of("confirmed", 3)), short_verdict(of("partly", 2)), short_verdict(of("open", 0))
    ('confirmed, 3 of 3', 'partly, 2 of 3', 'open')
    """  # noqa: E501
    if finding.parts > 1 and finding.word in ("confirmed", "partly"):
        return f"{finding.word}, {finding.confirmed} of {finding.parts}"
    return finding.word


def _state(standing: Standing) -> tuple[str, str]:
    """Return where a claim stands in a few words, and their style."""
    if standing.failed:
        return f"{standing.failed} of {standing.runs} failed", "bold red"
    if standing.finding is not None:
        return short_verdict(standing.finding), WORD_STYLE[standing.finding.word]
    if standing.begun:
        return f"{standing.ended} of {standing.runs} runs", ""
    return "waiting", "dim"


def bar(share: float, width: int, *, ascii_only: bool = False) -> Text:
    """Draw a share; the rest of the bar is thinner, for terminals without colour.

    >>> bar(0.5, 8).plain, bar(1, 4).plain, bar(0.26, 8, ascii_only=True).plain
    ('━━━━────', '━━━━', '##------')
    """
    full, rest = ("#", "-") if ascii_only else ("━", "─")
    done = min(width, int(share * width + 1e-9)) if share < 1 else width
    return Text.assemble((full * done, "cyan"), (rest * (width - done), "dim"))


def claim_line(standing: Standing, width: int, key_width: int, *, ascii_only: bool = False) -> Text:
    """Return a claim's line: its name, a bar, its verdict or progress; with room, the finding."""
    bar_width = 0 if width < 60 else 12 if width < 110 else 20
    line = Text(no_wrap=True)
    line.append(f"{standing.key:<{key_width}}  ", "bold")
    room = width - key_width - 2 - (bar_width and bar_width + 2) - VERDICT - 2
    title_width = max(8, min(LONGEST_TITLE, room))
    line.append(f"{shorten(standing.title, title_width - 1):<{title_width}}  ")
    if bar_width:
        line.append_text(bar(standing.share, bar_width, ascii_only=ascii_only))
        line.append("  ")
    words, style = _state(standing)
    line.append(f"{words:<{VERDICT}}", style)
    room = width - line.cell_len - 2
    if standing.finding is not None and room >= SENTENCE:
        line.append("  ")
        line.append(shorten(standing.finding.sentence, room - 1), "dim")
    line.truncate(width)
    return line


def summary_line(standings: Sequence[Standing], where: str) -> Text:
    """Sum up the claims that do not fit."""
    counts = Counter(_state(each)[0].split(",")[0] for each in standings if each.settled)
    parts = [f"{counts.pop(word)} {word}" for word in tuple(WORD_STYLE) if counts.get(word)]
    parts += [f"{number} {words}" for words, number in counts.items()]
    running = sum(each.begun and not each.settled for each in standings)
    waiting = sum(not each.begun and not each.settled for each in standings)
    parts += [f"{running} in progress"] * bool(running) + [f"{waiting} waiting"] * bool(waiting)
    first, last = standings[0].key, standings[-1].key
    span = first if first == last else f"{first} to {last}"
    return Text(f"{where} {span}: {', '.join(parts)}", style="dim", no_wrap=True)


def _window(standings: Sequence[Standing], room: int) -> tuple[int, int]:
    """Choose the claims that get a line: from just before the first that is not settled.

    The others, before and after, get a line together each.
    """
    count = len(standings)
    if count <= room:
        return 0, count
    first = next((i for i, each in enumerate(standings) if not each.settled), count)
    begin = first - BEFORE
    if begin < 2:  # a line that sums up one claim gains nothing
        return 0, room - 1
    # No further than where the last one has the last line.
    begin = min(begin, count - (room - 1))
    end = begin + room - 1
    return (begin, count) if end >= count else (begin, end - 1)


def total_line(study: Study, width: int) -> Text:
    """Return the line of the whole study: share, runs, remaining time, time so far."""
    now = study.progress
    parts = [f"{percent(study.share)} of the work", f"{now.runs_done} of {now.runs} runs"]
    remaining = study.remaining.shown
    if now.stopping:
        parts.append("stopping, saving state")
    elif remaining is None:
        parts.append("estimating the time left")
    elif now.runs_done < now.runs:
        parts.append(f"about {duration_text(about(remaining))} left")
    else:
        parts.append("0 s left")
    parts.append(f"{duration_text(int(study.elapsed))} so far" if width >= 72 else "")
    line = Text(" · ".join(filter(None, parts)), style="bold", no_wrap=True, overflow="ellipsis")
    line.truncate(width)
    return line


def board(
    study: Study, width: int, height: int | None = None, *, ascii_only: bool = False
) -> list[Text]:
    """Return the lines of the board, at most ``height`` of them, none wider than ``width``."""
    standings = list(study.standings.values())
    key_width = max((len(each.key) for each in standings), default=2)
    begin, end = _window(standings, len(standings) if height is None else max(3, height - 1))
    lines = []
    if begin:
        lines.append(summary_line(standings[:begin], "above:"))
    for standing in standings[begin:end]:
        lines.append(claim_line(standing, width, key_width, ascii_only=ascii_only))
    if end < len(standings):
        lines.append(summary_line(standings[end:], "below:"))
    for line in lines:
        line.truncate(width)
    lines.append(total_line(study, width))
    return lines
