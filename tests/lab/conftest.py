"""Tiny runs on whatever edition of the data is there, and synthetic runs without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from normkit.lab import data
from normkit.lab.claims.claim import Available, Claim, Evidence
from normkit.lab.conditions import named
from normkit.lab.config import RunConfig
from normkit.lab.leases import acquire
from normkit.lab.runs import Planned, Run
from normkit.lab.store import Store

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from a second thread, and lose much where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset() -> data.Dataset:
    return data.load("fashion-mnist", offline=True)


@pytest.fixture(scope="session")
def make_config(dataset: data.Dataset) -> MakeConfig:
    """A training of a second or less; arguments change single fields."""

    def make(**fields: Any) -> RunConfig:
        values: dict[str, Any] = {
            "model": "lenet5",
            "norm": "torch-batch",
            "lr": 0.1,
            "train_images": 256,
            "test_images": 100,
            "batch_size": 64,
            "epochs": 2,
            "seed": 0,
            "loss_every": 1,
            "edition": "subset" if dataset.subset else "full",
        }
        return RunConfig(**(values | fields))

    return make


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "lab.sqlite") as opened:
        yield opened


Write = Callable[[Store, RunConfig, Mapping[str, Sequence[float | None]]], None]


@pytest.fixture
def write_run() -> Write:
    """Put a finished run with these values by epoch into a store, without training.

    Test accuracy is the same under each condition of evaluation.
    """

    def write(
        store: Store, config: RunConfig, by_epoch: Mapping[str, Sequence[float | None]]
    ) -> None:
        lease = acquire(store, config.key)
        assert lease is not None
        if accuracy := by_epoch.get("test_accuracy"):
            by_epoch = {
                **{named("test_accuracy", each): accuracy for each in config.evaluations},
                **by_epoch,
            }
        for epoch in range(config.epochs):
            lease.record(
                (epoch + 1) * config.steps_per_epoch,
                epoch,
                {name: values[epoch] for name, values in by_epoch.items()},
            )
        lease.finish(seconds=1.0, diverged_step=None)

    return write


@pytest.fixture
def synthetic() -> Callable[..., Evidence]:
    """Evidence for a claim from a function that invents the values of each run.

    ``values(arm, config)`` gives {metric: values by epoch}, or None for a run that is not done.
    """

    def make(
        claim: Claim,
        values: Callable[[str, RunConfig], Mapping[str, Sequence[float | None]] | None],
        vectors: Callable[[str, RunConfig], Any] | None = None,
    ) -> Evidence:
        planned = []
        for arm, config in claim.plan("quick", Available("full", 60_000, 10_000)):
            found = values(arm, config)
            planned.append(
                Planned(
                    arm,
                    Run(
                        config=config,
                        status="waiting" if found is None else "done",
                        step=0 if found is None else config.steps,
                        seconds=1.0,
                        diverged_step=None,
                        error="",
                        versions={},
                        machine="",
                        finished=None,
                        metrics={
                            name: tuple(
                                ((epoch + 1) * config.steps_per_epoch, epoch, value)
                                for epoch, value in enumerate(row)
                            )
                            for name, row in (found or {}).items()
                        },
                        vectors=vectors(arm, config) if vectors and found is not None else {},
                    ),
                )
            )
        return Evidence("quick", tuple(planned))

    return make


@dataclasses.dataclass
class Memory:
    """A log that keeps everything in lists."""

    metrics: dict[tuple[str, int], float | None] = dataclasses.field(default_factory=dict)
    vectors: dict[tuple[str, int], tuple[float, ...]] = dataclasses.field(default_factory=dict)
    checkpoints: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        for name, value in metrics.items():
            if name != "epoch_seconds":
                self.metrics[name, step] = value
        for name, numbers in (vectors or {}).items():
            self.vectors[name, step] = tuple(numbers)

    def checkpoint(self, step: int, state: bytes) -> None:
        self.checkpoints.append((step, state))


@pytest.fixture
def make_log() -> type[Memory]:
    return Memory
