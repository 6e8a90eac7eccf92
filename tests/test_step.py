"""The steps of a set-up: what they say, and that they show to be alive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal

STEP = Path(__file__).parents[1] / "tools" / "step.py"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="make is for POSIX")


def step(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STEP), "Installing", "--", *command], capture_output=True, text=True
    )


def test_success_is_two_lines() -> None:
    done = step("sh", "-c", "echo noise; echo more >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Installing\n  done, 0 s\n", "")


def test_failure_prints_the_output() -> None:
    done = step("sh", "-c", "echo the reason; exit 3")
    assert done.returncode == 3
    assert "failed" in done.stdout
    assert "the reason" in done.stderr


def test_missing_command_is_named() -> None:
    done = step("no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_terminal_shows_what_the_step_is_at() -> None:
    import pty

    code = 'echo compiled 1 of 2 files > "$NORMKIT_PROGRESS"; echo Collecting torch; sleep 0.5'
    seen = bytearray()

    def read(fd: int) -> bytes:
        data = os.read(fd, 1024)
        seen.extend(data)
        return data

    words = [sys.executable, str(STEP), "Installing", "--", "sh", "-c", code]
    status = pty.spawn(words, read, lambda fd: b"")
    assert os.waitstatus_to_exitcode(status) == 0
    terminal = Terminal(100, 5)
    terminal.write(seen.decode().replace("\r\n", "\n"))
    assert b"compiled 1 of 2 files" in seen  # as the build says, rather than its last line
    assert terminal.everything[0] == "Installing"
    assert terminal.everything[1].startswith("  done, ")
