"""What a command would write over, or could not write, is found out before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normkit.cli.app import app
from normkit.errors import DataError
from normkit.lab import data, runner
from normkit.lab.claims import c05
from normkit.lab.store import Store


def _refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", [("run", "--report"), ("report", "--out")])
def test_report_does_not_overwrite_store(command: tuple[str, str], tmp_path: Path) -> None:
    store = tmp_path / "lab.sqlite"
    Store(store).close()
    before = store.read_bytes()
    said = _refused("lab", command[0], "--store", str(store), command[1], str(store))
    assert "two files" in said
    assert store.read_bytes() == before


@pytest.mark.parametrize("start", ["", "<!doctype html><html><title>Mine</title>"])
def test_file_that_is_no_report_is_left_alone(tmp_path: Path, start: str) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text(f"{start}three years of work")
    said = _refused("lab", "run", "--store", str(tmp_path / "s"), "--report", str(thesis))
    assert "normkit did not write" in said
    assert thesis.read_text() == f"{start}three years of work"
    assert not (tmp_path / "s").exists()


def test_unwritable_report_fails_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = tmp_path / "file" / "report.html"
    said = _refused("lab", "run", "--store", str(tmp_path / "s"), "--report", str(report))
    assert "a writable file for the report" in said
    assert not (tmp_path / "s").exists()


def test_missing_data_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_DATA", str(tmp_path / "nowhere"))
    _refused("lab", "run", "--store", str(tmp_path / "s"), "--report", str(tmp_path / "r.html"))
    assert not (tmp_path / "s").exists()


def test_study_of_full_data_is_not_restarted_with_subset(tmp_path: Path) -> None:
    subset = data.load("fashion-mnist", offline=True)
    whole = dataclasses.replace(subset, subset=False)
    subset = dataclasses.replace(subset, subset=True)
    with Store(tmp_path / "lab.sqlite") as store:
        keys = runner.plan(store, [c05.CLAIM], "quick", {c05.CLAIM.data: whole})
        with pytest.raises(DataError, match=r"with which C\d+ was begun"):
            runner.plan(store, [c05.CLAIM], "quick", {c05.CLAIM.data: subset})
        assert [p.run.config.key for p in store.planned("C5", "quick")] == keys
        store.connection.execute("UPDATE runs SET status = 'done'")
        assert runner.plan(store, [c05.CLAIM], "quick", {c05.CLAIM.data: subset}) == keys
