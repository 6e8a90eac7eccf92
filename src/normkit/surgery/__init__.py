"""Changing a model's normalization without breaking the model."""

from normkit.surgery.accelerate import accelerate
from normkit.surgery.handle import Changed, Handle, Left

__all__ = ["Changed", "Handle", "Left", "accelerate"]
