"""The table that a handle prints, before and after it is undone."""

from __future__ import annotations

from torch import nn

import normkit as nk


def test_repr_names_fused_activations_and_says_when_undone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    handle = nk.accelerate(model)
    shown = repr(handle)
    head, row, *_ = shown.splitlines()
    assert head == "accelerate: 1 changed, 1 fused, 0 skipped"
    assert row == "  1  nn.BatchNorm2d → normkit.BatchNorm2d, fused with 2"
    handle.undo()
    assert repr(handle) == f"undone: {shown}"
    handle.undo()
    assert repr(handle) == f"undone: {shown}"


def test_repr_of_nothing_to_change_says_when_undone() -> None:
    handle = nk.freeze(nn.Linear(1, 1))
    handle.undo()
    assert repr(handle) == "undone: freeze: 0 changed, 0 skipped: nothing to change"
