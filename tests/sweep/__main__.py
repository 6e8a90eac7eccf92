"""The long run: ``python -m tests.sweep --minutes 60``."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from tests.sweep import grammar, program
from tests.sweep.tools import TOOLS, hunt
from tests.sweep.trial import CALLS

EXAMPLES = 150
"""Programs of each tool, in turn."""


def main() -> None:
    """Parse options, run, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of wall-clock time")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other programs")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its own seed")
    parser.add_argument("--finds", type=Path, default=Path("build/sweep.txt"), help="appended to")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="these tools alone")
    options = parser.parse_args()
    options.finds.parent.mkdir(parents=True, exist_ok=True)
    if options.jobs == 1:
        results = [run(options, options.seed)]
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            seeds = [options.seed + 10**6 * i for i in range(options.jobs)]
            results = list(pool.map(run, [options] * options.jobs, seeds))
    text = figures(sum((counts for counts, _ in results), Counter()),
                   {key: n for _, finds in results for key, n in finds.items()})  # fmt: skip
    print(text)
    with options.finds.open("a") as file:
        file.write(f"{text}\n")


def run(options: Any, seed: int) -> tuple[Counter[str], dict[tuple[str, str, str], int]]:
    """Look for faults until the time is over; return what was counted, and the finds."""
    torch.set_num_threads(1)
    grammar.WRAPPERS.append(grammar.COMPILED)
    counts: Counter[str] = Counter()
    finds: dict[tuple[str, str, str], int] = {}
    end, number = time.monotonic() + 60 * options.minutes, seed * 1000
    while time.monotonic() < end:
        for name in options.tool or TOOLS:
            number += 1
            find = hunt(name, EXAMPLES, {*finds}, counts, number)
            counts["rounds"] += 1
            if find is not None:
                finds[find.fault.key] = find.examples
                report(options.finds, find)
            if time.monotonic() > end:
                break
    counts["models built"] = program.COUNTS["built"]
    for tool, calls in CALLS.items():
        counts[f"calls of {tool}"] = calls
    return counts, finds


def report(path: Path, find: Any) -> None:
    """Append a find to the file, and print it."""
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    text = f"\n# {when}: {find.fault}\n{find.text}\n"
    print(text, flush=True)
    with path.open("a") as file:
        file.write(text)


def figures(counts: Counter[str], finds: dict[tuple[str, str, str], int]) -> str:
    """Format the counts: in all, refusals by reason, and distinct faults."""
    calls = sum(n for key, n in counts.items() if key.startswith("calls of "))
    lines = [f"{counts['models built']:,} models built, {calls:,} calls of tools, "
             f"{len(finds)} distinct faults"]  # fmt: skip
    lines += [f"  fault: {tool}: {kind}: {detail}" for tool, kind, detail in finds]
    lines += [f"  {n:7,}  {key}" for key, n in sorted(counts.items(), key=lambda row: row[0])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
