"""Bad input gets a clear error, and the model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import (
    DataError,
    NormkitError,
    OptionError,
    StatisticsError,
    TypeMismatchError,
)
from tests.statistics.test_preserve import IMAGES, assert_same, snapshot, trained

BATCHES = list(IMAGES.split(20))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nk.BatchNorm2d(3)

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.norm(image * scale)
        return out


CASES: dict[str, tuple[Any, dict[str, Any], type[NormkitError], str]] = {
    "no batches": ([], {}, StatisticsError, "at least one batch"),
    "used up": (iter(()), {}, StatisticsError, "an iterator can be used only once"),
    "empty batches": ([IMAGES[:0]], {}, StatisticsError, "at least one batch"),
    "no tensor": ([("a", "b")], {}, DataError, "a tuple with the text 'a', the text 'b'"),
    "nothing in it": ([()], {}, DataError, "an empty tuple"),
    "numbers": ([3.0], {}, DataError, "the float 3.0"),
    "another device": ([IMAGES[:4].to("meta")], {}, DataError, "one on meta for a model on cpu"),
    "one tensor": (IMAGES, {}, TypeMismatchError, r"a \(60, 3, 6, 6\) tensor"),
    "no iterable": (7, {}, TypeMismatchError, "the int 7"),
    "a dict": ({"x": IMAGES}, {}, TypeMismatchError, "put a single batch into a list"),
    "no samples": (BATCHES, {"samples": 0}, OptionError, "samples=0"),
    "half samples": (BATCHES, {"samples": 0.5}, OptionError, "samples=0.5"),
    "tolerance": (BATCHES, {"tolerance": 0.0}, OptionError, "tolerance=0.0"),
    "no number": (BATCHES, {"tolerance": float("nan")}, OptionError, "tolerance=nan"),
    "once only": (iter(BATCHES), {"layerwise": True}, OptionError, "iterated over once"),
    "a group": (BATCHES, {"process_group": object()}, OptionError, "not initialized"),
    "not finite": ([IMAGES / 0], {}, StatisticsError, "input of norm1"),
    "names": ([{"picture": IMAGES}], {}, OptionError, "a batch with picture"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("source", [nn, nk])
def test_invalid_arguments(name: str, source: Any) -> None:
    batches, options, error, says = CASES[name]
    model = trained(source)
    before = snapshot(model)
    with pytest.raises(error, match=says) as caught:
        nk.recalibrate(model, batches, **options)
    assert "; received " in str(caught.value) and "Fix: " in str(caught.value)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (nn.Sequential(nn.Linear(3, 3)), StatisticsError, "Sequential without one"),
        (nn.LayerNorm(3), StatisticsError, "LayerNorm without one"),
        (nn.BatchNorm1d(3, track_running_stats=False), StatisticsError, "BatchNorm1d without one"),
        (nn.InstanceNorm1d(3), StatisticsError, "without one"),
        (nk.freeze, TypeMismatchError, "the function freeze"),
        (nn.Sequential(nn.LazyBatchNorm1d()), StatisticsError, "run the model once"),
        (nn.Sequential(nk.LazyBatchNorm2d()), StatisticsError, "run the model once"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_models_without_replaceable_statistics(
    model: Any, error: type[NormkitError], says: str
) -> None:
    with pytest.raises(error, match=says):
        nk.recalibrate(model, BATCHES)


def test_scripted_models() -> None:
    with pytest.raises(TypeMismatchError, match=r"before torch\.jit\.script"):
        nk.recalibrate(torch.jit.script(nn.BatchNorm2d(3)), BATCHES)  # type: ignore[no-untyped-call]


def test_all_layers_frozen() -> None:
    model = trained(nn)
    model.norm1.running_mean.zero_()
    nk.freeze(model)
    with pytest.raises(StatisticsError, match="norm1: frozen; norm2: frozen"):
        nk.recalibrate(model, BATCHES)


def test_single_value_is_an_error() -> None:
    with pytest.raises(StatisticsError, match="at least two values"):
        nk.recalibrate(nn.Sequential(nk.BatchNorm1d(3)), [torch.ones(1, 3)])


def test_model_error_is_not_wrapped() -> None:
    model = trained(nn)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"expected input\[20, 5, 6, 6\] to have 3 channels"):
        nk.recalibrate(model, [torch.zeros(20, 5, 6, 6)])
    assert_same(before, snapshot(model))


# What batches may be


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, "a name"],
        lambda x: {"image": x, "label": torch.zeros(len(x))},
        lambda x: {"image": x, "scale": 1.0},
    ],
)
def test_batches(wrap: Any) -> None:
    model = Named()
    found = nk.recalibrate(model, [wrap(x) for x in BATCHES])
    assert found.samples == 60
    torch.testing.assert_close(model.norm.running_mean, IMAGES.mean((0, 2, 3)), rtol=0, atol=1e-6)


def test_custom_forward_for_other_batches() -> None:
    model = Named()
    batches = [{"deep": {"pictures": [x]}} for x in BATCHES]
    found = nk.recalibrate(model, batches, forward=lambda m, b: m(b["deep"]["pictures"][0]))
    assert found.samples == 60
    torch.testing.assert_close(model.norm.running_mean, IMAGES.mean((0, 2, 3)), rtol=0, atol=1e-6)


def test_batches_without_tensors() -> None:
    model = Named()
    found = nk.recalibrate(model, [0, 20, 40], forward=lambda m, at: m(IMAGES[at : at + 20]))
    assert found.samples == 60


def test_interval_of_unknown_layer() -> None:
    found = nk.recalibrate(Named(), BATCHES)
    with pytest.raises(StatisticsError, match="'other'"):
        found.interval("other")
    found = nk.recalibrate(Named(), BATCHES[:1])
    with pytest.raises(StatisticsError, match="smaller batches"):
        found.interval("norm")
