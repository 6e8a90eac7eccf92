"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from normkit.errors import StoreError
from normkit.lab import events
from normkit.lab.config import RunConfig
from normkit.lab.store import Store

Make = Callable[..., RunConfig]


@pytest.fixture
def filled(tmp_path: Path, make_config: Make, write_run: Any) -> Path:
    path = tmp_path / "lab.sqlite"
    configs = [make_config(seed=seed, lr=lr) for seed in (0, 1) for lr in (0.1, 1.0)]
    with Store(path) as store:
        store.plan("C3", "quick", [("with/without: BN?", config) for config in configs])
        store.plan("C1", "quick", [("arm", configs[0]), ("arm", make_config(seed=9))])
        for number, config in enumerate(configs):
            write_run(store, config, {"test_accuracy": [0.5, 0.6 + number / 100]})
    return path


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_reads_what_the_store_has(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "events"
    with Store(filled, read_only=True) as store:
        folders = events.write(store, out)
        assert [str(folder.relative_to(out)) for folder in folders] == [
            "C1/quick/arm/seed 0",  # and not seed 9, which has not begun
            "C3/quick/with_without_ BN_/seed 0, lr 0.1",
            "C3/quick/with_without_ BN_/seed 0, lr 1.0",
            "C3/quick/with_without_ BN_/seed 1, lr 0.1",
            "C3/quick/with_without_ BN_/seed 1, lr 1.0",
        ]
        for folder, planned in zip(folders[1:], store.planned("C3", "quick"), strict=True):
            scalars = read(folder).Scalars("test_accuracy")
            points = planned.run.metrics["test_accuracy"]
            assert [(each.step, each.value) for each in scalars] == [
                (step, np.float32(value)) for step, _, value in points
            ]
            assert {each.wall_time for each in scalars} == {planned.run.finished}


def test_no_event_file_names_this_machine(filled: Path, tmp_path: Path) -> None:
    with Store(filled, read_only=True) as store:
        folders = events.write(store, tmp_path / "events")
    for folder in folders:
        (file,) = folder.iterdir()
        assert socket.gethostname() not in file.name


def test_description_is_there_as_hyperparameters(filled: Path, tmp_path: Path) -> None:
    with Store(filled, read_only=True) as store:
        *_, last = events.write(store, tmp_path / "events")
    content = read(last).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    given = {name: value.WhichOneof("kind") for name, value in start.hparams.items()}
    assert start.hparams["lr"].number_value == 1.0
    assert start.hparams["model"].string_value == "lenet5"
    assert given["norm_options"] == "string_value"
    assert set(RunConfig.__dataclass_fields__) <= set(given)


def test_what_was_not_measured_is_left_out(
    tmp_path: Path, make_config: Make, write_run: Any
) -> None:
    config = make_config()
    with Store(tmp_path / "lab.sqlite") as store:
        store.plan("C1", "quick", [("arm", config)])
        write_run(store, config, {"test_loss": [None, 2.0], "never": [None, None]})
        (folder,) = events.write(store, tmp_path / "events")
    found = read(folder)
    assert [each.value for each in found.Scalars("test_loss")] == [2.0]
    assert "never" not in found.Tags()["scalars"]


def test_second_call_replaces_the_first(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "events"
    with Store(filled, read_only=True) as store:
        for _ in range(2):
            folders = events.write(store, out)
    assert len([*out.rglob("events.out.tfevents.*")]) == len(folders)
    assert len(read(folders[0]).Scalars("test_accuracy")) == 2


def test_event_files_from_elsewhere_are_left_alone(filled: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "events" / "other" / "events.out.tfevents.1.host"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    with Store(filled, read_only=True) as store, pytest.raises(StoreError, match="--out"):
        events.write(store, tmp_path / "events")
    assert [*(tmp_path / "events").rglob("events.*")] == [foreign]


def test_arms_with_similar_names_get_separate_folders(
    tmp_path: Path, make_config: Make, write_run: Any
) -> None:
    with Store(tmp_path / "lab.sqlite") as store:
        configs = [make_config(norm=norm) for norm in ("none", "batch")]
        store.plan("C1", "quick", [("a/b", configs[0]), ("a:b", configs[1])])
        for config in configs:
            write_run(store, config, {"test_loss": [1.0, 2.0]})
        folders = events.write(store, tmp_path / "events")
    assert len(set(folders)) == 2
