"""``normkit lab show``: a claim's page in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from normkit.cli import lab_show
from normkit.cli.app import app
from normkit.lab.claims import c05
from normkit.lab.claims.claim import Claim
from tests.cli.test_lab_sharing import fill


def show(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["lab", "show", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def words(text: str) -> str:
    return " ".join(text.split())


def test_claim_that_was_not_run_has_its_words(tmp_path: Path) -> None:
    said = words(show("c5", "--store", tmp_path / "none.sqlite"))
    assert "not run; run it with: normkit lab run C5" in said
    assert words(c05.CLAIM.statement) in said
    assert words(c05.CLAIM.prediction) in said
    assert not list(tmp_path.iterdir())


def test_claim_that_was_run_has_verdict_parts_and_figures(tmp_path: Path) -> None:
    store = tmp_path / "lab.sqlite"
    fill(store, "full", 0.5)
    said = words(show("C5", "--store", store))
    assert "confirmed (full preset, " in said
    assert "part 1 of " in said and "confirmed: " in said
    assert "matters from ±" in said
    assert "Here and in the source" in said
    for label in ("claim", "source", "expected", "found", "in practice", "at scale"):
        assert f" {label} " in said, label


def test_tables_are_printed_in_full_on_request(tmp_path: Path) -> None:
    store = tmp_path / "lab.sqlite"
    fill(store, "full", 0.5)
    few, whole = (show("C5", "--store", store, *more) for more in ((), ("--tables",)))
    assert len(whole) > len(few)
    assert "optimizer" in whole and "optimizer" not in few


@pytest.mark.parametrize("width", [40, 80, 200])
def test_fits_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "lab.sqlite"
    fill(store, "full", 0.5)
    monkeypatch.setattr(lab_show, "console", lambda: Console(width=width, markup=False))
    said = show("C5", "--store", store)
    assert max(map(len, said.splitlines())) <= width
    prose = [line for line in said.splitlines() if not set("│┃━─") & set(line)]
    assert max(map(len, prose)) <= 100


def test_as_data(tmp_path: Path) -> None:
    store = tmp_path / "lab.sqlite"
    fill(store, "full", 0.5)
    ran, not_run = json.loads(show("C5", "C1", "--store", store, "--json"))
    assert (ran["claim"], ran["finding"]["word"]) == ("C5", "confirmed")
    assert ran["finding"]["preset"] == "full"
    assert ran["finding"]["comparisons"][0]["decides"] is True
    assert "charts" not in ran["finding"]
    assert (not_run["claim"], not_run["finding"]) == ("C1", None)


def test_every_claim_can_be_shown(tmp_path: Path) -> None:
    said = show("all", "--store", tmp_path / "none.sqlite")
    assert said.count("not run; run it with") == 27


def test_unknown_claim_is_refused(tiny: Claim) -> None:
    done = CliRunner().invoke(app, ["lab", "show", "C99"])
    assert done.exit_code == 2
    assert "Fix:" in done.stderr
