"""Measure on this machine, store the results, and write them into the documentation.

    python benchmarks/record.py NAME                 # all cases: half an hour
    python benchmarks/record.py NAME --preset quick
    python benchmarks/record.py NAME --redraw        # from benchmarks/NAME.json, without measuring

NAME states the kind of machine, such as ``epyc-2-cores``. Needs ``pip install '.[bench]'``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from normkit.bench import markdown, results_file
from normkit.bench.chart import speed_chart, steps_chart, write_image

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="the kind of machine")
    parser.add_argument("--preset", default="full", choices=("quick", "default", "full"))
    parser.add_argument("--redraw", action="store_true", help="use the existing file")
    options = parser.parse_args()
    path = ROOT / "benchmarks" / f"{options.name}.json"
    if not options.redraw:
        command = ["bench", "--preset", options.preset, "--steps", "--out", str(path)]
        subprocess.run([sys.executable, "-m", "normkit.cli.main", *command], check=True)
    results = results_file.read(path)
    write_image(speed_chart(results["cases"]), DOCS / "benchmarks-speed.svg")
    write_image(steps_chart(results["steps"]), DOCS / "benchmarks-steps.svg")
    page = DOCS / "benchmarks.md"
    page.write_text(markdown.replace_between_markers(page.read_text(), markdown.tables(results)))


if __name__ == "__main__":
    main()
