"""Train all cases, ask each tool about them, and print what it detects: ``python run.py``."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from faults.cases import CASES
from faults.plan import Case, Training
from faults.tools import TOOLS, Answer, Found, ask, available, judge

BY_NAME = {case.name: case for case in CASES}


class Row(NamedTuple):
    """Case with what a tool found in the fault and in the twin."""

    case: str
    tool: str
    accuracy: tuple[float, float]
    fault: list[Found]
    twin: list[Found]
    seconds: float

    @property
    def answer(self) -> Answer:
        return judge(BY_NAME[self.case], self.tool, self.fault, self.twin)


def accuracy(training: Training) -> float:
    """Return the share of evaluation images that the model classifies rightly."""
    right = count = 0
    training.model.eval()
    with torch.no_grad():
        for images, labels in training.evaluation_batches:
            right += int((training.model(images).argmax(1) == labels).sum())
            count += len(labels)
    return right / count


def row_of(name: str, tool: str, seed: int) -> Row:
    """Train a case and its twin, and ask a tool about both."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    case = BY_NAME[name]
    fault, found = ask(tool, case.faulty, seed)
    twin, alarms = ask(tool, case.healthy, seed)
    return Row(
        name, tool, (accuracy(fault), accuracy(twin)), found, alarms, time.perf_counter() - start
    )


def rows_of(names: list[str], tools: list[str], jobs: int, seed: int) -> list[Row]:
    """Run all of them and show progress on the error stream."""
    todo = [(name, tool) for tool in tools for name in names]
    if jobs == 1:
        return [_shown(row_of(*each, seed), len(todo)) for each in todo]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        futures = [pool.submit(row_of, *each, seed) for each in todo]
        for future in concurrent.futures.as_completed(futures):
            _shown(future.result(), len(todo))
        return [future.result() for future in futures]


def _shown(row: Row, total: int) -> Row:
    print(f"{row.tool:12}{row.case:32}{row.seconds:5.0f} s  of {total}", file=sys.stderr)
    return row


def summary(rows: list[Row]) -> str:
    """Return a Markdown table with one line for each tool."""
    lines = [
        "| tool | detected | cause exact and first | cause named | twins with a false alarm |",
        "|---|--:|--:|--:|--:|",
    ]
    for tool in dict.fromkeys(row.tool for row in rows):
        answers = [row.answer for row in rows if row.tool == tool]
        counts = [sum(map(bool, column)) for column in zip(*answers, strict=True)]
        lines.append(f"| {tool} | " + " | ".join(f"{n} of {len(answers)}" for n in counts) + " |")
    return "\n".join(lines)


def details(rows: list[Row]) -> str:
    """Return a Markdown table with one line for each case."""
    tools = list(dict.fromkeys(row.tool for row in rows))
    lines = [
        "| fault | accuracy: fault, twin | cause | " + " | ".join(tools) + " |",
        "|---|--:|---|" + "---|" * len(tools),
    ]
    for name in dict.fromkeys(row.case for row in rows):
        of_case = {row.tool: row for row in rows if row.case == name}
        fault, twin = next(iter(of_case.values())).accuracy
        texts = [_text(of_case[tool]) if tool in of_case else "" for tool in tools]
        lines.append(
            f"| {name} | {100 * fault:.1f}, {100 * twin:.1f} | {_codes(BY_NAME[name])} | "
            + " | ".join(texts)
            + " |"
        )
    return "\n".join(lines)


def _codes(case: Case) -> str:
    return " ".join((*case.codes, *case.torch_audit)) + " (note)" * case.note


def _text(row: Row) -> str:
    answer = row.answer
    word = "exact" if answer.exact else "named" if answer.named else "detected"
    text = f"**{word}**" if answer.exact else word if answer.detected else "missed"
    also = {(one.code, one.severity) for one in row.twin}
    codes = [
        one.code
        for one in row.fault
        if (one.matters or BY_NAME[row.case].note) and (one.code, one.severity) not in also
    ]
    alarms = f"; twin: {' '.join(answer.alarms)}" if answer.alarms else ""
    return f"{text} {' '.join(dict.fromkeys(codes))}".strip() + alarms


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the rows as what JSON can hold."""
    return [
        {
            "case": row.case,
            "cause": BY_NAME[row.case].cause,
            "tool": row.tool,
            "accuracy": {"fault": row.accuracy[0], "twin": row.accuracy[1]},
            "seconds": round(row.seconds, 1),
            **row.answer._asdict(),
            "fault": [one._asdict() for one in row.fault],
            "twin": [one._asdict() for one in row.twin],
        }
        for row in rows
    ]


def recorded(files: list[Path]) -> list[Row]:
    """Read rows from files of ``--json``; a later one replaces an earlier one."""
    rows = {}
    for file in files:
        for one in json.loads(file.read_text()):
            fault, twin = ([Found(**each) for each in one[part]] for part in ("fault", "twin"))
            accuracies = (one["accuracy"]["fault"], one["accuracy"]["twin"])
            row = Row(one["case"], one["tool"], accuracies, fault, twin, one["seconds"])
            if row.case in BY_NAME:
                rows[row.case, row.tool] = row
    order = {name: i for i, name in enumerate(BY_NAME)}
    return sorted(rows.values(), key=lambda row: (TOOLS.index(row.tool), order[row.case]))


def _installed(names: Sequence[str]) -> list[str]:
    tools = []
    for tool in names:
        if available(tool):
            tools.append(tool)
        else:
            print(f"{tool} is not installed, and is left out", file=sys.stderr)
    return tools


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 2 for a case that does not exist."""
    parser = argparse.ArgumentParser(description="Ask tools about trainings with one fault each.")
    parser.add_argument("--only", action="append", metavar="NAME", help="a case; may be repeated")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="default: all installed")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings there")
    parser.add_argument(
        "--from", dest="files", type=Path, action="append", metavar="FILE",
        help="print results of --json and train nothing; of several files, the later ones count",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    names = options.only or list(BY_NAME)
    if unknown := [name for name in names if name not in BY_NAME]:
        print(f"no case {', '.join(unknown)}; there are: {' '.join(BY_NAME)}", file=sys.stderr)
        return 2
    if options.files:
        rows = recorded(options.files)
    else:
        rows = rows_of(names, _installed(options.tool or TOOLS), options.jobs, options.seed)
    print(summary(rows), details(rows), sep="\n\n")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(rows), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
