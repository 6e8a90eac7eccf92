"""The networks of the experiments, by name, with any normalizer.

>>> from normkit.lab import models
>>> plain = models.build("resnet18", norm="none", in_channels=3, size=32)
>>> sum(p.numel() for p in plain.parameters())
11164362
"""

from __future__ import annotations

from normkit.lab.models.layers import ACTIVATIONS, NORM_POSITIONS
from normkit.lab.models.normalizers import NORMS, NormFactory
from normkit.lab.models.registry import MODELS, OUTPUTS, TITLES, build

__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "NORMS",
    "NORM_POSITIONS",
    "OUTPUTS",
    "TITLES",
    "NormFactory",
    "build",
]
