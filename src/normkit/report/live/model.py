"""Network of a recording as a PyTorch model, to check the page's figures against."""

from __future__ import annotations

import torch
from torch import nn

from normkit.lab.building import build_model
from normkit.lab.data.split import Split
from normkit.report.live.record import recorded_config
from normkit.report.live.recording import LAYERS, Recording

__all__ = ["images", "network"]


def network(recording: Recording) -> nn.Module:
    """Return the network in evaluation mode, with the population statistics of its weights.

    >>> from normkit.lab.data import batches
    >>> from normkit.report.live.recording import load
    >>> recording = load()
    >>> pixels, labels = next(batches(images(recording), 500, seed=0, shuffle=False))
    >>> bool((network(recording)(pixels).argmax(1) == labels).float().mean() > 0.7)
    True
    """
    arrays = recording.arrays
    classes = len(recording.facts["classes"])
    model = build_model(recorded_config(), in_channels=1, classes=classes)
    state = model.state_dict()
    state.update({name: torch.from_numpy(arrays[name]) for name in state if name in arrays})
    for layer in LAYERS:
        state[f"{layer}.running_mean"] = torch.from_numpy(arrays[f"{layer}.population_mean"])
        state[f"{layer}.running_var"] = torch.from_numpy(arrays[f"{layer}.population_var"])
    model.load_state_dict(state)
    return model.eval()


def images(recording: Recording) -> Split:
    """Return the test images of a recording, in its order."""
    pixels = torch.from_numpy(recording.arrays["images"]).unsqueeze(1)
    labels = torch.from_numpy(recording.arrays["labels"]).long()
    facts = recording.facts
    return Split(pixels, labels, (facts["mean"],), (facts["std"],))
