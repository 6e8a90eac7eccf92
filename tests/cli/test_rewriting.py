"""Frame of the commands that run a user's modules and write files."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path

import pytest
import typer

from normkit.cli import INTERRUPTED, USAGE
from normkit.cli.rewriting import default_target, users_code
from normkit.errors import OptionError


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_told_and_exits(
    sent: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as exit_, users_code(as_json=False):
        signal.raise_signal(sent)
    assert exit_.value.exit_code == INTERRUPTED
    assert "Stopped; nothing was written." in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_output_of_modules_is_kept_from_json(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with users_code(as_json):
        print("a line of the user's module")
    said = capsys.readouterr()
    assert ("a line" in said.out) is not as_json
    assert ("a line" in said.err) is as_json


def test_errors_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_, users_code(as_json=False):
        raise OptionError("Expected a; received b. Fix: c.")
    assert exit_.value.exit_code == USAGE
    assert capsys.readouterr().err == "normkit: Expected a; received b. Fix: c.\n"


def test_signals_are_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with users_code(as_json=False), warnings.catch_warnings():
        pass
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("name", "target"),
    [("last.pt", "last.folded.pt"), ("x", "x.folded.pt"), ("a.b.ckpt", "a.b.folded.ckpt")],
)
def test_default_target_keeps_the_ending(name: str, target: str) -> None:
    assert default_target(Path("runs") / name, "folded") == Path("runs") / target
