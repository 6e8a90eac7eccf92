"""Run one step of a set-up: say what it does, show that it lives, print its output if it fails.

    python3 tools/step.py "Installing torch (a minute or two)" -- pip install torch

On a terminal a line below shows the time so far and what the step is at; elsewhere (CI, a pipe) a
line comes every half minute. Needs nothing but Python: it runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINE_SECONDS = 30.0
LAST_LINES = 40


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def stage(output: Path, progress: Path) -> str:
    """What the step is at: as it says itself (setup.py), else the last line that it printed."""
    try:
        text = progress.read_text(errors="replace").strip()
        lines = output.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return text or next((line.strip() for line in reversed(lines) if line.strip()), "")


def run(what: str, command: list[str]) -> int:
    begin = printed = time.monotonic()
    on_terminal = sys.stdout.isatty()
    print(what, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output, progress = Path(folder, "output"), Path(folder, "progress")
        progress.touch()
        with output.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "NORMKIT_PROGRESS": str(progress)},
                )
            except OSError as error:
                print(f"\n{command[0]}: {error.strerror}", file=sys.stderr)
                return 127
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    elapsed = duration(time.monotonic() - begin)
                    if on_terminal:
                        line = f"  {elapsed}  {stage(output, progress)}"
                        width = shutil.get_terminal_size().columns - 1
                        print(f"\r\x1b[K{line[:width]}", end="", flush=True)
                    elif time.monotonic() - printed > LINE_SECONDS:
                        printed = time.monotonic()
                        print(f"  {elapsed}: {stage(output, progress)[:100]}", flush=True)
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                process.wait()
                print("\nStopped.", file=sys.stderr)
                return 130
        elapsed = duration(time.monotonic() - begin)
        end = "done" if process.returncode == 0 else "failed"
        erase = "\r\x1b[K" if on_terminal else ""
        print(f"{erase}  {end}, {elapsed}", flush=True)
        if process.returncode:
            lines = output.read_text(errors="replace").splitlines()
            print("\n".join(lines[-LAST_LINES:]), file=sys.stderr)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def main() -> int:
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        print(__doc__, file=sys.stderr)
        return 2
    return run(sys.argv[1], sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
