"""Do to a trained model what users do to it: average, prune, load, and forget the statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader

from faults.data import dark, inverted, train_batches
from faults.fitting import fit, is_norm, sgd

__all__ = ["averaged", "extrapolated", "loaded", "pruned", "reset", "validated"]

Batches = DataLoader[Any]


def reset(model: nn.Module, batches: Batches) -> nn.Module:
    """Reset the statistics, as a re-initialization of all layers with that method does."""
    for module in model.modules():
        if is_norm(module) and hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
    return model


def loaded(model: nn.Module, batches: Batches, *, buffers: bool) -> nn.Module:
    """Save and load, with or without buffers; ``strict=False`` accepts both."""
    state = model.state_dict() if buffers else dict(model.named_parameters())
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    reset(model, batches)
    model.load_state_dict(state, strict=False)
    return model


def pruned(model: nn.Module, batches: Batches, *, update: bool) -> nn.Module:
    """Set the smallest 60 % of each convolution's weights to zero, then update statistics."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight.abs()
                module.weight.mul_(size > size.flatten().quantile(0.6))
    if update:
        update_bn(batches, model)
    return model


def averaged(model: nn.Module, batches: Batches, *, update: bool) -> nn.Module:
    """Average the weights of three more epochs at a constant rate, then update statistics."""
    average = AveragedModel(model)
    optimizer = sgd(model, lr=0.05)
    for _ in range(3):
        fit(model, optimizer, batches, epochs=1, decay=False)
        average.update_parameters(model)
    if update:
        update_bn(batches, average)
    return average


def extrapolated(model: nn.Module, batches: Batches, *, statistics: bool) -> nn.Module:
    """Tune on dark images, and go as far again in that direction, as task arithmetic does.

    Args:
        statistics: extrapolate the running statistics like weights; else update them.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, sgd(model, lr=0.001), train_batches(change=dark), epochs=1)
    after = model.state_dict()
    for name, tensor in after.items():
        if tensor.is_floating_point() and (statistics or "running" not in name):
            tensor.add_(tensor - before[name], alpha=1.0)
    model.load_state_dict(after)
    if not statistics:
        update_bn(batches, model)
    return model


def validated(model: nn.Module, batches: Batches, *, mode: bool) -> nn.Module:
    """Run validation images of another domain, in training mode or in evaluation mode."""
    model.train(mode)
    with torch.no_grad():
        for images, _ in train_batches(change=inverted, count=1_000):
            model(images)
    return model.train()
