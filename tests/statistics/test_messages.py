"""What people pass by mistake: the rule, what came, what to do; nothing changed, no batch drawn."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import normkit as nk
from normkit.errors import NormkitError
from tests.statistics.test_preserve import IMAGES, assert_same, snapshot, trained

BATCHES = list(IMAGES.split(20))
DATA = TensorDataset(IMAGES)


def said(error: BaseException) -> str:
    """The message, once its form is checked: no private name, no markup, no address."""
    text = str(error)
    assert re.fullmatch(r"Expected .+; received .+\. Fix: .+\.", text, re.DOTALL), text
    assert not re.search(r"(?<![\w*])_[a-zA-Z]|\x1b|<\w+ .*>|0x[0-9a-f]{6}| nan|e\+\d\d", text), (
        text
    )
    return text


def refused(call: Callable[[], Any], builtin: type[Exception], model: nn.Module) -> str:
    before = snapshot(model)
    with pytest.raises(NormkitError) as caught:
        call()
    assert isinstance(caught.value, builtin), type(caught.value)
    assert_same(before, snapshot(model))
    return said(caught.value)


# What stands for a model, or is one that cannot be measured -----------------------------------


class Net(nn.Module):
    pass


def build() -> nn.Module:
    return trained(nn)


NO_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: Net, "the class Net. Fix: pass an instance of it, Net(...)"),
    "a function": (lambda: build, "the function build. Fix: call it, and pass the model"),
    "a lambda": (lambda: lambda: None, "a lambda. Fix: call it"),
    "an optimizer": (
        lambda: torch.optim.SGD(trained(nn).parameters()), "an SGD. Fix: pass the model whose",
    ),
    "a state dict": (lambda: trained(nn).state_dict(), "Fix: load it with model.load_state_dict"),
    "a path": (lambda: Path("a.pt"), "the path 'a.pt'. Fix: build the model, load its state dict"),
    "a file's name": (lambda: "a.pt", "the text 'a.pt'. Fix: build the model"),
    "several": (lambda: [trained(nn)], "Fix: call this once for each model"),
    "none": (lambda: None, "received None. Fix: pass the model itself"),
    "a layer's output": (lambda: IMAGES, "a (60, 3, 6, 6) tensor of torch.float32"),
}  # fmt: skip

CALLS: dict[str, Callable[[Any], Any]] = {
    "recalibrate": lambda model: nk.recalibrate(model, BATCHES),
    "consistency": lambda model: nk.consistency(model, BATCHES),
    "batch_statistics": lambda model: nk.batch_statistics(model).__enter__(),
    "use_domain": lambda model: nk.use_domain(model, 0).__enter__(),
    "freeze": nk.freeze,
    "unfreeze": nk.unfreeze,
    "accelerate": nk.accelerate,
    "convert": lambda model: nk.convert(model, "group"),
    "save_memory": nk.save_memory,
    "scale_momentum": lambda model: nk.scale_momentum(model, 2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model(call: str, name: str) -> None:
    make, says = NO_MODELS[name]
    model = make()
    with pytest.raises(TypeError) as caught:
        CALLS[call](model)
    assert isinstance(caught.value, NormkitError)
    text = said(caught.value)
    assert says in text and f"nn.Module for {call}" in text


@pytest.mark.parametrize("call", [nk.recalibrate, nk.consistency])
def test_swapped_arguments(call: Any) -> None:
    model = trained(nn)
    loader = DataLoader(DATA, batch_size=20)
    text = refused(lambda: call(loader, model), TypeError, model)
    assert "a DataLoader. Fix: swap the two: the model comes first" in text
    assert "swap the two" in refused(lambda: nk.use_domain(0, model).__enter__(), TypeError, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [nk.recalibrate, nk.consistency])
def test_models_without_values(call: Any) -> None:
    model = trained(nn).to("meta")
    with pytest.raises(nk.StatisticsError) as caught:
        call(model, BATCHES)
    assert "on the meta device: " in said(caught.value)
    assert 'call model.to_empty(device="cpu"), then load its state dict' in said(caught.value)
    part = trained(nn)
    part.conv.to("meta")
    with pytest.raises(RuntimeError, match=r"conv\.weight, conv\.bias\. Fix: "):
        call(part, BATCHES)


# What stands for batches -----------------------------------------------------------------------


class Mapped(Dataset[Tensor]):
    """A data set that says nothing of its length."""

    def __getitem__(self, index: int) -> Tensor:
        return IMAGES[index]


class Module:
    """As Lightning has them, for data."""

    def train_dataloader(self) -> Any:
        return BATCHES


NO_BATCHES: dict[str, tuple[Callable[[], Any], str]] = {
    "a data set": (lambda: DATA, "a TensorDataset. Fix: pass a loader of it: torch.utils"),
    "another": (Mapped, "DataLoader(dataset, batch_size=64)"),
    "a part of one": (lambda: torch.utils.data.Subset(DATA, [0, 1]), "DataLoader(dataset"),
    "a data module": (Module, "such as datamodule.train_dataloader()"),
    "a tensor": (lambda: IMAGES, "put a single batch into a list: [batch]"),
    "a pair of tensors": (lambda: [IMAGES, torch.zeros(60)], "put a single batch into a list"),
    "images and labels": (
        lambda: (IMAGES[:8], torch.zeros(8, dtype=torch.int64)),
        "a tuple with a (8, 3, 6, 6) tensor of torch.float32, a (8,) tensor of torch.int64. Fix: "
        "put a single batch into a list: [batch]",
    ),
    "an array": (IMAGES.numpy, "made of torch.from_numpy(array)"),
    "a batch": (lambda: {"image": IMAGES}, "put a single batch into a list: [batch]"),
    "loaders": (
        lambda: {"train": DataLoader(DATA), "val": BATCHES},
        "a dict with train, val. Fix: pass one of the loaders in it, such as batches['train']",
    ),
    "lists of batches": (lambda: {"train": BATCHES}, "such as batches['train']"),
    "a function": (lambda: build, "the function build. Fix: call it, and pass the loader"),
    "a class": (lambda: DataLoader, "the class DataLoader. Fix: pass an instance of it"),
    "a model": (lambda: trained(nn), "Fix: pass the batches of data after the model"),
    "a path": (lambda: Path("data"), "Fix: pass the data itself"),
    "a name": (lambda: "mnist", "the text 'mnist'. Fix: pass the data itself"),
    "a number": (lambda: 32, "the int 32. Fix: pass a DataLoader, or a list of batches"),
    "none": (lambda: None, "received None"),
}  # fmt: skip


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("call", [nk.recalibrate, nk.consistency])
@pytest.mark.parametrize("name", NO_BATCHES)
def test_what_is_no_batches(name: str, call: Any, source: Any) -> None:
    make, says = NO_BATCHES[name]
    model, batches = trained(source), make()
    assert says in refused(lambda: call(model, batches), TypeError, model)


class Untouched:
    """Batches of which none may be drawn."""

    def __iter__(self) -> Iterator[Tensor]:
        raise AssertionError("a batch was drawn before the arguments were checked")


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"samples": 1e3}, ValueError, "samples=1000.0. Fix: pass an integer: samples=1000"),
    ({"samples": "1000"}, ValueError, "pass an integer: samples=1000"),
    ({"samples": "all"}, ValueError, "samples='all'. Fix: pass samples=None for all"),
    ({"samples": float("inf")}, ValueError, "pass samples=None for all"),
    ({"samples": "many"}, ValueError, "omit samples"),
    ({"samples": True}, ValueError, "samples=True"),
    ({"samples": -5}, ValueError, "samples of at least 1"),
    ({"samples": [100]}, ValueError, "samples=[100]"),
    ({"samples": IMAGES}, ValueError, "samples="),
    (
        {"forward": "model"},
        TypeError,
        "forward as the text 'model'. Fix: pass forward=lambda",
    ),
    ({"forward": lambda batch: batch}, TypeError, "forward as a lambda of (batch). Fix: pass"),
    ({"forward": 3}, TypeError, "called as forward(model, batch); received forward as the int 3"),
]
ONLY_RECALIBRATE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tolerance": "1%"}, ValueError, "pass the number itself: tolerance=0.01"),
    ({"tolerance": "0.05"}, ValueError, "tolerance=0.05"),
    ({"tolerance": -1}, ValueError, "tolerance as a relative standard error above 0"),
    ({"tolerance": float("nan")}, ValueError, "use 0.01, for 1 %"),
    ({"tolerance": True}, ValueError, "tolerance=True"),
    ({"tolerance": [0.01]}, ValueError, "tolerance=[0.01]"),
]


@pytest.mark.parametrize("option", [*OPTIONS, *ONLY_RECALIBRATE], ids=lambda o: repr(o[0])[:30])
def test_options(option: tuple[dict[str, Any], type[Exception], str]) -> None:
    options, builtin, says = option
    model = trained(nk)
    calls = [nk.recalibrate] if option in ONLY_RECALIBRATE else [nk.recalibrate, nk.consistency]
    for call in calls:
        text = refused(lambda call=call: call(model, Untouched(), **options), builtin, model)
        assert says in text and len(text) < 400


def test_a_loss_that_is_none() -> None:
    model = trained(nn)
    text = refused(lambda: nk.consistency(model, Untouched(), loss="mse"), TypeError, model)  # type: ignore[arg-type]
    assert "loss as the text 'mse'. Fix: pass loss=lambda output, batch: ..., or omit it" in text


@pytest.mark.parametrize("value", [None, "0.5", IMAGES, [0.5, 0.5]])
def test_a_loss_that_returns_no_number(value: Any) -> None:
    model = trained(nk)
    text = refused(
        lambda: nk.consistency(model, BATCHES, loss=lambda output, batch: value), TypeError, model
    )
    assert 'average it, such as with reduction="mean"' in text


def test_a_criterion_in_place_of_a_loss() -> None:
    model = trained(nk)
    batches = [(x, torch.zeros(20, dtype=torch.int64)) for x in BATCHES]
    before = snapshot(model)
    with pytest.raises(TypeError, match="argument 'target'") as caught:
        nk.consistency(model, batches, loss=nn.CrossEntropyLoss())
    assert_same(before, snapshot(model))
    if sys.version_info >= (3, 11):
        assert "loss=lambda output, batch: criterion(output, batch[1])" in caught.value.__notes__[0]


@pytest.mark.parametrize("confidence", [0, 1, 95, "95%", None, float("nan")])
def test_confidences_that_are_none(confidence: Any) -> None:
    result = nk.recalibrate(trained(nk), BATCHES)
    with pytest.raises(nk.OptionError, match=r"confidence=.*Fix: use 0\.95"):
        result.interval("norm1", confidence)


@pytest.mark.parametrize("samples", [40, np.int64(40), None])
def test_integers_of_any_library(samples: Any) -> None:
    assert nk.recalibrate(trained(nn), BATCHES, samples=samples).samples == (40 if samples else 60)


# What batches may hold -------------------------------------------------------------------------


class Two(nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nk.BatchNorm2d(3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.norm(left + right)
        return out


class Picture:
    """As PIL has them."""


Picture.__module__ = "PIL.Image"


CONTENTS: dict[str, tuple[Callable[[], nn.Module], Any, type[Exception], str]] = {
    "samples of a detector": (
        lambda: trained(nn), [{"image": x, "height": 6} for x in IMAGES[:4]], TypeError,
        "a list of 4 samples, each a dict with image, height. Fix: pass forward=lambda model, "
        "batch: model(batch)",
    ),
    "two inputs and labels": (
        Two, ((IMAGES, IMAGES), torch.zeros(60)), TypeError,
        "all that Two.forward(left, right) needs; received a tuple with a tuple with a "
        "(60, 3, 6, 6) tensor of torch.float32, a (60, 3, 6, 6) tensor of torch.float32, a (60,) "
        "tensor of torch.float32. Fix: pass forward=lambda model, batch: model(*batch[0])",
    ),
    "two inputs in a row": (
        Two, [IMAGES, IMAGES, torch.zeros(60)], TypeError, "model(*batch[:2])",
    ),
    "one of two inputs": (Two, IMAGES, TypeError, "forward=lambda model, batch: model(...)"),
    "one of two names": (
        Two, {"left": IMAGES, "label": torch.zeros(60)}, TypeError,
        "all inputs of Two.forward(left, right); received a dict with left, label",
    ),
    "names of none": (
        Two, {"image": IMAGES}, ValueError, "Two.forward takes: left, right; received",
    ),
    "arrays": (
        lambda: trained(nn), [IMAGES.numpy(), np.zeros(60)], RuntimeError,
        "a (60, 3, 6, 6) ndarray of float32, a (60,) ndarray of float64. Fix: make tensors of the",
    ),
    "images of PIL": (
        lambda: trained(nn), [[Picture(), Picture()], [1, 2]], RuntimeError, "with ToTensor()",
    ),
    "texts": (
        lambda: trained(nn), [["a cat", "a dog"], [0, 1]], RuntimeError, "the model's tokenizer",
    ),
    "nothing": (lambda: trained(nn), (), RuntimeError, "an empty tuple"),
    "a model elsewhere": (
        lambda: trained(nn), [IMAGES.to("meta")], RuntimeError, "model(batch[0].to(device))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", [nk.recalibrate, nk.consistency])
@pytest.mark.parametrize("name", CONTENTS)
def test_contents(name: str, call: Any) -> None:
    make, batch, builtin, says = CONTENTS[name]
    model = make()
    assert says in refused(lambda: call(model, [batch]), builtin, model)


def test_integers_for_an_embedding_are_an_input() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.BatchNorm1d(32))
    ids = torch.randint(50, (64, 4))
    assert nk.recalibrate(model, [ids[:32], ids[32:]]).samples == 64


def test_two_mappings_are_inputs_and_targets() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            out: Tensor = self.norm(inputs["image"])
            return out

    batches = [[{"image": x}, {"label": torch.zeros(20)}] for x in BATCHES]
    assert nk.recalibrate(Takes(), batches).samples == 60


# Errors of the user's own model and data pass, with a note -------------------------------------

FOREIGN: dict[str, tuple[Any, str]] = {
    "float64": (IMAGES.double(), "parameters are torch.float32: the input may need converting"),
    "bytes": ((IMAGES * 9).byte(), "(60, 3, 6, 6) tensor of torch.uint8"),
    "channels last as axes": (
        IMAGES.permute(0, 2, 3, 1),
        "raised on batch 2, a (60, 6, 6, 3) tensor",
    ),
}


@pytest.mark.parametrize("call", [nk.recalibrate, nk.consistency])
@pytest.mark.parametrize("name", FOREIGN)
def test_errors_within_the_model(name: str, call: Any) -> None:
    batch, says = FOREIGN[name]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = snapshot(model)
    with pytest.raises(RuntimeError) as caught:
        call(model, [IMAGES, batch])
    assert type(caught.value) is RuntimeError, "as torch raised it"
    assert_same(before, snapshot(model))
    if sys.version_info >= (3, 11):
        notes = "\n".join(caught.value.__notes__)
        assert says in notes and "pass forward=lambda model, batch: model(...)" in notes


@pytest.mark.parametrize("error", ["TypeError", "KeyError", "StopIteration", "MemoryError"])
def test_errors_within_the_model_keep_their_type(error: str) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            raise getattr(builtins, error)("of the user's own")

    model = Broken()
    before = snapshot(model)
    with pytest.raises(getattr(builtins, error), match="of the user's own"):
        nk.recalibrate(model, BATCHES)
    with pytest.raises(getattr(builtins, error), match="of the user's own"):
        nk.recalibrate(model, BATCHES, forward=lambda m, x: m(x))
    assert_same(before, snapshot(model))


def test_errors_of_the_loader_pass() -> None:
    def failing() -> Iterator[Tensor]:
        yield BATCHES[0]
        raise OSError("no such image")

    model = trained(nk)
    before = snapshot(model)
    for call in (nk.recalibrate, nk.consistency):
        with pytest.raises(OSError, match="no such image"):
            call(model, failing())
    assert_same(before, snapshot(model))
