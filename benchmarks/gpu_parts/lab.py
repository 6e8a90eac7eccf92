"""A short training of the lab on the device, beside the same one on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.placement import Placement
from normkit.lab.training import train

__all__ = ["check_lab"]

NORMS = ("batch", "group")
AGREE = 0.01
"""Relative difference of the first losses; convolutions on a GPU may round to ten bits."""


class _Losses:
    """A log that keeps the training losses and the last test accuracy."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.accuracy = float("nan")

    def record(
        self,
        step: int,
        epoch: int,
        metrics: Mapping[str, float | None],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        loss, accuracy = metrics.get("train_loss"), metrics.get("test_accuracy")
        if loss is not None:
            self.losses.append(loss)
        if accuracy is not None:
            self.accuracy = accuracy

    def checkpoint(self, step: int, state: bytes) -> None:
        pass


def check_lab(device: torch.device) -> str:
    """Train LeNet-5 on both devices; raise AssertionError where the first losses differ."""
    dataset = data.load("fashion-mnist", offline=True)
    words = []
    for norm in NORMS:
        config = RunConfig(
            model="lenet5", norm=norm, lr=0.1, train_images=1024, test_images=500, batch_size=64,
            epochs=2, seed=0, loss_every=1, edition="subset" if dataset.subset else "full",
        )  # fmt: skip
        here, there = _Losses(), _Losses()
        for log, placement in ((here, Placement()), (there, Placement(device))):
            outcome = train(config, dataset, log, placement=placement, checkpoint_seconds=1e9)
            assert outcome.step == config.steps, f"{norm} on {placement}: stopped early, {outcome}"
        first, same = there.losses[0], here.losses[0]
        assert abs(first - same) <= AGREE * same, (
            f"{norm}: the first loss is {first} on {device}, {same} on the CPU"
        )
        words.append(
            f"{norm}: loss {first:.4f} to {there.losses[-1]:.4f}, accuracy {there.accuracy:.3f} "
            f"(CPU {same:.4f} to {here.losses[-1]:.4f}, {here.accuracy:.3f})"
        )
    return "; ".join(words)
