"""``normkit doctor`` from a user's own folder: what it prints, writes, mends and exits with."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from normkit.cli.app import app
from normkit.doctor.rules import RULES

SOURCE = """
import torch
from torch import nn

print("a line of the user's own")


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.01), nn.ReLU(), nn.Linear(8, 3)
    )


def kept():
    made = model()
    made[1].momentum = 0.99
    return made


def batches(seed=0, count=12):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    out = []
    for _ in range(count):
        labels = torch.randint(3, (50,), generator=generator)
        out.append((centres[labels] + torch.randn(50, 6, generator=generator), labels))
    return out


def test():
    return batches(1)


def loss(output, batch):
    return nn.functional.cross_entropy(output, batch[1])


def forward(model, batch):
    return model(batch[0])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)


def no_optimizer():
    return 3


instance = model()
of_instance = torch.optim.SGD(instance.parameters(), lr=0.1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """As saved after training, then averaged: with statistics of other weights."""
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    model: nn.Sequential = names["model"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for x, y in names["batches"](2, 60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    state = model.state_dict()
    state["1.running_mean"] += 4
    state["1.running_var"] *= 0.1
    return {"epoch": 3, "model": state}


@pytest.fixture
def stale(folder: Path, trained: dict[str, Any]) -> Path:
    torch.save(trained, folder / "stale.pt")
    return folder


DATA = ("--train", "mine:batches", "--test", "mine:test")


def doctor(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def document(*arguments: str, code: int = 0) -> Any:
    return json.loads(doctor(*arguments, "--json", code=code).stdout)


def test_screen_says_what_it_is_and_what_to_type(stale: Path) -> None:
    done = doctor("mine:model", "--checkpoint", "stale.pt", *DATA)
    lines = done.stdout.splitlines()
    assert lines[0] == "a line of the user's own"
    assert lines[1].startswith("evaluation ")
    assert "with population statistics" in lines[1]
    assert "points on 600 samples" in lines[1]
    (number,) = (i for i, line in enumerate(lines) if "warning NK290" in line)
    assert "Running statistics are not those of the training batches" in lines[number]
    assert lines[number + 1].strip() == "at 1"
    assert any(line.startswith("    do      nk.recalibrate(model, train)") for line in lines)
    assert any(line.startswith("    brings  +") for line in lines)
    assert "--explain NK" in done.stdout
    assert "--mend" in done.stdout
    assert "measuring the layers" in done.stderr
    assert "\x1b" not in done.stdout


def test_model_alone(folder: Path) -> None:
    found = document("mine:kept")
    assert [one["rule"] for one in found["findings"] if one["severity"] == "warning"] == ["NK104"]
    assert (found["score"], found["gain"], found["profile"]) == (None, None, None)
    assert any("training batches" in note for note in found["notes"])


def test_json_is_all_that_is_on_standard_output(stale: Path) -> None:
    done = doctor("mine:model", "--checkpoint", "stale.pt", *DATA, "--json")
    found = json.loads(done.stdout)
    assert found["model"] == "mine:model"
    assert found["gain"]["low"] > 0
    assert found["profile"]["worst"]["layer"] == "1"
    assert "a line of the user's own" in done.stderr


def test_exit_codes(folder: Path) -> None:
    doctor("mine:kept")
    doctor("mine:kept", "--fail-on", "warning", code=1)
    doctor("mine:kept", "--fail-on", "note", code=1)
    doctor("mine:kept", "--fail-on", "never")
    assert "choose one of these" in doctor("mine:kept", "--fail-on", "bad", code=2).stderr


def test_mend_writes_a_new_checkpoint(stale: Path, trained: dict[str, Any]) -> None:
    arguments = ("mine:kept", "--checkpoint", "stale.pt", *DATA)
    before = (stale / "stale.pt").read_bytes()
    done = doctor(*arguments, "--mend", "mended.pt")
    assert (stale / "stale.pt").read_bytes() == before
    mended = torch.load(stale / "mended.pt", weights_only=True)
    assert mended["epoch"] == 3
    differ = {k for k, v in mended["model"].items() if not torch.equal(v, trained["model"][k])}
    assert {"1.running_mean", "1.running_var"} <= differ
    assert not {k for k in differ if "weight" in k or "bias" in k}
    assert "change it in your program too: momentum 0.99 → 0.01 at 1" in done.stdout
    first = document(*arguments)
    after = document("mine:model", "--checkpoint", "mended.pt", *DATA)
    assert after["score"] == pytest.approx(first["gain"]["after"])
    assert not [one for one in after["findings"] if one["rule"] == "NK290"]
    line = next(line for line in done.stdout.splitlines() if line.startswith("Wrote mended.pt"))
    assert f"{first['score']:.1f} % → {after['score']:.1f} %" in line


def test_mend_never_overwrites(stale: Path) -> None:
    arguments = ("mine:model", "--checkpoint", "stale.pt", "--train", "mine:batches", "--mend")
    refused = doctor(*arguments, "stale.pt", "--force", code=2)
    assert "another file than the checkpoint itself" in refused.stderr
    (stale / "there.pt").touch()
    assert "--force" in doctor(*arguments, "there.pt", code=2).stderr
    doctor(*arguments, "there.pt", "--force")
    assert torch.load(stale / "there.pt", weights_only=True)["epoch"] == 3


def test_mend_counts_what_was_left(stale: Path) -> None:
    arguments = ("mine:model", "--checkpoint", "stale.pt", *DATA, "--fail-on", "warning")
    doctor(*arguments, code=1)
    found = document(*arguments, "--mend", "mended.pt")
    assert {"rule": "NK290", "places": ["1"]} in found["mend"]["mended"]
    # Of the momentum alone no checkpoint knows.
    kept = document("mine:kept", "--mend", "kept.pt", "--fail-on", "warning", code=1)
    assert kept["mend"]["path"] is None
    assert not (stale / "kept.pt").exists()
    assert kept["mend"]["in_program"] == {"momentum 0.99 → 0.01": ["1"]}


def test_mend_leaves_what_does_not_help(stale: Path, trained: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    state = copy.deepcopy(trained)
    torch.save(state, stale / "well.pt")
    # Scored by a loss that no statistics change, so nothing is gained.
    text = "\n\ndef constant(output, batch):\n    return 0 * output.sum()\n"
    (stale / "mine.py").write_text(SOURCE + text)
    arguments = ("mine:model", "--checkpoint", "well.pt", *DATA, "--loss", "mine:constant")
    found = document(*arguments, "--mend", "none.pt")
    assert found["mend"]["path"] is None
    left = {row["rule"]: row["why"] for row in found["mend"]["left"]}
    assert "not surely more than nothing" in left["NK290"]
    assert not (stale / "none.pt").exists()


def test_mend_says_whose_statistics_it_wrote(stale: Path) -> None:
    text = "\n\ndef far():\n    return [(0.2 * x + 9, y) for x, y in batches(1)]\n"
    (stale / "mine.py").write_text(SOURCE + text)
    arguments = ("mine:model", "--train", "mine:batches", "--test", "mine:far")
    done = doctor(*arguments, "--checkpoint", "stale.pt", "--mend", "far.pt")
    assert "mended NK301" in done.stdout
    assert "The new statistics are those of the evaluation batches" in done.stdout
    after = document(*arguments, "--checkpoint", "far.pt")
    assert after["score"] > 90


def test_forward_loss_and_optimizer(stale: Path) -> None:
    found = document(
        "mine:model", "--checkpoint", "stale.pt", *DATA, "--forward", "mine:forward",
        "--loss", "mine:loss", "--optimizer", "mine:sgd", "--samples", "200",
    )  # fmt: skip
    assert found["gain"]["unit"] == "loss"
    assert found["gain"]["samples"] == 200
    document("mine:instance", "--optimizer", "mine:of_instance")
    refused = doctor("mine:model", "--optimizer", "mine:no_optimizer", code=2)
    assert "an optimizer of torch.optim" in refused.stderr


def test_sarif_points_at_the_line_of_the_model(stale: Path) -> None:
    doctor("mine:kept", "--sarif", "out.sarif", "--train", "mine:batches")
    log = json.loads((stale / "out.sarif").read_text())
    first = log["runs"][0]["results"][0]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "mine.py"
    line = SOURCE.splitlines()[place["region"]["startLine"] - 1]
    assert line == "def kept():"
    assert "out.sarif" in doctor("mine:kept", "--sarif", "out.sarif", code=2).stderr
    doctor("mine:kept", "--sarif", "out.sarif", "--force")


def test_page_is_written(stale: Path) -> None:
    done = doctor("mine:model", "--checkpoint", "stale.pt", *DATA, "--page", "page.html")
    assert "Wrote page: page.html" in done.stdout
    text = (stale / "page.html").read_text()
    assert "Diagnosis of mine:model" in text
    assert "stale.pt" in text
    (stale / "notes.html").write_text("mine")
    assert "did not write" in doctor("mine:model", "--page", "notes.html", code=2).stderr


def test_interrupted_writes_nothing(stale: Path) -> None:
    text = "\n\ndef stops(model, batch):\n    raise KeyboardInterrupt\n"
    (stale / "mine.py").write_text(SOURCE + text)
    arguments = ("mine:model", "--train", "mine:batches", "--forward", "mine:stops")
    done = doctor(*arguments, "--sarif", "out.sarif", "--mend", "out.pt", code=130)
    assert "nothing was written" in done.stderr
    assert not list(stale.glob("out.*"))


def test_a_model_from_elsewhere_has_no_line(folder: Path) -> None:
    doctor("torch.nn:Identity", "--sarif", "out.sarif")
    (run,) = json.loads((folder / "out.sarif").read_text())["runs"]
    assert all("physicalLocation" not in str(one) for one in run["results"])


def test_explanations() -> None:
    text = doctor("--explain", "nk104").stdout
    assert text.startswith("NK104 Momentum is the share kept")
    assert "When it is right" in text
    titles = doctor("--explain", "all").stdout
    assert all(f"{rule.code}  {rule.title}" in titles for rule in RULES)
    assert "--explain all" in doctor("--explain", "NK999", code=2).stderr
    listed = document("--explain", "all")
    assert [one["rule"] for one in listed] == [rule.code for rule in RULES]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "MODEL"),
        (("mine.py",), "pass e.g. mine:model"),
        (("mine:nothing",), "choose one of"),
        (("mine:model", "--train", "mine:model"), "iterable of batches"),
        (("mine:model", "--samples", "few"), "--samples"),
        (("mine:model", "--checkpoint", "none.pt"), "no file none.pt"),
        (("mine:model", "--device", "cuda:77"), "--device"),
        (("mine:model", "--mend", "no/such/folder.pt"), "folder"),
    ],
)
def test_wrong_use_is_refused(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in doctor(*arguments, code=2).stderr


def test_lines_fit_the_terminal(stale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normkit.cli.doctor_screen import diagnosis_lines
    from normkit.doctor import diagnose

    names: dict[str, Any] = {}
    exec(SOURCE, names)
    result = diagnose(names["kept"](), names["batches"](), names["test"]())
    for width in (40, 80, 200):
        lines = diagnosis_lines(result, {"NK104": "A title that is long enough to wrap"}, width)
        assert max(len(line.plain) for line in lines) <= min(width, 110)
    whole = diagnosis_lines(result, {}, None)
    assert len(whole) < len(lines) + 1
