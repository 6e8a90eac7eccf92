"""Expected time of runs, from what their networks compute.

A step takes a time for each layer and each parameter, and each image a time for the values that its
layers put out and for a change of its size. (Multiplications told nothing more.) The constants
below were fitted by least squares of the relative error to 819 finished trainings of the full
preset, two at once on two cores: half of them took 0.91 to 1.14 times the expected, nine in ten
0.76 to 1.30 times. By the number of steps alone it was off by factors of 0.2 to 5, as images of one
network cost a hundred times those of another. How fast a machine is, and which networks it is
fastest with, differs: :mod:`normkit.lab.remaining` learns that while runs end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from normkit.lab.building import network_of, outline
from normkit.lab.conditions import CONDITIONS, Condition
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.data.domains import DOMAINS
from normkit.lab.domains import as_domain

__all__ = ["Size", "expected_seconds", "kind_of", "size_of"]

BATCH = 8
"""Images to count with; more than one, as some layers ask for."""

STEP = 2.9e-3
"""Seconds of a step of a network that cannot be built to be counted."""
LAYER = 9.1e-5
"""Seconds of a layer in a training step, whatever the batch; a third of it in evaluation."""
PARAMETER = 2.9e-8
"""Seconds of a parameter in a training step."""
VALUE = 1.8e-9
"""Seconds of a value that some layer puts out in a forward pass."""
RESIZED = 1.8e-5
"""Seconds of an image whose size is changed."""
BACKWARD = 2
"""Forward passes that a backward pass costs."""
FACTORS = {
    "alexnet": 0.67, "cifar10-quick": 0.9, "convnet4": 1.17, "denoiser": 1.75, "resnet18": 1.13,
    "resnet34": 0.93, "vit": 1.4,
}  # fmt: skip
"""What remains between networks: some have layers that are faster, for their size."""
ACTIVATIONS = {"sigmoid": 1.4}
"""What an activation costs that takes an exponential."""
TIMING, TIMINGS = 3.0, {"lenet5": 0.6, "resnet18": 6.0, "densenet": 3.3}
"""Seconds of a run that measures a step's time instead of training."""


class Size(NamedTuple):
    """Size of a network: values that its layers put out for an image, layers, parameters."""

    values: float
    layers: int
    parameters: int


def kind_of(config: RunConfig) -> str:
    """Return what runs have in common that are off from the expected time by a like factor."""
    return f"{config.kind} {config.model} {config.norm} {config.act}"


def expected_seconds(config: RunConfig) -> float:
    """Return the seconds that a run takes on one core of a machine like ours.

    >>> import dataclasses
    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.1, train_images=512, test_images=256,
    ...                 batch_size=128, epochs=2, seed=0)
    >>> twice = dataclasses.replace(run, train_images=1024, test_images=512)
    >>> round(expected_seconds(twice) / expected_seconds(run), 6)
    2.0
    """
    if config.kind == "timing":
        return TIMINGS.get(config.model, TIMING)
    try:
        size = size_of(config)
    except Exception:  # it fails when its turn comes, and says why
        return config.steps * STEP
    evaluated = _evaluated(config)
    forward = (1 + BACKWARD) * config.images + evaluated
    layers = size.layers * (config.steps + evaluated / config.batch_size / (1 + BACKWARD))
    resized = spec_of(config.data).shape[-1] != config.size
    seconds = (
        layers * LAYER
        + forward * size.values * VALUE
        + (config.images + evaluated) * RESIZED * resized
    )
    views = len(DOMAINS[config.domains]) if config.domains else 1
    seconds = views * seconds + config.steps * size.parameters * PARAMETER
    return seconds * FACTORS.get(config.model, 1.0) * ACTIVATIONS.get(config.act, 1.0)


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


_sizes: dict[tuple[object, ...], Size] = {}


def size_of(config: RunConfig) -> Size:
    """Count what the forward pass of an image takes; normalizers make little difference.

    Raises:
        OptionError: the network cannot be built.
    """
    known = (config.model, config.model_options, config.size, config.data)
    if known not in _sizes:
        _sizes[known] = _count(network_of(config))
    return _sizes[known]


def _count(config: RunConfig) -> Size:
    model = outline(config).eval()
    values = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal values
        values += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in model.modules() if not list(module.children())]
    for module in leaves:
        module.register_forward_hook(count)
    channels, _, _ = spec_of(config.data).shape
    images = torch.empty(BATCH, channels, config.size, config.size, device="meta")
    with torch.no_grad(), as_domain(model, 0):
        model(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(values / BATCH, len(leaves), parameters)
