"""A timing measures both sides of one step; what it says of time is tested nowhere."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from normkit.bench.breakdown import KINDS
from normkit.errors import OptionError
from normkit.lab import worker
from normkit.lab.store import Store
from normkit.lab.timing import measure_step_time


@pytest.fixture
def config(make_config: Any) -> Any:
    return make_config(kind="timing", norm="batch", train_images=8, batch_size=8, epochs=1)


def test_all_parts_of_both_sides_sum_to_the_step(config: Any, dataset: Any, make_log: Any) -> None:
    log = make_log()
    outcome = measure_step_time(config, dataset, log)
    assert outcome.step == config.steps == 1
    found = {name: value for (name, _), value in log.metrics.items()}
    for side in ("torch", "ours"):
        parts = [found[f"{side}_{kind}_{way}"] for kind in KINDS for way in ("forward", "backward")]
        assert all(part > 0 for part in parts)
        # Medians over the rounds, so the sum is near and not equal.
        total = sum(parts) + found[f"{side}_rest_update"]
        assert total == pytest.approx(found[f"{side}_step"], rel=0.9)


def test_timing_can_be_stopped(config: Any, dataset: Any, make_log: Any) -> None:
    log = make_log()
    assert measure_step_time(config, dataset, log, stopping=lambda: True).stopped
    assert log.metrics == {}


def test_worker_measures_step_time(config: Any, store: Store) -> None:
    store.add(config)
    task = json.dumps({"store": str(store.path), "key": config.key})
    assert worker.run(task, lambda: False) == "done"
    run = store.get(config.key)
    assert run is not None and run.status == "done"
    assert run.last("torch_step") is not None


def test_kind_is_part_of_the_key_and_its_default_is_not(config: Any) -> None:
    training = dataclasses.replace(config, kind="training")
    assert training.key != config.key
    assert "kind" not in training.to_json()
    with pytest.raises(OptionError, match="kind to be one of training, timing"):
        dataclasses.replace(config, kind="guess")
