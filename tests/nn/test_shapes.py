"""Any shape at all: where torch.nn takes it so do we, with its result; where not, a clear error."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import normkit as nk
from tests.few import few
from tests.nn.every_layer import EVERY

SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), min_size=0, max_size=6).map(tuple)
MAKERS: dict[str, Any] = {
    "BatchNorm1d": lambda m: m.BatchNorm1d(4),
    "BatchNorm2d": lambda m: m.BatchNorm2d(4),
    "BatchNorm3d": lambda m: m.BatchNorm3d(4),
    "GroupNorm": lambda m: m.GroupNorm(2, 4),
    "InstanceNorm1d": lambda m: m.InstanceNorm1d(4, affine=True),
    "InstanceNorm2d": lambda m: m.InstanceNorm2d(4),
    "InstanceNorm3d": lambda m: m.InstanceNorm3d(4, track_running_stats=True),
    "LayerNorm": lambda m: m.LayerNorm((2, 3)),
    "RMSNorm": lambda m: m.RMSNorm(3),
}


def _try(layer: nn.Module, x: torch.Tensor) -> torch.Tensor | Exception:
    try:
        return layer(x)
    except Exception as error:
        return error


@pytest.mark.parametrize("name", MAKERS)
@settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(shape=SIZES, training=st.booleans(), fitting=st.booleans())
def test_any_shape(name: str, shape: tuple[int, ...], training: bool, fitting: bool) -> None:
    if fitting and len(shape) > 1:  # make a good part of them fit
        shape = (shape[0], 4, *shape[2:]) if "Batch" in name or "Group" in name else shape
        shape = (*shape[:-2], 2, 3) if name in ("LayerNorm", "RMSNorm") else shape
        shape = (*shape[:-3], 4, *shape[-2:]) if name == "InstanceNorm2d" else shape
    theirs, ours = MAKERS[name](nn).train(training), MAKERS[name](nk).train(training)
    before = copy.deepcopy(ours.state_dict())
    x = torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = _try(theirs, x), _try(ours, x)
    if isinstance(b, Exception):
        assert isinstance(b, nk.NormkitError), f"{shape}: {b!r}"
        assert "; received " in str(b) and "Fix: " in str(b)
        # With nothing to normalize, some of PyTorch's layers do not look at the channels.
        assert isinstance(a, Exception) or x.numel() == 0, f"{shape}: torch.nn takes it; {b}"
        torch.testing.assert_close(ours.state_dict(), before)
        return
    assert b.shape == x.shape
    if isinstance(a, Exception):
        # Nothing to normalize, which some of PyTorch's layers refuse and ours do not.
        assert x.numel() == 0, f"{shape}: torch.nn refuses it: {a}"
    else:
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


OURS = {name: sample for name, sample in EVERY.items() if sample.namesake is None}


@pytest.mark.parametrize("name", few(OURS, lambda name: not name.endswith("3d")))
def test_any_small_shape_of_a_layer_that_torch_lacks(name: str) -> None:
    """No samples, no channels, no pixels; one of each: finite, or refused with nothing changed."""
    sample = OURS[name]
    keys = {"num_features": 1, "num_channels": 1, "normalized_shape": -1}
    channels, axis = next((key, axis) for key, axis in keys.items() if key in sample.needs)
    for sizes in itertools.product((0, 1, 2), *[(0, 1, 3)] * (len(sample.shape) - 1)):
        for training in (True, False):
            try:
                layer = sample._replace(needs={**sample.needs, channels: sizes[axis]}).make()
            except nk.OptionError:
                continue  # half of no channels
            before = copy.deepcopy(layer.state_dict())
            x = torch.randn(sizes, requires_grad=True)
            try:
                y = layer.train(training)(x)
            except nk.ShapeError as error:
                # torch.nn's instance and group normalization refuse a single value in evaluation.
                assert training or name in ("HalfInstanceNorm2d", "AdaptiveGroupNorm"), sizes
                assert "more than 1 value" in str(error) or "channels" in str(error)
                torch.testing.assert_close(layer.state_dict(), before)
                continue
            y.sum().backward()
            assert y.shape == x.shape and x.grad is not None
            for value in (y, x.grad, *layer.state_dict().values()):
                assert bool(torch.isfinite(value).all()), sizes
