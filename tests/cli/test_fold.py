"""``normkit fold`` from a user's own folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normkit as nk
from normkit.cli.app import app

MODULE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))

batch = {"input": torch.randn(2, 3, 8, 8)}
def nothing():
    return "no batch"
print("a line of the user's module")
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import nets

    net = nets.net().eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    state["module.0.weight"] = state["module.0.weight"].clone()
    torch.save({"epoch": 3, "model": state}, "last.pt")
    torch.save(nets.plain().state_dict(), "plain.pt")
    return net


def fold(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["fold", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.mark.parametrize("example", [("--shape", "1,3,8,8"), ("--example", "nets:batch")])
def test_checkpoint_in_checkpoint_out(model: nn.Module, example: tuple[str, str]) -> None:
    before = Path("last.pt").read_bytes()
    done = fold("last.pt", "--model", "nets:net", *example)
    assert "1  nn.BatchNorm2d → nn.Identity: into 0" in done.stdout
    assert "wrote last.folded.pt" in done.stdout and Path("last.pt").read_bytes() == before
    content = torch.load("last.folded.pt")
    assert content["epoch"] == 3 and list(content["model"]) == ["module.0.weight", "module.0.bias"]
    import nets

    other = nets.net().eval()
    state = {k.removeprefix("module."): v for k, v in content["model"].items()}
    nk.load_folded(other, state)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(other(x), model(x), atol=1e-5)


def test_json_and_files_that_exist(model: nn.Module) -> None:
    options = ("last.pt", "--model", "nets:net", "--shape", "1,3,8,8", "--output", "new.pt")
    found = json.loads(fold(*options, "--json").stdout)
    assert found == {
        "path": "new.pt",
        "key": "model.module",
        "folded": [{"name": "1", "note": "into 0"}],
        "skipped": [],
    }
    assert "is not overwritten" in fold(*options, code=2).output
    fold(*options, "--force")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("last.pt", "--model", "nets:net"), "either --example or --shape"),
        (("last.pt", "--model", "nets:net", "--shape", "a"), "whole numbers"),
        (("last.pt", "--model", "nets:net", "--example", "nets:nothing"), "batch with a tensor"),
        (("plain.pt", "--model", "nets:plain", "--shape", "1,3,8,8"), "nothing is to be written"),
        (("last.pt", "--model", "nets:plain", "--shape", "1,3,8,8"), "whose entries fit the model"),
        (("last.pt", "--model", "nets:net", "--shape", "1,3,8,8", "--out", "last.pt"),
         "another file than the checkpoint"),
    ],
)  # fmt: skip
def test_refused(model: nn.Module, arguments: tuple[str, ...], text: str) -> None:
    done = fold(*arguments, code=2)
    assert text in " ".join(done.output.split())
    assert not Path("last.folded.pt").exists()
