"""``torch.set_default_device`` decides where users' tensors are made, and not ours."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normkit as nk


@pytest.mark.parametrize("layerwise", [False, True])
def test_tools_work_whatever_the_default_device(layerwise: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nk.BatchNorm2d(4))
    twin = copy.deepcopy(model)
    batches = [torch.randn(8, 3, 6, 6) + i for i in range(4)]
    nk.recalibrate(twin, batches, progress=False, layerwise=layerwise)
    expected = str(nk.consistency(twin, batches))
    with torch.device("meta"):
        nk.recalibrate(model, batches, progress=False, layerwise=layerwise)
        torch.testing.assert_close(model.state_dict(), twin.state_dict())
        found = str(nk.consistency(model, batches))
        with nk.batch_statistics(model):
            model(batches[0])
        for handle in (nk.freeze(model), nk.accelerate(model)):
            model(batches[0])
            handle.undo()
    assert found == expected
