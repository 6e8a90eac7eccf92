"""Convert a training's state to bytes and back, so that a run resumes bit for bit."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import torch
from torch import nn

__all__ = ["Progress", "restore", "state"]

CPU = torch.device("cpu")


@dataclasses.dataclass
class Progress:
    """The state of a run outside its model, optimizer and generators.

    A checkpoint of an older version lacks the fields that came later, and they get their defaults.
    """

    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_loss: float = 0.0  # summed over the images of this epoch
    epoch_images: int = 0
    recent_loss: float = 0.0  # summed over the steps since the last record
    recent_steps: int = 0
    learning_step: int = 0  # the last step recorded with a loss better than guessing
    epoch_correct: float = 0  # the task's figure, such as right answers, summed over those images
    epoch_judged: int = 0  # images of this epoch that epoch_correct counts

    def count_batch(self, loss: float, figure: float, images: int) -> None:
        """Add a training batch: its mean loss and its summed figure."""
        self.epoch_loss += loss * images
        self.epoch_images += images
        self.epoch_correct += figure
        self.epoch_judged += images
        self.recent_loss += loss
        self.recent_steps += 1

    def take_recent_loss(self) -> float:
        """Return the mean loss of the steps since the last call, and start again from zero."""
        mean = self.recent_loss / self.recent_steps
        self.recent_loss, self.recent_steps = 0.0, 0
        return mean

    def end_epoch(self) -> None:
        """Start counting the next epoch from zero."""
        self.epoch_loss, self.epoch_images, self.epoch_seconds = 0.0, 0, 0.0
        self.epoch_correct, self.epoch_judged = 0, 0

    @property
    def epoch_figure(self) -> float | None:
        """The task's figure over this epoch's images; None unless all were counted."""
        whole = self.epoch_judged == self.epoch_images > 0
        return self.epoch_correct / self.epoch_judged if whole else None


def state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    at: Progress,
    device: torch.device = CPU,
) -> bytes:
    """Serialize model, optimizer, generators and progress."""
    buffer = io.BytesIO()
    contents: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": torch.get_rng_state(),
        "progress": dataclasses.asdict(at),
    }
    if device.type != "cpu":
        # Dropout on a device draws from the device's own generator.
        contents["device_generator"] = torch.get_device_module(device).get_rng_state(device)
    torch.save(contents, buffer)
    return buffer.getvalue()


def restore(
    state: bytes,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device = CPU,
) -> Progress:
    """Load what :func:`state` saved into ``model`` and ``optimizer``, on any device.

    A run resumed on another kind of device draws other dropout masks.
    """
    # Through the CPU: both move what they are given to where their own tensors are.
    saved = torch.load(io.BytesIO(state), weights_only=True, map_location=CPU)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["generator"])
    if device.type != "cpu" and "device_generator" in saved:
        torch.get_device_module(device).set_rng_state(saved["device_generator"], device)
    return Progress(**saved["progress"])
