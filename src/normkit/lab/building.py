"""Build a run's model and optimizer from its description, with paired arms.

Two runs with one seed see the same images: the seed draws them from the
training set and decides their order in each epoch, whatever the model. Their convolutions and
dense layers start from the same numbers: both are built under ``torch.manual_seed(seed)``, and no
normalizer draws any. Random numbers drawn while training (dropout) start from the seed too. What
remains between the arms is what is compared. The intervals hold for the order and the initial
weights, given this test set, which is the same for all seeds; for the draw of the training images
only as far as a run takes a part of them, and seeds share much of what they draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normkit.errors import OptionError, message
from normkit.lab import models
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.tasks import task_of

__all__ = ["build_model", "build_optimizer", "network_of", "outline"]


def build_model(config: RunConfig, *, in_channels: int, classes: int) -> nn.Module:
    """Build the model of a run with the initial weights of its seed; see the module's docstring.

    Raises:
        OptionError: no such model; one that gives logits for a task that needs images, or the
            other way round.
    """
    needed = task_of(config).output
    if models.OUTPUTS.get(config.model, needed) != needed:
        fit = ", ".join(name for name, output in models.OUTPUTS.items() if output == needed)
        raise OptionError(
            message(
                f"a model that outputs {needed}, for {config.task}",
                f"{config.model}, which outputs {models.OUTPUTS[config.model]}",
                f"use one of {fit}",
            )
        )
    options: dict[str, Any] = dict(config.model_options)
    torch.manual_seed(config.seed)
    model = models.build(
        config.model,
        norm=config.norm,
        norm_options=dict(config.norm_options),
        act=config.act,
        in_channels=in_channels,
        classes=classes,
        size=config.size,
        **options,
    )
    # An eighth faster on a CPU with these small networks, with every normalizer and with none.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # From here on the generator serves what training draws, alike in both arms.
    torch.manual_seed(config.seed)
    return model


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that a run's description names."""
    parameters = list(model.parameters())
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, momentum=config.momentum, **common)
    if config.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, **common)
    # One pass over the weights instead of one for each operation: with Adam a sixth of a step of
    # AlexNet's. Those above have no such form.
    common["fused"] = all(parameter.device.type == "cpu" for parameter in parameters)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    return torch.optim.Adam(parameters, **common)


def network_of(config: RunConfig) -> RunConfig:
    """Return one description for all runs with the same network."""
    names = ("model", "norm", "act", "model_options", "norm_options", "size", "data")
    fields: dict[str, Any] = {
        name: getattr(config, name) for name in (*names, "task", "noise", "noise_spread")
    }
    return RunConfig(
        **fields, train_images=1, test_images=1, batch_size=1, lr=1.0, epochs=1, seed=0
    )


def outline(config: RunConfig) -> nn.Module:
    """Build the model of a run without numbers, on the device ``meta``, to count what is in it.

    Raises:
        OptionError: as :func:`build_model`.
    """
    spec = spec_of(config.data)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build_model(config, in_channels=spec.shape[0], classes=len(spec.classes))
