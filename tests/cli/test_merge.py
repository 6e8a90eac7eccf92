"""``normkit merge`` on checkpoints as people save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normkit as nk
from normkit.cli.app import app


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three clients' checkpoints: the same weights, statistics of different data."""
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(1))
    paths = []
    for number, part in enumerate((x[:20], x[20:50] + 1, x[50:] * 2)):
        one = model()
        nk.recalibrate(one, [part])
        path = tmp_path / f"client{number}.pt"
        content = {"epoch": number, "state_dict": {f"module.{k}": v for k, v in
                   one.state_dict().items()}, "optimizer": {"lr": number}}  # fmt: skip
        torch.save(content, path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("named", [(), ("--model", "tests.cli.test_merge:model")])
def test_merges_as_the_function_does(files: list[Path], tmp_path: Path, named: Any) -> None:
    before = [path.read_bytes() for path in files]
    out = tmp_path / "merged.pt"
    done = run(*files, "--out", out, "--weights", "20,30,40", *named)
    assert done.exit_code == 0, done.output
    assert "3 checkpoints" in done.stdout
    assert "statistics of 1 layers merged as moments" in done.stdout
    assert "As in the first file: epoch, optimizer" in done.stdout
    assert "recalibrate" not in done.stdout  # the weights are the same
    written = torch.load(out, weights_only=True)
    states = [torch.load(path, weights_only=True)["state_dict"] for path in files]
    expected = nk.merge(states, [20, 30, 40])
    assert {"epoch", "state_dict", "optimizer"} == written.keys()
    assert written["state_dict"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(written["state_dict"][name], value)
    assert [path.read_bytes() for path in files] == before


def test_other_weights_are_said(files: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({f"module.{k}": v for k, v in model(1).state_dict().items()}, other)
    done = run(files[0], other, "--out", tmp_path / "soup.pt")
    assert done.exit_code == 0, done.output
    assert "The weights differ" in done.stdout
    assert "normkit recalibrate" in done.stdout
    done = run(files[0], other, "--out", tmp_path / "soup.pt", "--force", "--json")
    found = json.loads(done.stdout)
    assert found["weights_differ"] is True
    assert found["weights"] == [0.5, 0.5]
    assert found["key"] == "state_dict"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{0}", "--out", "{out}"], "two or more state dicts"),
        (["{0}", "{1}", "--out", "{0}"], "another file than the checkpoint itself"),
        (["{0}", "{1}", "--out", "{1}", "--force"], "another file than the checkpoint itself"),
        (["{0}", "{1}", "--out", "{2}"], "an existing file is not overwritten"),
        (["{0}", "{1}", "--out", "{out}", "--weights", "1"], "2 weights"),
        (["{0}", "{1}", "--out", "{out}", "--weights", "a,b"], "numbers with commas"),
        (["{0}", "{1}", "--out", "{out}", "--key", "ema"], "--key ema"),
        (["{0}", "gone.pt", "--out", "{out}"], "gone.pt"),
        (["{0}", "{odd}", "--out", "{out}"], "missing"),
        (["{0}", "{two}", "--out", "{out}"], "choose with --key one of model, ema"),
        (["{0}", "{none}", "--out", "{out}"], "a checkpoint with a state dict"),
    ],
)
def test_bad_input_writes_nothing(
    files: list[Path], tmp_path: Path, arguments: list[str], says: str
) -> None:
    odd, two, none, out = (tmp_path / f"{name}.pt" for name in ("odd", "two", "none", "out"))
    torch.save(nn.Linear(3, 3).state_dict(), odd)
    torch.save({"model": model().state_dict(), "ema": model().state_dict()}, two)
    torch.save({"epoch": 3}, none)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(*(a.format(*files, odd=odd, two=two, none=none, out=out) for a in arguments))
    assert done.exit_code != 0
    assert says in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
