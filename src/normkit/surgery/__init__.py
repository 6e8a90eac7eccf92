"""Changing a model's normalization without breaking the model."""

from normkit.handle import Changed, Handle, Left
from normkit.surgery.accelerate import accelerate
from normkit.surgery.convert import convert
from normkit.surgery.freeze import freeze, unfreeze
from normkit.surgery.momentum import scale_momentum

__all__ = [
    "Changed",
    "Handle",
    "Left",
    "accelerate",
    "convert",
    "freeze",
    "scale_momentum",
    "unfreeze",
]
