"""Time whole training steps of a network, with PyTorch's layers and with ours.

A network is given as ``package.module:attribute``, imported when it is measured:
``factory(name, layers, **options)`` with ``layers`` "torch" or "ours" returns a module from images
to logits. A step resets the gradients, runs forward, cross-entropy and backward, and updates the
weights by SGD with momentum.
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

from normkit.bench.breakdown import step_parts
from normkit.bench.memory import peak_bytes, peak_rss_bytes
from normkit.bench.stopwatch import time_interleaved

__all__ = ["SIDES", "Step", "measure_memory", "measure_parts", "measure_step"]

SIDES = ("torch", "ours")
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Step:
    """One network with a batch, ready for repeated training steps."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, job: Mapping[str, Any], side: str, *, seed: int = 0) -> Step:
        """Build the network and batch of a job: factory, network, options, shape, layout."""
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
        """Reset the gradients and compute the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        return F.cross_entropy(self.model(self.images), self.labels)

    def run(self) -> None:
        """Run one step."""
        self.loss().backward()
        self.optimizer.step()

    def parts(self) -> dict[str, float]:
        """Run one step and return its seconds by kind of layer."""
        return step_parts(self.model, self.loss, self.optimizer.step)


def measure_step(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time the steps of both sides interleaved, then break each down."""
    both = {side: Step.of(job, side, seed=job.get("seed", 0)) for side in SIDES}
    runs: dict[str, Callable[[], None]] = {side: step.run for side, step in both.items()}
    times = time_interleaved(
        runs, seconds=job["seconds"], min_rounds=job.get("min_rounds", 5), warmup=2
    )
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
            side: {name: 1e3 * median(one[name] for one in rounds) for name in rounds[0]}
            for side, rounds in parts.items()
        },
    }


def measure_parts(both: Mapping[str, Step], *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return seconds by kind of layer of each step, once per round, interleaved."""
    parts: dict[str, list[dict[str, float]]] = {side: [] for side in both}
    for index in range(rounds):
        for side in list(both)[:: 1 if index % 2 else -1]:
            parts[side].append(both[side].parts())
    return parts


def measure_memory(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return peak memory of one side's step; run it in a new process.

    ``live_bytes`` counts tensors beyond those that live between steps (weights, momentum, the
    batch); ``rss_bytes`` is the growth of the process in its first two steps.
    """
    step = Step.of(job, job["side"])

    def twice() -> None:
        step.run()
        step.run()

    rss = peak_rss_bytes(twice)
    # A step leaves gradients, which the next resets at once: they are not part of its peak.
    step.optimizer.zero_grad(set_to_none=True)
    return {"live_bytes": peak_bytes(step.run), "rss_bytes": rss}
