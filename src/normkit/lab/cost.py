"""Expected time of runs, in proportion, from what their networks compute.

A training step takes a time of its own, and each image a time for the multiplications and for the
memory that its values pass through. With the three constants below, fitted by least squares of the
relative error to 718 runs of the full preset on two cores (six models, networks of 0.01 to 90
million operations an image), half of the runs took 0.88 to 1.27 times the expected, and the time
left of a whole study was never off by more than a quarter. By the number of steps alone it was off
by factors of 0.2 to 5, as images of one network cost a hundred times those of another.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from normkit.lab.building import network_of, outline
from normkit.lab.conditions import CONDITIONS, Condition
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.data.domains import DOMAINS
from normkit.lab.domains import as_domain

__all__ = ["expected_seconds"]

BATCH = 8
"""Images to count with; more than one, as some layers ask for."""

STEP = 2.9e-3
"""Seconds of a training step, whatever its batch."""
OPERATION = 5.7e-13
"""Seconds of a floating-point operation."""
VALUE = 1.9e-9
"""Seconds of a value that some layer puts out."""
BACKWARD = 2
"""Forward passes that a backward pass costs."""
TIMING = 1.0
"""Seconds of a run that measures a step's time instead of training."""


def expected_seconds(config: RunConfig) -> float:
    """Return the processor seconds that a run takes on a machine like ours.

    >>> import dataclasses
    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=512, test_images=256,
    ...                 batch_size=128, epochs=2, seed=0)
    >>> twice = dataclasses.replace(run, train_images=1024, test_images=512)
    >>> expected_seconds(twice) / expected_seconds(run)
    2.0
    """
    if config.kind == "timing":
        return TIMING
    try:
        operations, values = _per_image(network_of(config))
    except Exception:  # it fails when its turn comes, and says why
        operations = values = 0.0
    images = (1 + BACKWARD) * config.images + _evaluated(config)
    views = len(DOMAINS[config.domains]) if config.domains else 1
    return config.steps * STEP + views * images * (operations * OPERATION + values * VALUE)


def _evaluated(config: RunConfig) -> int:
    """Count the images that go through the network in evaluations."""
    return sum(
        config.test_images
        + sum(_under(condition, config) for condition in config.conditions(epoch))
        for epoch in range(config.epochs)
        if config.is_evaluated(epoch)
    )


def _under(condition: Condition, config: RunConfig) -> int:
    numbers = dict(zip(CONDITIONS[str(condition[0])], condition[1:], strict=True))
    return int(numbers.get("samples", 0)) + int(numbers.get("images", config.test_images))


@functools.cache
def _per_image(config: RunConfig) -> tuple[float, float]:
    """Count the floating-point operations of an image's forward pass, and the values put out."""
    model = outline(config).eval()
    values = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal values
        values += output.numel() if isinstance(output, Tensor) else 0

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    channels, _, _ = spec_of(config.data).shape
    images = torch.empty(BATCH, channels, config.size, config.size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, as_domain(model, 0):
        model(images)
    return counter.get_total_flops() / BATCH, values / BATCH
