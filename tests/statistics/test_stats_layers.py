"""Layers whose statistics cannot be replaced by their own are left and named."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit as nk

X = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs() + 0.1


def test_layers_that_share_their_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model.append(nk.BatchNorm2d(3))
    model[2].running_mean = model[0].running_mean
    before = copy.deepcopy(model[0].state_dict())
    result = nk.recalibrate(model, [X], progress=False)
    assert list(result.layers) == ["3"]
    assert {row.name: row.why for row in result.skipped} == {
        "0": "keeps its statistics in the same tensor as 2",
        "2": "keeps its statistics in the same tensor as 0",
    }
    torch.testing.assert_close(model[0].state_dict(), before, rtol=0, atol=0)


def test_parametrized_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    parametrize.register_parametrization(model[0], "running_var", Positive())
    result = nk.recalibrate(model, [X], progress=False)
    assert list(result.layers) == ["1"]
    assert result.skipped[0].why == "its statistics are computed from other tensors"
    assert torch.equal(model[0].running_var, torch.full((3,), 1.1))
