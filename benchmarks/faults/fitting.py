"""Optimizers and training loops: by the book, and with faults that users make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

__all__ = ["adamw", "fit", "is_norm", "sgd"]

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Return True for a normalization layer."""
    return isinstance(module, NORMS)


def sgd(
    model: nn.Module, lr: float = 0.05, norm_lr: float | None = None, matrices_only: bool = False
) -> Optimizer:
    """Make SGD with momentum.

    Args:
        norm_lr: learning rate of normalization layers; None is ``lr``.
        matrices_only: leave out vectors, as a filter meant for weight decay does.
    """
    norms = {p for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    params = [p for p in model.parameters() if p.requires_grad]
    if matrices_only:
        params = [p for p in params if p.dim() > 1]
    groups: list[dict[str, Any]] = [{"params": [p for p in params if p not in norms]}]
    if with_norms := [p for p in params if p in norms]:
        groups.append({"params": with_norms, "lr": lr if norm_lr is None else norm_lr})
    return torch.optim.SGD(groups, lr, momentum=0.9)


def adamw(model: nn.Module, lr: float = 2e-3, decay: float = 0.05, all_decay: bool = False) -> Any:
    """Make AdamW, with decay of matrices only, or of all parameters."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": decay},
        {
            "params": [p for p in model.parameters() if p.dim() <= 1],
            "weight_decay": decay if all_decay else 0.0,
        },
    ]
    return torch.optim.AdamW(groups, lr)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: DataLoader[Any],
    *,
    epochs: int = 2,
    decay: bool = True,
    mode: Callable[[nn.Module], Any] = nn.Module.train,
    corrupt: int | None = None,
) -> None:
    """Train by cross-entropy; a step whose loss is not finite is skipped, as a loss scaler does.

    Args:
        decay: let the learning rates fall to zero in a straight line.
        mode: puts the model into its mode, at the start of every epoch.
        corrupt: step in which the first image of the batch is NaN.
    """
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(1 - step / steps, 0.0) if decay else 1.0
    )
    step = 0
    for _ in range(epochs):
        mode(model)
        for images, labels in batches:
            if step == corrupt:
                images = images.clone()
                images[0] = torch.nan
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images).float(), labels)
            if loss.isfinite():
                loss.backward()
                optimizer.step()
            schedule.step()
            step += 1
