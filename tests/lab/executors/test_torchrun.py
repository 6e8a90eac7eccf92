"""Runs trained by several processes together: the results are those of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normkit.lab import worker
from normkit.lab.by_image import values_by_image
from normkit.lab.config import RunConfig
from normkit.lab.runs import Run
from normkit.lab.store import Store
from tests import together as processes
from tests.lab.executors import torchrun_worker

Make = Callable[..., RunConfig]


def together(folder: Path, size: int, configs: Sequence[RunConfig], how: str = "study") -> Any:
    with Store(folder / "lab.sqlite") as store:
        for config in configs:
            store.add(config)
    return processes.together(torchrun_worker, [1] * size, how, folder)


def stored(path: Path, config: RunConfig) -> Run:
    with Store(path, create=False) as store:
        run = store.get(config.key)
    assert run is not None
    return run


def alone(folder: Path, config: RunConfig) -> Run:
    """The same run, by this process."""
    path = folder / "alone.sqlite"
    with Store(path) as store:
        store.add(config)
    assert worker.run(worker.argument(path, config.key), lambda: False) in ("done", "diverged")
    return stored(path, config)


def assert_alike(one: Run, other: Run, *, within: float) -> None:
    assert one.status == other.status
    assert one.step == other.step
    assert one.metrics.keys() == other.metrics.keys()
    compared = 0
    for name, points in one.metrics.items():
        if name == "epoch_seconds":
            continue
        for (step, _, value), (its_step, _, its_value) in zip(
            points, other.metrics[name], strict=True
        ):
            assert step == its_step, name
            if value is None or its_value is None:
                assert value == its_value, (name, step)
            elif "accuracy" in name:
                # A rounding error turns over an image that stands on the edge, here and there.
                assert abs(value - its_value) <= 0.02, (name, step, value, its_value)
            else:
                assert math.isclose(value, its_value, rel_tol=within), (name, step)
            compared += 1
    assert compared > 10
    assert one.vectors.keys() == other.vectors.keys()
    for name, points in one.metrics.items():
        for step, _, value in points if name in one.vectors else ():
            images, its_images = (values_by_image(run, name, step, value) for run in (one, other))
            assert images is not None
            assert images.mean() == pytest.approx(value, rel=1e-5)
            if "accuracy" in name:
                assert (images != its_images).mean() <= 0.05, (name, step)  # in one order
            else:
                # Rounded to five digits.
                assert np.allclose(images, its_images, atol=max(1e-3, 10 * within)), (name, step)


@pytest.mark.parametrize(("size", "which"), [(2, slice(0, 2)), (3, slice(1, 4))])
def test_several_processes_train_as_one(
    size: int, which: slice, tmp_path: Path, make_config: Make
) -> None:
    # 149 images in batches of 64, the last of 21; 130, the last of 2, of which a third process
    # gets none (with BN, a batch of two would blow rounding errors up). Evaluation is unequal too.
    images = {"train_images": 149, "norm": "batch", "momentum": 0.9, "lr": 0.01}
    configs = [
        make_config(**images, evaluations=(("population", 128, 32), ("batch", 30)),
                    final_evaluations=(("composed", 10, 2),)),
        make_config(
            **images | {"norm": "torch-batch", "act": "tanh"}, frozen_epochs=1, drop_last=True
        ),
        make_config(train_images=130, norm="group", momentum=0.9, lr=0.02, epochs=3),
        make_config(train_images=130, norm="none", optimizer="adam", lr=1e-3),
    ][which]  # fmt: skip
    found = together(tmp_path, size, configs)
    assert found[0] == {"finished": [config.key for config in configs], "failed": []}
    assert found[1:] == [{"well": True}] * (size - 1)
    for config in configs:
        run = stored(tmp_path / "lab.sqlite", config)
        assert run.machine.endswith(f"; {size} processes together")
        # Batch normalization blows rounding errors up from step to step, the others do not.
        within = 1e-3 if "batch" in config.norm else 1e-5
        assert_alike(run, alone(tmp_path, config), within=within)


def test_unshareable_runs_are_trained_by_rank_0(tmp_path: Path, make_config: Make) -> None:
    configs = [
        make_config(probes=(("gradients", 1),)),
        make_config(norm="ghost", norm_options=(("ghost_size", 16),), evaluations=(("batch", 20),)),
        make_config(model="no-such-model"),
        make_config(seed=1, epochs=1),
    ]
    found = together(tmp_path, 2, configs)
    ended = [configs[0].key, configs[1].key, configs[3].key]
    assert found[0] == {"finished": ended, "failed": [configs[2].key]}
    assert found[1] == {"well": True}
    for config in configs[:2]:
        run, other = stored(tmp_path / "lab.sqlite", config), alone(tmp_path, config)
        assert "together" not in run.machine
        both = [
            {name: points for name, points in one.metrics.items() if name != "epoch_seconds"}
            for one in (run, other)
        ]
        assert both[0] == both[1]
    assert "no-such-model" in stored(tmp_path / "lab.sqlite", configs[2]).error
    assert "together" in stored(tmp_path / "lab.sqlite", configs[3]).machine


def test_all_processes_stop_together_and_resume(tmp_path: Path, make_config: Make) -> None:
    config = make_config(epochs=3, norm="group", lr=0.02)
    found = together(tmp_path, 2, [config], "interrupted")
    assert found[0] == {"finished": [], "failed": [], "steps": 5}
    # The other one was signalled too, and waited for the first one's word.
    assert found[1] == {"well": True, "steps": 5}
    run = stored(tmp_path / "lab.sqlite", config)
    assert (run.status, run.step) == ("waiting", 5)
    # What several processes began, one can end.
    assert worker.run(worker.argument(tmp_path / "lab.sqlite", config.key), lambda: False) == "done"
    assert_alike(stored(tmp_path / "lab.sqlite", config), alone(tmp_path, config), within=1e-5)


def test_failed_process_ends_all_with_its_error(tmp_path: Path, make_config: Make) -> None:
    configs = [make_config(), make_config(seed=1)]
    found = together(tmp_path, 3, configs, "failing")
    assert "NormkitError: Expected all processes to continue together" in found[0]["error"]
    assert found[1:] == [{"well": False}] * 2
    run = stored(tmp_path / "lab.sqlite", configs[0])
    assert run.status == "failed"
    assert "process 2" in run.error
    assert "out of cheese" in run.error
    assert stored(tmp_path / "lab.sqlite", configs[1]).status == "waiting"


def test_group_is_left_after_the_last_model(tmp_path: Path) -> None:
    """Its destruction by a model's reducer could wait for ever (pytorch#56297)."""
    assert together(tmp_path, 2, [], "left") == [{"model": None}] * 2
