"""The command line as a user types it."""

from __future__ import annotations

import json
from importlib import util

import pytest
from typer.testing import CliRunner

from normkit.cli.app import app
from normkit.cli.console import LAB, print_json
from tests import forked


def test_help_imports_nothing_heavy() -> None:
    # Modules that the package itself imports do not count.
    code = (
        "import sys\n"
        "import normkit\n"
        "before = set(sys.modules)\n"
        "from normkit.cli.app import app\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['lab', '--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'report' in result.output\n"
        "heavy = {'torch', 'numpy', 'scipy', 'plotly', 'pooch', 'sqlite3', 'multiprocessing'}\n"
        "heavy &= set(sys.modules) - before\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = forked.python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_program_prints_its_version() -> None:
    done = forked.python("-m", "normkit.cli.main", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("normkit ")


def test_data_list() -> None:
    done = CliRunner().invoke(app, ["data", "list", "--json"])
    assert done.exit_code == 0, done.output
    names = [row["name"] for row in json.loads(done.stdout)]
    assert names == ["fashion-mnist", "fashion-mnist-lit", "cifar-10", "cifar-100"]
    assert CliRunner().invoke(app, ["data", "list"]).exit_code == 0


def test_unknown_data_is_refused() -> None:
    done = CliRunner().invoke(app, ["data", "fetch", "no-such-data"])
    assert done.exit_code == 2
    assert "fix: " in done.output.lower()


def test_missing_packages_of_the_lab_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name in LAB else find(name))
    for command in (["lab", "list"], ["lab", "run"], ["data", "list"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        # From where it is: there is no release of that name.
        assert "pip install --no-build-isolation -e " in done.output
        assert "[lab]'" in done.output and "'normkit[" not in done.output


def test_json_replaces_non_finite_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": (1.0, float("nan"), float("inf"))})
    assert json.loads(capsys.readouterr().out) == {"a": [1.0, None, None]}
