"""Show the progress of a study: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich import progress
from rich.console import Console
from rich.text import Text

from normkit.cli.lab_tour import Tour
from normkit.lab.cost import expected_seconds
from normkit.lab.executors import Executor
from normkit.lab.runner import Progress, Summary, progress_of, work
from normkit.lab.runs import Run
from normkit.lab.store import Store
from normkit.lab.tasks import task_of
from normkit.report.text import duration

__all__ = ["carry_out"]

LINE_SECONDS = 15.0
SPEED_SECONDS = 600.0


def carry_out(
    store: Store,
    keys: Sequence[str],
    executor: Executor,
    out: Console,
    tour: Tour | None = None,
) -> Summary:
    """Carry out the unfinished runs and show the progress: each run, or the verdicts of a tour."""
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        _Remaining(),
        console=out,
        disable=not out.is_terminal,
        # Some runs take a minute: the speed of the last half of one says little.
        speed_estimate_period=SPEED_SECONDS,
    )
    # What there is to do, in expected processor time: images of one network cost a hundred times
    # those of another.
    expected = {key: expected_seconds(run) for key, run in store.configs(keys).items()}
    whole = sum(expected.values())
    task = bar.add_task("runs", total=whole)
    done = 0
    printed_at = time.monotonic()

    def on_run(run: Run) -> None:
        nonlocal done
        done += 1
        if tour is None or run.status == "failed":
            out.print(f"[{done} here] {describe(run)}", soft_wrap=True)

    def on_progress(now: Progress) -> None:
        nonlocal printed_at
        part = sum(seconds * now.shares[key] for key, seconds in expected.items())
        bar.update(task, description=f"{now.runs_done} of {now.runs} runs", completed=part)
        if not out.is_terminal and time.monotonic() - printed_at > LINE_SECONDS:
            printed_at = time.monotonic()
            seconds = bar.tasks[0].time_remaining
            remaining = f", about {duration(seconds)} left" if seconds else ""
            share = part / whole
            out.print(f"{now.runs_done} of {now.runs} runs, {share:.0%}{remaining}")
        if tour is not None:
            tour.look(now)

    with bar:
        summary = work(store, keys, executor, on_run=on_run, on_progress=on_progress)
    if tour is not None:
        tour.look(progress_of(store, keys))  # if nothing was left to do
    if summary.known and not summary.interrupted:
        out.print(f"{summary.known} of {len(keys)} runs were in the store already.")
    return summary


class _Remaining(progress.TimeRemainingColumn):
    """Time left; nothing once all is done."""

    def render(self, task: progress.Task) -> Text:
        return Text("") if task.finished else Text.assemble(super().render(task), " left")


def describe(run: Run) -> str:
    """Describe a run and its result in one line."""
    config = run.config
    words = [config.model, config.norm, *(f"{name} {value}" for name, value in config.norm_options)]
    words += [config.act, f"lr {config.lr:g}", f"seed {config.seed}"]
    if run.status == "failed":
        reason = run.error.strip().splitlines()[-1] if run.error.strip() else "no reason known"
        return f"{' '.join(words)}: failed, {reason}"
    if config.kind == "timing":
        return f"{config.model}, time of a step, repetition {config.seed}: {run.seconds:.1f} s"
    task = task_of(config)
    value = run.last(f"test_{task.figure}")
    ended = "" if run.diverged_step is None else f", {run.ending}"
    known = value is not None and math.isfinite(value)
    figure = task.shown.format(value) if known else f"no test {task.figure}"
    return f"{' '.join(words)}: {figure}{ended}, {run.seconds:.1f} s"
