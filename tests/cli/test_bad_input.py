"""Bad input on the command line: one message with the rule, what came and what to do; no traceback.

Exit code 2 for what is refused; an exception of the user's own code passes through.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from normkit.bench.results_file import FORMAT
from normkit.cli import console, main
from normkit.cli.app import app
from normkit.errors import how_to_install

MODULE = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width): super().__init__()

def make(): return nn.Sequential(nn.BatchNorm1d(2))
def needs(width, depth=1): return make()
def none(): pass
def meta(): return make().to("meta")
def fails(): raise ValueError("of the user's own")
def ends(): sys.exit(3)

batches = [torch.randn(8, 2) for _ in range(4)]
dataset = torch.utils.data.TensorDataset(torch.randn(9, 2))
loaders = {"train": batches, "val": batches}
arrays = [x.numpy() for x in batches]
double = [x.double() for x in batches]
[bold] = [3]
"""
STATE = nn.Sequential(nn.BatchNorm1d(2)).state_dict()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("mine.py").write_text(MODULE)
    Path("ends.py").write_text("raise SystemExit(2)")
    torch.save({"state_dict": STATE}, "good.pt")
    yield tmp_path
    for name in ("mine", "ends"):
        sys.modules.pop(name, None)


def refused(*arguments: str) -> str:
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2, (done.output, done.exception)
    said: str = done.output.strip()
    assert re.fullmatch(r"normkit: Expected .+; received .+\. Fix: .+\.", said.splitlines()[-1])
    assert not re.search(r"Traceback|\x1b|<class|<function|object at 0x", said), said
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before
    return said


def recalibrate(checkpoint: str, *more: str) -> str:
    return refused(
        "recalibrate", checkpoint, "--model", "mine:make", "--batches", "mine:batches", *more
    )


def _write(name: str, start: bytes) -> None:
    Path(name).write_bytes(start)


def _cut(name: str, legacy: bool = False) -> None:
    torch.save({"state_dict": STATE}, name, _use_new_zipfile_serialization=not legacy)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])


def _zip(name: str) -> None:
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("notes.txt", "none")


def _folder(name: str, *files: str) -> None:
    Path(name).mkdir()
    for file in files:
        (Path(name) / file).touch()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
FILES: dict[str, tuple[Callable[[str], None], str]] = {
    "nowhere.pt": (lambda _: None, "no file nowhere.pt. Fix: name an existing file: there are "),
    "empty.pt": (lambda n: _write(n, b""), "which is empty"),
    "cut.pt": (_cut, "a checkpoint that is cut off"),
    "old.pt": (lambda n: _cut(n, legacy=True), "a checkpoint that is cut off"),
    "zip.pt": (_zip, "a zip archive that torch.save did not write"),
    "a.safetensors": (lambda n: _write(n, HEADER), "safetensors.torch.load_file('a.safetensors')"),
    "named.pt": (
        lambda n: _write(n, len(HEADER).to_bytes(8, "little") + HEADER), "a file of safetensors",
    ),
    "lfs.pt": (lambda n: _write(n, b"version https://git-lfs.github.com/"), "git lfs pull"),
    "page.pt": (lambda n: _write(n, b"<!doctype html>"), "a web page"),
    "text.pt": (lambda n: _write(n, b"weights"), "which torch.save did not write"),
    "packed.pt": (lambda n: _write(n, b"\x1f\x8b\x08"), "unpack it first"),
    "dcp": (lambda n: _folder(n, ".metadata"), "dcp_to_torch dcp state.pt"),
    "parts": (lambda n: _folder(n, "model.bin.index.json"), "a checkpoint in several parts"),
    "folder": (lambda n: _folder(n, "last.ckpt"), "name a file: there are folder/last.ckpt"),
    "bare": (lambda n: _folder(n), "a folder. Fix: name a file, not a folder"),
    "model.pt": (lambda n: torch.save(nn.BatchNorm1d(2), n), "a whole model. Fix: if you trust"),
    "args.pt": (
        lambda n: torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, n),
        "also holds argparse.Namespace. Fix: if you trust the file, add --trust argparse.Namespace",
    ),
    "evil.pt": (lambda n: torch.save({"state_dict": STATE, "x": Evil()}, n), "which can run code"),
}  # fmt: skip


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoints(name: str) -> None:
    make, says = FILES[name]
    make(name)
    said = recalibrate(name)
    assert says in said
    assert "run\n" not in said
    if name != "args.pt":
        assert "--trust" not in said


def test_named_classes_are_trusted() -> None:
    held = {
        "args": argparse.Namespace(lr=0.1, folder=pathlib.PurePosixPath("runs")),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "date": datetime.datetime(2026, 1, 1),
    }
    for legacy in (False, True):
        torch.save(
            {"state_dict": STATE, **held}, "last.pt", _use_new_zipfile_serialization=not legacy
        )
        trust: list[str] = []
        for _ in range(10):  # a file of the older format names one class at a time
            done = CliRunner().invoke(
                app,
                ["recalibrate", "last.pt", "--model", "mine:make", "--batches", "mine:batches",
                 "--force", *trust],
            )  # fmt: skip
            if done.exit_code == 0:
                break
            trust += re.findall(
                r"--trust|[\w.]+", done.output.partition("add ")[2].partition(";")[0]
            )
        assert done.exit_code == 0, done.output
        new = torch.load("last.recalibrated.pt", weights_only=False)
        assert new["args"] == held["args"] and new["best"] == 0.5
        assert (new["history"] == held["history"]).all() and new["date"] == held["date"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("os.system", "the function system. Fix: leave it out; a file could call it"),
        ("mine.make", "the function make"),
        ("builtins.eval", "the function eval"),
        ("nowhere.Class", "nowhere.Class, which is not there"),
        ("argparse.Nope", "which is not there"),
        ("Namespace", "which is not there"),
        ("", "'', which is not there"),
    ],
)
def test_names_that_cannot_be_trusted(name: str, says: str) -> None:
    assert says in recalibrate("good.pt", "--trust", name)


