"""``--json`` is the same in every command: a flag, and JSON alone on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from typer.testing import CliRunner

from normkit.bench import planning, results_file
from normkit.cli.app import app
from normkit.lab.claims.claim import Claim
from normkit.lab.data import catalogue
from tests.bench import records
from tests.lab.data import small

MODULE = """
import torch
from torch import nn

print("a line of the user's module")

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

def batches():
    return [torch.randn(8, 3, 6, 6) for _ in range(3)]
"""


def leaves(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, with its words."""
    commands = getattr(group, "commands", {})
    if not commands:
        yield words, group
    for name, command in commands.items():
        yield from leaves(command, (*words, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_the_same_flag(words: tuple[str, ...]) -> None:
    (option,) = (each for each in COMMANDS[words].params if "--json" in each.opts)
    assert option.is_flag
    assert option.help == "Print the result as JSON, and nothing else, on stdout."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a module, checkpoints, results of a benchmark."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    namespace: dict[str, Any] = {}
    exec(MODULE, namespace)
    torch.save(namespace["net"]().state_dict(), "a.pt")
    torch.save(namespace["net"]().state_dict(), "b.pt")
    cases, steps = [records.case()], [records.step()]
    document = results_file.document(
        records.MACHINE, {}, cases, steps, date="2026-11-29", complete=True
    )
    results_file.write(tmp_path / "bench.json", document)
    return tmp_path


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that is on the machine already."""
    images = small.make(absent=tmp_path / "no-package")
    monkeypatch.setitem(catalogue.SPECS, "fashion-mnist", images.spec)
    monkeypatch.setenv("NORMKIT_CACHE", str(images.write(tmp_path / "fashion-mnist").parent))


MODEL = ("--model", "mine:net")
CALLS: dict[str, tuple[str, ...]] = {
    "bench": ("--from", "bench.json"),
    "data fetch": (),
    "data list": (),
    "doctor": ("mine:net", "--train", "mine:batches", "--fail-on", "never"),
    "fold": ("a.pt", *MODEL, "--shape", "1,3,6,6"),
    "lab compare": ("lab.sqlite", "lab.sqlite"),
    "lab export": ("--store", "lab.sqlite", "--out", "tables"),
    "lab list": ("--store", "lab.sqlite"),
    "lab live": ("--out", "live.html"),
    "lab report": ("--store", "lab.sqlite", "--report", "page.html"),
    "lab run": ("--store", "lab.sqlite", "--report", "page.html"),
    "lab salvage": ("lab.sqlite", "--out", "new.sqlite"),
    "lab show": ("C5", "--store", "lab.sqlite"),
    "lab tensorboard": ("--store", "lab.sqlite", "--out", "events"),
    "lab verdicts": ("--store", "lab.sqlite"),
    "merge": ("a.pt", "b.pt", "--out", "merged.pt"),
    "recalibrate": ("a.pt", *MODEL, "--batches", "mine:batches"),
}
ELSEWHERE = {
    # One process less: test_lab has it, on a tour that is small enough.
    "lab tour",
}


def test_every_command_is_called() -> None:
    names = {" ".join(words) for words in COMMANDS}
    assert names == CALLS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("lab ")])
def test_output_of_commands_for_models_is_json(name: str, folder: Path, cached: None) -> None:
    assert called(name) not in ({}, [])


def test_output_of_commands_of_the_lab_is_json(folder: Path, tiny: Claim) -> None:
    done = CliRunner().invoke(app, ["lab", "run", *CALLS["lab run"]])
    assert done.exit_code == 0, done.output
    for name in CALLS:
        if name.startswith("lab "):
            assert called(name) not in ({}, []), name


def called(name: str) -> Any:
    done = CliRunner().invoke(app, [*name.split(), *CALLS[name], "--json"])
    assert done.exit_code == 0, (name, done.output, done.exception)
    return json.loads(done.stdout)


def test_benchmark_prints_json(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = planning.Preset(0.0, 1, False, (), 0.0, "no time")
    monkeypatch.setitem(planning.PRESETS, "quick", quick)
    tiny = ("--cases", "bn/dense/64x512/*", "--allocator", "default", "--threads", "1")
    bench = ("bench", "--preset", "quick", *tiny, "--json")
    done = CliRunner().invoke(app, [*bench, "--out", "new.json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(Path("new.json").read_text())
    done = CliRunner().invoke(app, [*bench, "--list"])
    assert json.loads(done.stdout) == ["bn/dense/64x512/contiguous"]


def test_verdicts_are_data_and_not_markdown(folder: Path, tiny: Claim) -> None:
    CliRunner().invoke(app, ["lab", "run", *CALLS["lab run"]])
    found = called("lab verdicts")
    (claim,) = found["claims"]
    assert (found["preset"], claim["claim"], claim["runs"]) == ("quick", "C5", 4)
    assert claim["word"] in ("confirmed", "partly", "refuted", "open")
    assert {"question", "effect", "low", "high", "unit"} <= claim["effects"][0].keys()
