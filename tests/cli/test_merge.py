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
    assert "statistics of 1 layer merged as moments" in done.stdout
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


def test_tied_in_one_file_only(tmp_path: Path) -> None:
    tied = torch.full((2,), 1.0)
    torch.save({"e": tied, "h": tied}, tmp_path / "a.pt")
    torch.save({"e": torch.full((2,), 3.0), "h": torch.full((2,), 5.0)}, tmp_path / "b.pt")
    done = run(tmp_path / "a.pt", tmp_path / "b.pt", "--out", tmp_path / "c.pt")
    assert done.exit_code == 0, done.output
    written = torch.load(tmp_path / "c.pt")
    assert (written["e"].tolist(), written["h"].tolist()) == ([2.0, 2.0], [3.0, 3.0])


def test_other_entries(tmp_path: Path) -> None:
    """Counts that differ need a rule, and what the model does not hold stays the first file's."""
    for number in (1, 2):
        state = {**model().state_dict(), "n_averaged": torch.tensor(number)}
        torch.save({"net.best": state}, tmp_path / f"{number}.pt")
    both = [tmp_path / "1.pt", tmp_path / "2.pt", "--out", tmp_path / "out.pt"]
    done = run(*both)
    assert done.exit_code != 0
    assert "--rule n_averaged=first" in " ".join(done.output.split())
    done = run(*both, "--rule", "n_*=max")
    assert done.exit_code == 0, done.output
    assert torch.load(tmp_path / "out.pt")["net.best"]["n_averaged"].item() == 2


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
        (["{0}", "{odd}", "--out", "{out}"], "in {odd}, beside the first: missing"),
        (["{0}", "{1}", "--out", "{out}", "--rule", "step"], "--rule as NAME=RULE"),
        (["{0}", "{1}", "--out", "{out}", "--rule", "step=max"], "'step', which fits none"),
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
    assert says.format(odd=odd) in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
