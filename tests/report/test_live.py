"""The live page: that it is the one committed, holds what it needs, and is recorded as it says."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from normkit.cli.app import app
from normkit.errors import DataError
from normkit.lab import data
from normkit.lab.building import build_model
from normkit.lab.epochs import epoch_batches
from normkit.report.live import load, page, render
from normkit.report.live.model import images, network
from normkit.report.live.record import record, recorded_config
from normkit.report.live.recording import LAYERS, SHIPPED, save

ROOT = Path(__file__).parents[2]
FOLDER = SHIPPED.parent
TEXTS: dict[str, tuple[str, str]] = json.loads((FOLDER / "texts.json").read_text("utf-8"))


def test_committed_page_is_the_one_that_the_command_writes() -> None:
    committed = (ROOT / "docs/live.html").read_text(encoding="utf-8")
    assert committed == render(load()), "run: normkit lab live --out docs/live.html"
    assert len(committed.encode()) < 3_000_000


def test_page_asks_the_network_for_nothing() -> None:
    text = render(load())
    assert "default-src 'none'" in text.replace("&#39;", "'")
    assert "connect-src" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses == set()


def test_texts_say_the_same_in_both_languages() -> None:
    for key, (english, chinese) in TEXTS.items():
        names = [sorted(re.findall(r"\{\w+\}", text)) for text in (english, chinese)]
        assert names[0] == names[1], key
        # Those of a language's own name are in the other's writing.
        if key not in ("other_language", "story"):
            assert not re.search(r"[\u4e00-\u9fff]", english), key


def test_each_text_is_used_and_each_used_text_exists() -> None:
    sources = "".join(
        path.read_text("utf-8") for path in FOLDER.glob("*.j*") if path.suffix != ".json"
    )
    used = set(re.findall(r'say\("(\w+)"', sources))
    used |= set(re.findall(r't\("(\w+)"', sources)) | set(re.findall(r'data-\w+="(\w+)"', sources))
    used |= {key for pair in re.findall(r'\? "(\w+)" : "(\w+)"', sources) for key in pair}
    used |= {f"{stem}{k}" for stem in ("layer", "story") for k in range(1, 6)}
    used |= {f"{stem}_{pool}" for stem in ("axes", "pool") for pool in ("bn", "ln", "gn", "in")}
    used |= {f"class{k}" for k in range(10)} | {f"story{k}_says" for k in range(1, 6)}
    used |= set(re.findall(r'key\("\w+", "[^"]+", "(\w+)"', sources))
    used |= {"bn", "ln", "gn", "in", "pool_in_1", *page.MODES, *load_kinds()}
    assert set(TEXTS) - used == set()
    keys = re.findall(r'say\("(\w+)"', sources) + re.findall(r"texts\.(\w+)\[", sources)
    assert set(keys) - set(TEXTS) == set()


def load_kinds() -> list[str]:
    """Return the corruptions that the page's program has."""
    source = (FOLDER / "corrupt.js").read_text("utf-8")
    return re.findall(r"^    (\w+)\(pixels, severity, out\)", source, re.MULTILINE)


def test_corruptions_are_those_of_the_lab() -> None:
    from normkit.lab.data.corruptions import CORRUPTIONS

    assert load_kinds() == list(CORRUPTIONS)


def test_recording_holds_a_network_that_learned() -> None:
    recording = load()
    pixels, labels = next(data.batches(images(recording), 500, seed=0, shuffle=False))
    with torch.no_grad():
        hits = network(recording)(pixels).argmax(1) == labels
    assert hits.float().mean() > 0.75
    steps = recorded_config().steps
    assert recording.arrays["accuracy"].shape == (steps, 2)
    assert recording.arrays["means"].shape == recording.arrays["variances"].shape
    assert recording.arrays["means"].shape == (len(LAYERS), steps, 3)
    # Each epoch ends with an incomplete batch, and nothing else is one.
    sizes = recording.arrays["sizes"].reshape(recording.facts["epochs"], -1)
    assert (sizes[:, :-1] == recording.facts["batch_size"]).all()
    assert (sizes[:, -1] < recording.facts["batch_size"]).all()


def test_recording_says_what_the_batches_and_averages_were() -> None:
    fashion = data.load("fashion-mnist", offline=True)
    config = dataclasses.replace(
        recorded_config(), train_images=72, test_images=20, batch_size=32, epochs=2
    )
    told: list[tuple[int, int]] = []
    recording = record(
        config, fashion, shown=10, population_images=64,
        progress=lambda step, steps: told.append((step, steps)),
    )  # fmt: skip
    assert told == [(step, 6) for step in range(1, 7)]
    assert recording.arrays["sizes"].tolist() == [32, 32, 8, 32, 32, 8]
    assert recording.arrays["images"].shape == (10, 28, 28)
    # The first batch meets the first weights, which the seed gives.
    model = build_model(config, in_channels=1, classes=10)
    split = fashion.train.take(72, seed=config.seed)
    first, _ = next(epoch_batches(config, split, 0))
    with torch.no_grad():
        inputs = model.conv1(first)
    channel = recording.facts["channels"][0]
    means, variances = recording.arrays["means"][0, 0], recording.arrays["variances"][0, 0]
    assert means[0] == pytest.approx(inputs[:, channel].mean().item(), abs=1e-5)
    assert variances[0] == pytest.approx(inputs[:, channel].var().item(), rel=1e-4)
    # A momentum of 0.1 from 0 and 1.
    assert means[1] == pytest.approx(0.1 * means[0], abs=1e-6)
    assert variances[1] == pytest.approx(0.9 + 0.1 * variances[0], rel=1e-5)
    again = record(config, fashion, shown=10, population_images=64)
    assert all(
        np.array_equal(again.arrays[name], array) for name, array in recording.arrays.items()
    )


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Return True if both have the same arrays."""
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def test_recording_survives_a_file(tmp_path: Path) -> None:
    recording = load()
    save(recording, tmp_path / "copy.npz")
    copy = load(tmp_path / "copy.npz")
    assert copy.facts == recording.facts
    assert same(copy.arrays, recording.arrays)
    (tmp_path / "copy.npz").write_bytes(b"no recording")
    with pytest.raises(DataError, match="normkit lab live --train"):
        load(tmp_path / "copy.npz")


def test_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    out = tmp_path / "new" / "live.html"
    done = CliRunner().invoke(app, ["lab", "live", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == f"Page: {out}"
    assert out.read_text("utf-8") == render(load())
    done = CliRunner().invoke(app, ["lab", "live", "--out", str(out), "--json"])
    assert json.loads(done.stdout) == {"page": str(out)}
    out.write_text("notes of mine")
    done = CliRunner().invoke(app, ["lab", "live", "--out", str(out)])
    assert done.exit_code == 2
    assert out.read_text() == "notes of mine"


def test_command_trains_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normkit.report.live import record as module

    fashion = data.load("fashion-mnist", offline=True)
    small = dataclasses.replace(
        recorded_config(), train_images=72, test_images=20, batch_size=32, epochs=1
    )
    monkeypatch.setattr(module, "recorded_config", lambda: small)
    monkeypatch.setattr(data, "load", lambda name, **_: fashion)
    out = tmp_path / "live.html"
    done = CliRunner().invoke(app, ["lab", "live", "--train", "--out", str(out)])
    assert done.exit_code == 0, done.output
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', out.read_text("utf-8"))[1])
    assert facts["train_images"] == 72
    assert facts["arrays"]["sizes"][1] == 3
