"""Whole training steps of a network, with PyTorch's layers and with ours.

A network is named ``package.module:attribute`` and found when it is measured:
``factory(name, layers, **options)`` with ``layers`` "torch" or "ours" gives a module from images
to logits. A step is what a training does with a batch: drop the gradients, forward, cross-entropy,
backward, an update of SGD with momentum.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.bench.measuring import in_turn
from normkit.bench.memory import peak_bytes, peak_rss_bytes
from normkit.bench.parts import step_parts

__all__ = ["SIDES", "Step", "measure_memory", "measure_parts", "measure_step"]

SIDES = ("torch", "ours")
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Step:
    """One network, ready to be trained on one batch over and over."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, job: Mapping[str, Any], side: str, *, seed: int = 0) -> Step:
        """Build what ``job`` describes: factory, network, options, shape, layout."""
        factory = pkgutil.resolve_name(job["factory"])
        torch.manual_seed(seed)
        model: nn.Module = factory(job["network"], side, **job["options"])
        images = torch.randn(job["shape"])
        labels = torch.randint(CLASSES, (job["shape"][0],))
        if job["layout"] == "channels-last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = images.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        return cls(model.train(), images, labels, optimizer)

    def loss(self) -> Tensor:
        """Forward, from dropped gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        return F.cross_entropy(self.model(self.images), self.labels)

    def run(self) -> None:
        """One step."""
        self.loss().backward()
        self.optimizer.step()

    def parts(self) -> dict[str, float]:
        """One step, with its seconds by kind of layer."""
        return step_parts(self.model, self.loss, self.optimizer.step)


def measure_step(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time the steps of both sides in turn, then take each apart."""
    both = {side: Step.of(job, side, seed=job.get("seed", 0)) for side in SIDES}
    runs: dict[str, Callable[[], None]] = {side: step.run for side, step in both.items()}
    times = in_turn(runs, seconds=job["seconds"], least=job.get("least", 5), warm=2)
    ratio, low, high = times.ratio("torch", "ours")
    parts = measure_parts(both, rounds=job.get("parts_rounds", 3))
    return {
        "network": job["network"],
        "shape": list(job["shape"]),
        "layout": job["layout"],
        "ms": {side: 1e3 * times.of(side) for side in SIDES},
        "rounds": times.rounds,
        "ratio": ratio,
        "ratio_interval": [low, high],
        "parts_ms": {
            side: {name: 1e3 * median(one[name] for one in found) for name in found[0]}
            for side, found in parts.items()
        },
    }


def measure_parts(both: Mapping[str, Step], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds by kind of layer: of each step, once a round, in turn."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in both}
    for turn in range(rounds):
        for side in list(both)[:: 1 if turn % 2 else -1]:
            found[side].append(both[side].parts())
    return found


def measure_memory(job: Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory of one side's step. Wants a process of its own.

    ``live_bytes`` are tensors beyond those that live between steps (weights, momentum, the
    batch); ``rss_bytes`` is the growth of the process in its first two steps.
    """
    step = Step.of(job, job["side"])

    def twice() -> None:
        step.run()
        step.run()

    rss = peak_rss_bytes(twice)
    # A step ends with gradients, which the next drops at once; the count begins without them.
    step.optimizer.zero_grad(set_to_none=True)
    return {"live_bytes": peak_bytes(step.run), "rss_bytes": rss}