@pytest.mark.parametrize(
    ("option", "name", "says"),
    [
        ("--model", "mine.py:make", "mine.py, which is a file. Fix: pass --model mine:make"),
        ("--model", "./mine.py:make", "pass --model mine:make, without .py"),
        ("--model", "sub/mine.py:make", "no such file. Fix: pass --model sub.mine:make"),
        ("--model", "/else/mine.py:make", "pass --model mine:make, without .py, in the folder"),
        ("--model", "mine.py", "pass e.g. --model mine:model"),
        ("--model", "", "pass e.g. --model train:model"),
        ("--model", "mine:mkae", "mine has no mkae. Fix: choose one of: make"),
        ("--model", "mine:make.x", "mine has no x. Fix: define it there"),
        ("--model", "[bold]:[/bold]", "there is no [bold] here"),
        ("--model", ":boom:", "received :boom:"),
        ("--model", "mine:Net", "Net(width), which needs arguments"),
        ("--model", "mine:needs", "needs(width), which needs arguments. Fix: write a function"),
        ("--model", "mine:none", "none(), which returns None"),
        ("--model", "mine:meta", "on the meta device: 0.weight, 0.bias, 0.running_mean"),
        ("--model", "mine:dataset", "received a TensorDataset"),
        ("--model", "mine:ends", "sys.exit(3) while calling ends() for --model"),
        ("--model", "ends:make", "sys.exit(2) while importing ends for --model"),
        ("--model", "nowhere:make", "there is no nowhere here nor installed"),
        ("--model", "..mine:make", "that can be imported from"),
        ("--batches", "mine:dataset", "DataLoader(dataset, batch_size=64)"),
        ("--batches", "mine:loaders", "pass one of the loaders in it, such as batches['train']"),
        ("--batches", "mine:Net", "Net(width), which needs arguments"),
        ("--batches", "mine:make", "received a Sequential. Fix: pass the batches of data"),
        ("--batches", "mine:none", "received None"),
        ("--batches", "mine:arrays", "make tensors of the arrays"),
        ("--batches", "mine:bold", "received the int 3"),
        ("--samples", "1e4", "received '1e4'. Fix: pass a whole number, such as --samples 10000"),
    ],
)
def test_names_of_nothing(option: str, name: str, says: str) -> None:
    assert says in recalibrate("good.pt", option, name)


@pytest.mark.parametrize(("option", "name"), [("--model", "fails"), ("--batches", "fails")])
def test_errors_of_the_users_code_pass_with_a_note(option: str, name: str) -> None:
    done = CliRunner().invoke(
        app,
        ["recalibrate", "good.pt", "--model", "mine:make", "--batches", "mine:batches",
         option, f"mine:{name}"],
    )  # fmt: skip
    assert isinstance(done.exception, ValueError) and done.exit_code == 1
    if sys.version_info >= (3, 11):
        assert done.exception.__notes__ == [f"normkit: raised while calling fails() for {option}."]


@pytest.mark.parametrize(
    "arguments",
    [
        ["lab", "run", "C99"],
        ["lab", "report", "--store", "nowhere.sqlite"],
        ["lab", "report", "--store", "good.pt"],
        ["lab", "verdicts", "--store", "nowhere.sqlite"],
        ["lab", "list", "--store", "good.pt"],
        ["lab", "list", "C99", "[bold]"],
        ["bench", "--from", "damaged.json"],
        ["lab", "compare", "a.sqlite", "b.sqlite"],
        ["lab", "salvage", "nowhere.sqlite", "--out", "new.sqlite"],
        ["data", "fetch", "[red]:boom:"],
        ["bench", "--norm", "[bold]"],
        ["bench", "--cases", "nothing-like-it"],
        ["bench", "--from", "nowhere.json"],
        ["bench", "--from", "good.pt"],
        ["bench", "--out", "nowhere/results.json"],
    ],
    ids=" ".join,
)
def test_other_commands(arguments: list[str]) -> None:
    Path("damaged.json").write_text(json.dumps({"format": FORMAT, "cases": [{}], "steps": []}))
    said = refused(*arguments)
    for word in ("[red]:boom:", "[bold]"):
        assert (word in said) is (word in arguments), "as it was typed"
    assert sorted(p.name for p in Path().iterdir()) == [
        "damaged.json", "ends.py", "good.pt", "mine.py",
    ]  # fmt: skip


def test_a_failing_report_leaves_no_folder() -> None:
    refused("lab", "report")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recalibrate"], "Missing argument 'FILE'. Fix: see normkit recalibrate --help."),
        (["recalibrate", "--sampels", "3"], "No such option: --sampels"),
        (["lab", "shwo"], "No such command 'shwo'"),
        (["bench", "--preset", "[bold]"], "'[bold]' is not one of 'quick', 'default', 'full'."),
        (["bench", "--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_usage_is_one_plain_line(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["normkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("normkit: ") and said.count("\n") == 1
    assert "│" not in said and "Fix: see normkit " in said


def test_control_characters_of_others_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(
        "a \x1b[1mbold\x1b[0m [1m] :smile: \x1b]8;;http://x\x07link\x07 [/red]\rend"
    )
    assert capsys.readouterr().err == "normkit: a bold [1m] :smile: link [/red]end\n"


def test_what_to_install_without_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normkit.errors.Path", lambda _: pathlib.Path("/a/b/c/d"))
    said = how_to_install("lab")
    assert said.startswith("pip install '") and "'scipy>=" in said and "'typer>=" in said
    assert "normkit[" not in said
