"""Recording of one training: its network, test images, and what each step did to statistics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from normkit.errors import DataError, message

__all__ = ["LAYERS", "SHIPPED", "Recording", "load", "save"]

SHIPPED = Path(__file__).with_name("recording.npz")
"""Recording that comes with the package; ``python -m normkit.report.live.record`` makes it."""

LAYERS: tuple[str, ...] = ("norm1", "norm2", "norm3", "norm4")
"""Normalization layers of the network, in order."""

_FACTS = "facts"


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """One training of a LeNet with batch normalization.

    Attributes:
        arrays: by name. ``conv1.weight`` and so on, as in the model's ``state_dict``; of each
            layer of :data:`LAYERS` also ``.population_mean`` and ``.population_var``, of the final
            weights. ``images`` (P, 28, 28) and ``labels`` (P,): test images, in random order. For
            each step (T): ``sizes``, images in the batch; ``accuracy`` (T, 2) on test images, with
            the moving average and with population statistics; and ``means`` and ``variances``
            (4, T, 3): of one channel of each layer, in the batch, in the moving average after it,
            and in the population under the weights after it.
        facts: plain values: classes, licence, mean and std of the pixels, seed, epochs and so on.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def save(recording: Recording, path: Path) -> None:
    """Write a recording to a file."""
    arrays: dict[str, Any] = dict(recording.arrays)
    arrays[_FACTS] = np.array(json.dumps(dict(recording.facts), sort_keys=True))
    np.savez_compressed(path, **arrays)


def load(path: Path = SHIPPED) -> Recording:
    """Read a recording.

    Raises:
        DataError: there is none, or the file is damaged.

    >>> recording = load()
    >>> recording.arrays["conv1.weight"].shape, recording.facts["classes"][9]
    ((6, 1, 5, 5), 'Ankle boot')
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop(_FACTS)))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            message(
                "a recording of a training",
                f"{path}: {error}",
                "install normkit again, or record one: normkit lab live --train",
            )
        ) from error
    return Recording(arrays, facts)
