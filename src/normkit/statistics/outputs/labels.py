"""Labels of a batch, and which outputs may be scores for them.

They are the second part of a pair ``(inputs, labels)``, and of a mapping the entry ``labels``,
``label``, ``targets`` or ``target``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["IGNORED_LABEL", "fitting_axes", "is_class_labels", "labels_of"]

IGNORED_LABEL = -100
"""The label that PyTorch's cross-entropy ignores."""

LABELS = ("labels", "label", "targets", "target")
"""Entries of a mapping that hold its labels, the first that is there."""


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch, or None; integers of any type as int64.

    In narrower types other labels equal -100: 156 in uint8.
    """
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABELS if key in batch), None)
    else:
        pair = isinstance(batch, (list, tuple)) and len(batch) == 2
        labels = batch[1] if pair else None
    # Names and other things that no tensor holds are no labels to compare.
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
        if isinstance(labels, (list, tuple)) and labels and isinstance(labels[0], (int, float)):
            labels = torch.tensor(labels)
        elif type(labels).__module__ == "numpy":
            # A copy, as a tensor takes neither one that is read-only nor one in reverse.
            labels = torch.as_tensor(np.array(labels, order="C"))
    if not isinstance(labels, Tensor) or labels.is_nested or labels.layout != torch.strided:
        return None
    return labels.long() if is_class_labels(labels) else labels


def is_class_labels(labels: Tensor) -> bool:
    """Return whether labels are integers, as those of classes."""
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def fitting_axes(values: Tensor, labels: Tensor) -> list[int]:
    """Return along which axes ``values`` may be scores for ``labels``: 1, and -1, the last.

    One label for each sample and position, and at least two classes, among which are all labels
    that count.

    >>> fitting_axes(torch.zeros(8, 5, 7), torch.zeros(8, 7, dtype=torch.int64))
    [1]
    >>> fitting_axes(torch.zeros(8, 7, 5), torch.full((8, 7), 4))
    [-1]
    >>> fitting_axes(torch.zeros(8, 5), torch.full((8,), 5))
    []
    """
    if not is_class_labels(labels) or values.dim() < 2 or not values.is_floating_point():
        return []
    shapes = {1: (values.shape[0], *values.shape[2:])}
    if values.dim() > 2:
        shapes[-1] = values.shape[:-1]
    fitting = [axis for axis, shape in shapes.items() if labels.shape == shape]
    if not fitting:
        return []
    counted = labels[labels != IGNORED_LABEL]
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    return [axis for axis in fitting if low >= 0 and high < values.shape[axis] > 1]
