"""``normkit lab`` as a user types it."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normkit.cli import lab_study
from normkit.cli.app import app
from normkit.lab.claims.claim import Claim
from normkit.lab.store import Store
from tests.cli.terminal import Terminal

NORMKIT = [sys.executable, "-m", "normkit.cli.main"]


def test_error_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "lab.sqlite").write_bytes(b"no database at all " * 100)
    for arguments in (
        ("run", "C99"),
        ("report", "--store", str(tmp_path / "none.sqlite")),
        ("report", "--store", str(tmp_path / "lab.sqlite")),
    ):
        done = CliRunner().invoke(app, ["lab", *arguments])
        assert done.exit_code == 2
        assert "fix: " in done.stderr.lower()
        assert isinstance(done.exception, SystemExit)


def test_lists(tiny: Claim, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lab", "list", "--store", str(tmp_path / "x.sqlite"), "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["claim"] == "C5"
    cost = row["cost"]["quick"]
    assert 0 < cost.pop("expected_seconds") < 60
    assert cost == {"runs": 4, "images": 1024, "seconds": None}
    assert row["demo"] is True
    assert row["last"] is None
    assert not (tmp_path / "x.sqlite").exists()
    done = CliRunner().invoke(app, ["lab", "list", "--store", str(tmp_path / "x.sqlite")])
    assert "not run" in done.stdout
    assert re.search(r"4 runs  about \d+\.\d min", done.stdout)
    assert "There is no store" in done.stdout


def test_whole_study_from_run_to_report(tiny: Claim, tmp_path: Path) -> None:
    store, page = tmp_path / "lab.sqlite", tmp_path / "report.html"
    run = ["lab", "run", "--store", str(store), "--report", str(page), "--workers", "2"]
    done = CliRunner().invoke(app, [*run, "--verbose"])
    assert done.exit_code == 0, done.output
    assert "1 claim, 4 runs, 2 at once." in done.stdout
    for arm in ("with BN", "without BN"):
        for seed in (0, 1):
            assert f"C5 {arm}, seed {seed}: test accuracy" in done.stdout
    (verdict,) = verdicts([line for line in done.stdout.splitlines() if "seed " not in line[:30]])
    assert "5 " in verdict
    assert f"Report: {page}" in done.stdout
    assert "Batch normalization makes sigmoid networks trainable" in page.read_text("utf-8")

    page.unlink()
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    assert "4 of 4 runs were in the store already" in done.stdout
    assert "seed 0:" not in done.stdout
    assert len(verdicts(done.stdout.splitlines())) == 1
    assert page.exists()

    done = CliRunner().invoke(app, [*run, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["findings"][0]["key"] == "C5"
    assert found["findings"][0]["runs"] == 4

    again = tmp_path / "again.html"
    done = CliRunner().invoke(app, ["lab", "report", "--store", str(store), "--report", str(again)])
    assert done.exit_code == 0, done.output
    assert again.exists()
    done = CliRunner().invoke(
        app, ["lab", "report", "C5", "--store", str(store), "--out", str(again)]
    )
    assert done.exit_code == 0, done.output

    done = CliRunner().invoke(app, ["lab", "list", "--store", str(store), "--json"])
    assert json.loads(done.stdout)[0]["last"]["preset"] == "quick"


def test_tour_prints_each_verdict_once_and_updates_the_report(
    touring: dict[str, Claim], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, page = tmp_path / "lab.sqlite", tmp_path / "report.html"
    pages: list[str] = []
    write = lab_study.write
    monkeypatch.setattr(lab_study, "write", lambda *at: pages.append(write(*at).read_text("utf-8")))
    tour = ["lab", "tour", "--store", str(store), "--report", str(page), "--workers", "1"]
    done = CliRunner().invoke(app, tour)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].split(maxsplit=1)[0] for line in verdicts(lines)] == ["C1", "C5"]
    assert "seed 0:" not in done.stdout
    assert lines[-1] == f"Report: {page}"
    # The first page has a verdict on the first claim only.
    assert len(pages) == 2
    assert "So far 0 of 4 runs" in pages[0]
    assert "So far" not in pages[1]
    with Store(store) as opened:
        assert opened.fact("preset") == "tour"

    # What is there is told again, and nothing is trained.
    pages.clear()
    done = CliRunner().invoke(app, tour)
    assert "8 of 8 runs were in the store already" in done.stdout
    assert len(verdicts(done.stdout.splitlines())) == 2
    assert len(pages) == 1
    done = CliRunner().invoke(app, [*tour, "--json"])
    assert [each["key"] for each in json.loads(done.stdout)["findings"]] == ["C1", "C5"]


def verdicts(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("C")]


def test_tour_refuses_a_claim_that_it_has_not(tiny: Claim, tmp_path: Path) -> None:
    run = ["lab", "run", "C5", "--preset", "tour", "--store", str(tmp_path / "lab.sqlite")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 2
    assert "at preset tour" in done.stderr
    assert not (tmp_path / "lab.sqlite").exists()


def on_terminal(
    width: int, height: int, *words: str, ctrl_c_at: str = "", **env: str
) -> tuple[int, Terminal]:
    """Run a command on a terminal of this size; return its exit code and what stands there.

    Args:
        ctrl_c_at: press Ctrl-C once this has been printed.
    """
    import fcntl
    import pty
    import struct
    import termios

    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        command = [sys.executable, "-W", "ignore", "-m", "tests.cli.touring", *words]
        os.execve(command[0], command, {**environment, "TERM": "xterm-256color", **env})
    terminal = Terminal(width, height)
    decoder = codecs.getincrementaldecoder("utf-8")()
    with contextlib.suppress(OSError):  # at its end
        while data := os.read(fd, 65536):
            terminal.write(decoder.decode(data))
            if ctrl_c_at and any(ctrl_c_at in line for line in terminal.everything):
                os.write(fd, b"\x03")
                ctrl_c_at = ""
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), terminal


# Two starts of the program with a worker each, on a terminal: no cheaper test has a real one.
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="terminals are POSIX")
def test_board_ctrl_c_and_resume_on_a_terminal(tmp_path: Path) -> None:
    store, page = tmp_path / "lab.sqlite", tmp_path / "report.html"
    tour = ["lab", "tour", "--store", str(store), "--report", str(page), "--workers", "1"]
    code, terminal = on_terminal(80, 24, *tour, ctrl_c_at=" 1 of 4 runs", EPOCHS="8")
    said = " ".join(terminal.everything)
    assert code == 130, said
    assert "Stopped. Everything recorded is kept" in said
    assert "Traceback" not in said
    assert terminal.blanks == 0

    code, terminal = on_terminal(200, 24, *tour, EPOCHS="8")
    said = terminal.everything
    assert code == 0, said
    assert terminal.blanks == 0
    assert any("of 8 runs were in the store already." in line for line in said)
    lines = [line for line in said if line.startswith(("C1 ", "C5 "))]
    assert len(lines) == 4  # on the board, and what was found
    assert all("━" * 20 in line for line in lines[:2])
    assert any("100 % of the work · 8 of 8 runs · 0 s left" in line for line in said)
    assert any(line.startswith("Report: ") for line in said)
    # A verdict stands there while other runs go on.
    frames = [[line for line in frame if line.startswith("C")] for frame in terminal.frames]
    assert any(len(frame) == 2 and "━" * 20 in frame[0] and "runs" in frame[1] for frame in frames)


def test_seeds_replace_those_of_the_preset(tiny: Claim, tmp_path: Path) -> None:
    store, page = tmp_path / "lab.sqlite", tmp_path / "report.html"
    run = ["lab", "run", "--store", str(store), "--report", str(page), "--workers", "2", "--json"]
    for seeds in (3, 2):
        done = CliRunner().invoke(app, [*run, "--seeds", str(seeds)])
        assert done.exit_code == 0, done.output
        (found,) = json.loads(done.stdout)["findings"]
        assert found["runs"] == 2 * seeds
        assert ["seeds", str(seeds)] in found["setup"]
    done = CliRunner().invoke(app, [*run, "--seeds", "1"])
    assert done.exit_code == 2  # one seed decides nothing


@pytest.mark.parametrize("command", ["report", "verdicts", "export --out tables"])
def test_refused_command_leaves_no_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["lab", *command.split()])
    assert done.exit_code == 2
    assert "no file runs" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_report_without_runs_is_refused(tiny: Claim, tmp_path: Path) -> None:
    Store(tmp_path / "lab.sqlite").close()
    done = CliRunner().invoke(app, ["lab", "report", "--store", str(tmp_path / "lab.sqlite")])
    assert done.exit_code == 2
    assert "normkit lab run" in done.output


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_prints_command_to_resume(tmp_path: Path) -> None:
    store = tmp_path / "lab.sqlite"
    process = subprocess.Popen(
        [*NORMKIT, "lab", "run", "C5", "--store", str(store), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not _steps(store):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to all of them
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, error
    assert "To resume: normkit lab run C5 --preset quick" in out
    assert "--workers 1" in out
    assert "Traceback" not in out + error
    with Store(store) as opened:
        running = opened.connection.execute("SELECT 1 FROM runs WHERE status = 'running'")
        assert running.fetchone() is None
        assert opened.connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0] == 1


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_two_at_once_share_the_work_and_survive_a_kill(tmp_path: Path) -> None:
    """Two `lab run` on one store; one is killed with its workers left behind; the other ends it."""
    store = tmp_path / "lab.sqlite"
    both = [
        subprocess.Popen(
            [*NORMKIT, "lab", "run", "C3", "--store", str(store), "--workers", "1", "-v"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + 300
        while _done(store) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        both[0].kill()
        first, _ = both[0].communicate()
        second, _ = both[1].communicate(timeout=900)
    finally:
        for process in both:
            process.kill()
    assert both[1].returncode == 0, second
    done = [line for line in (first + second).splitlines() if ", seed " in line]
    names = [line.rpartition(" s")[0] for line in done]
    assert len(names) == len(set(names))  # nothing was trained twice
    assert _done(store) == 80


def _done(store: Path) -> int:
    if not store.exists():
        return 0
    with Store(store, check=False) as opened:
        query = "SELECT count(*) FROM runs WHERE status IN ('done', 'diverged')"
        return int(opened.connection.execute(query).fetchone()[0])


def _steps(store: Path) -> int:
    if not store.exists():
        return 0
    with Store(store, check=False) as opened:
        return int(opened.connection.execute("SELECT total(step) FROM runs").fetchone()[0])
