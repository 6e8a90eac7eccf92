"""Bad input: a clear error that says what came and what to do, before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.compat import TRAINS_WITH_ZERO_EPS

BAD_INPUT: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, type, str]] = {
    "rank": (lambda: nk.BatchNorm2d(3), torch.ones(2, 3, 4), nk.ShapeError, "3D input (2, 3, 4)"),
    "rank 1d": (lambda: nk.BatchNorm1d(3), torch.ones(2, 3, 4, 4), nk.ShapeError, "BatchNorm2d"),
    "rank sync": (lambda: nk.SyncBatchNorm(3), torch.ones(3), nk.ShapeError, "batch axis"),
    "rank group": (lambda: nk.GroupNorm(1, 3), torch.ones(3), nk.ShapeError, "batch axis"),
    "rank frozen": (lambda: nk.FrozenBatchNorm2d(3), torch.ones(3, 3), nk.ShapeError, "2D input"),
    "channels": (
        lambda: nk.BatchNorm2d(3), torch.ones(2, 5, 4, 4), nk.ShapeError, "Expected 3 channels",
    ),
    "channels last as axes": (
        lambda: nk.BatchNorm2d(3), torch.ones(2, 4, 4, 3), nk.ShapeError, "memory format",
    ),
    "channels group": (lambda: nk.GroupNorm(2, 4), torch.ones(2, 6, 3), nk.ShapeError, "6 in"),
    "channels half": (
        lambda: nk.HalfInstanceNorm2d(4), torch.ones(2, 6, 3, 3), nk.ShapeError,
        "Expected 4 channels",
    ),
    "one value": (
        lambda: nk.BatchNorm2d(3), torch.ones(1, 3, 1, 1), nk.ShapeError, "more than 1 value",
    ),
    "one value per ghost": (
        lambda: nk.GhostBatchNorm1d(3, 1), torch.ones(4, 3), nk.ShapeError, "ghost batch",
    ),
    "one pixel": (
        lambda: nk.InstanceNorm2d(3), torch.ones(2, 3, 1, 1), nk.ShapeError, "spatial element",
    ),
    "integers": (
        lambda: nk.BatchNorm2d(3), torch.ones(2, 3, 4, 4, dtype=torch.uint8),
        nk.TypeMismatchError, "torch.uint8",
    ),
    "complex": (
        lambda: nk.LayerNorm(4), torch.ones(2, 4, dtype=torch.complex64),
        nk.TypeMismatchError, "torch.complex64",
    ),
    "last axes": (lambda: nk.LayerNorm((3, 4)), torch.ones(2, 4, 3), nk.ShapeError, "[*, 3, 4]"),
    "too few axes": (lambda: nk.RMSNorm((3, 4)), torch.ones(4), nk.ShapeError, "size [4]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name: str) -> None:
    make, x, kind, words = BAD_INPUT[name]
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(kind) as caught:
        layer(x)
    text = str(caught.value)
    assert words in text and "; received " in text and "Fix: " in text, text
    assert type(layer).__name__ in text
    torch.testing.assert_close(layer.state_dict(), before), "nothing may have moved"


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


BAD_ARGUMENTS: dict[str, tuple[Callable[[], object], type, str]] = {
    "last axes of nothing": (
        lambda: nk.LayerNorm(())(torch.ones(2)), nk.ShapeError, "normalized_shape=[]",
    ),
    "groups of other channels": (
        lambda: nk.GroupNorm(4, 4, affine=False)(torch.ones(2, 6, 3)), nk.ShapeError, "(6)",
    ),
    "not a tensor": (lambda: nk.LayerNorm(3)([1.0]), nk.TypeMismatchError, "list"),
    "freezing a 1d layer": (
        lambda: nk.FrozenBatchNorm2d.from_batch_norm(nn.BatchNorm1d(1)),
        nk.TypeMismatchError, "BatchNorm1d",
    ),
    "groups": (lambda: nk.GroupNorm(3, 64), nk.ShapeError, "use one of [1, 2, 4, 8, 16, 32, 64]"),
    "no groups": (lambda: nk.GroupNorm(0, 4), nk.ShapeError, "num_groups=0"),
    "activation": (lambda: nk.BatchNorm2d(3, act="swish"), nk.OptionError, "act='swish'"),
    "activation type": (lambda: nk.LayerNorm(3, act=3), nk.OptionError, "act=3"),  # type: ignore[arg-type]
    "activation later": (
        lambda: setattr(nk.LayerNorm(3), "act", ("relu", 1)), nk.OptionError, "('relu', 1)",
    ),
    "average": (lambda: nk.BatchNorm1d(3, average="mean"), nk.OptionError, "average='mean'"),  # type: ignore[arg-type]
    "debiased without momentum": (
        lambda: nk.BatchNorm1d(3, momentum=None, average="debiased"), nk.OptionError, "None",
    ),
    "ghost size": (lambda: nk.GhostBatchNorm2d(3, 0), nk.OptionError, "ghost_size=0"),
    "half of nothing": (lambda: nk.HalfInstanceNorm2d(0), nk.OptionError, "at least 1"),
    "freezing a convolution": (
        lambda: nk.FrozenBatchNorm2d.from_batch_norm(nn.Conv2d(1, 1, 1)),  # type: ignore[arg-type]
        nk.TypeMismatchError, "Conv2d",
    ),
    "freezing several domains": (
        lambda: nk.FrozenBatchNorm2d.from_batch_norm(nk.DomainBatchNorm2d(1, 2)),
        nk.TypeMismatchError, "one set of running statistics",
    ),
    "freezing a forward of its own": (
        lambda: nk.FrozenBatchNorm2d.from_batch_norm(Doubled(1)),
        nk.TypeMismatchError, "a Doubled, which may compute something else",
    ),
    "freezing without memory": (
        lambda: nk.FrozenBatchNorm2d.from_batch_norm(nn.BatchNorm2d(1, track_running_stats=False)),
        nk.TypeMismatchError, "track_running_stats=True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name: str) -> None:
    make, kind, words = BAD_ARGUMENTS[name]
    with pytest.raises(kind) as caught:
        make()
    text = str(caught.value)
    assert words in text and "; received " in text and "Fix: " in text, text


@pytest.mark.parametrize("residual", [torch.ones(2, 3, 4, 1), torch.ones(2, 3, 4, 4).long(), 1.0])
@pytest.mark.parametrize("make", [lambda: nk.BatchNorm2d(3), lambda: nk.LayerNorm2d(3)])
def test_a_residual_that_differs(residual: object, make: Callable[[], nn.Module]) -> None:
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(nk.ShapeError, match="residual"):
        layer(torch.ones(2, 3, 4, 4), residual)
    torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_epsilon(eps: float) -> None:
    layer = nk.BatchNorm2d(3, eps=eps)
    with (
        nullcontext()
        if eps == 0 and TRAINS_WITH_ZERO_EPS
        else pytest.raises(nk.OptionError, match="eps must be positive")
    ):
        assert torch.isfinite(layer(torch.randn(2, 3, 4, 4))).all()
    layer.eval()
    if eps == 0:
        assert torch.isfinite(layer(torch.randn(2, 3, 4, 4))).all()
    else:
        with pytest.raises(nk.OptionError, match="eps must be positive"):
            layer(torch.randn(2, 3, 4, 4))


def test_evaluation_takes_a_single_value() -> None:
    assert nk.BatchNorm2d(3).eval()(torch.ones(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_all_errors_are_of_one_tree() -> None:
    kinds = (nk.ShapeError, nk.TypeMismatchError, nk.OptionError, nk.StatisticsError,
             nk.DataError, nk.StoreError)  # fmt: skip
    assert all(issubclass(k, nk.NormkitError) for k in kinds)
    assert issubclass(nk.ShapeError, ValueError) and issubclass(nk.ShapeError, RuntimeError)


def test_nan_and_inf_pass_through_as_in_torch() -> None:
    x = torch.randn(4, 3, 2, 2)
    x[0, 0, 0, 0] = float("nan")
    x[1, 1, 0, 0] = float("inf")
    ours, theirs = nk.BatchNorm2d(3)(x), nn.BatchNorm2d(3)(x)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert torch.isfinite(ours[:, 2]).all()
