"""Show the progress of a study: a board on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from rich.console import Console

from normkit.cli.lab_board import about, board, duration_text, percent
from normkit.cli.lab_page import line
from normkit.cli.lab_study import Study
from normkit.cli.screen import Screen
from normkit.lab.executors import Executor
from normkit.lab.findings import Finding
from normkit.lab.progress import Progress, progress_of
from normkit.lab.runner import Summary, work
from normkit.lab.runs import Run
from normkit.lab.tasks import task_of

__all__ = ["carry_out", "describe", "progress_line"]

LINE_SECONDS = 15.0


def carry_out(study: Study, executor: Executor, out: Console, *, verbose: bool = False) -> Summary:
    """Carry out the unfinished runs, and show how far the claims have come.

    Args:
        verbose: print a line for each run too.
    """
    now = study.progress
    if known := now.runs_done - len(now.failed):
        out.print(f"{known} of {now.runs} runs were in the store already.")
    drawable = out.is_terminal and not out.is_dumb_terminal and not out.legacy_windows
    show = _Board(study, out) if drawable else _Lines(study, out)

    def on_run(run: Run) -> None:
        study.end(run)
        if verbose or run.status == "failed":
            show.say(describe(run, study.arms.get(run.config.key, "")))

    with show:
        summary = work(study.store, study.keys, executor, on_run=on_run, on_progress=show.look)
        show.finish(progress_of(study.store, study.keys, stopping=summary.interrupted))
    return summary


class _Board:
    """Lines that are drawn over each other, and stand there in full at the end."""

    def __init__(self, study: Study, out: Console) -> None:
        self.study, self.out, self.screen = study, out, Screen(out)
        self._ascii = not out.encoding.lower().startswith("utf")

    def __enter__(self) -> _Board:
        self.screen.__enter__()
        self.draw()
        return self

    def __exit__(self, *error: object) -> None:
        self.screen.clear()
        for text in board(self.study, self.out.width, ascii_only=self._ascii):
            self.out.print(text, soft_wrap=True)
        self.screen.__exit__(*error)

    def look(self, now: Progress) -> None:
        self.study.look(now)
        self.draw()

    def finish(self, now: Progress) -> None:
        self.study.finish(now)

    def say(self, text: str) -> None:
        self.screen.clear()
        self.out.print(text, soft_wrap=True)
        self.draw()

    def draw(self) -> None:
        width, height = self.out.size
        # The row below stays free for the cursor.
        self.screen.draw(board(self.study, width, height - 1, ascii_only=self._ascii))


class _Lines:
    """A line for each verdict, and now and then one for the whole."""

    def __init__(self, study: Study, out: Console) -> None:
        self.study, self.out = study, out
        self._printed = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def look(self, now: Progress) -> None:
        self._print(self.study.look(now))
        if now.runs_done < now.runs and time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            self.out.print(progress_line(self.study), soft_wrap=True)

    def finish(self, now: Progress) -> None:
        self._print(self.study.finish(now))

    def say(self, text: str) -> None:
        self.out.print(text, soft_wrap=True)

    def _print(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.out.print(line(finding), soft_wrap=True)


def progress_line(study: Study) -> str:
    """Say in one line how far the study has come, and which claims are in progress."""
    now, remaining = study.progress, study.remaining.shown
    running = [
        f"{each.key} ({each.ended} of {each.runs} runs)"
        for each in study.standings.values()
        if each.begun and not each.settled
    ]
    more = f" and {len(running) - 4} more" if len(running) > 4 else ""
    parts = [
        f"{now.runs_done} of {now.runs} runs, {percent(study.share)} of the work",
        f"about {duration_text(about(remaining))} left" if remaining is not None else "",
        f"in progress: {', '.join(running[:4])}{more}" if running else "",
    ]
    return "; ".join(filter(None, parts))


def describe(run: Run, arm: str = "") -> str:
    """Describe a run and its result in one line; ``arm`` is its claim and arm."""
    config = run.config
    what = f"{arm or f'{config.model} {config.norm}'}, seed {config.seed}"
    if run.status == "failed":
        reason = run.error.strip().splitlines()[-1] if run.error.strip() else "no reason known"
        return f"{what}: failed, {reason}"
    if config.kind == "timing":
        return f"{what}: time of a step, {run.seconds:.1f} s"
    task = task_of(config)
    value = run.last(f"test_{task.figure}")
    ended = "" if run.diverged_step is None else f", {run.ending}"
    known = value is not None and math.isfinite(value)
    figure = task.shown.format(value) if known else f"no test {task.figure}"
    return f"{what}: {figure}{ended}, {run.seconds:.1f} s"
