"""The callback under every way that a trainer has to go over less, or more, than the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import normkit as nk
from normkit.integrations.lightning import Recalibrate

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # advice on speed, and Lightning's own
]
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
BATCH = 8


class Model(pl.LightningModule):
    """A layer of torch and one of ours."""

    def __init__(self, automatic: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2), nk.BatchNorm1d(2))
        self.automatic_optimization = automatic
        self.seen: list[Tensor] = []
        self.validated: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.seen.append(batch.clone())
        loss = self(batch).square().mean() + self.net[1].weight.square().sum()
        if not self.automatic_optimization and index % 2:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        if index == 0:
            self.validated.append({k: v.clone() for k, v in self.state_dict().items()})
        self.log("loss", self(batch).square().mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Stream(IterableDataset[Tensor]):
    """Keeps its position from epoch to epoch."""

    def __init__(self) -> None:
        self.rest = itertools.cycle(DATA.unbind())

    def __iter__(self) -> Iterator[Tensor]:
        return itertools.islice(self.rest, len(DATA))


class Generated(Stream):
    def __init__(self) -> None:
        self.rest = (x for _ in range(100) for x in DATA)


def shuffled() -> Any:
    return DataLoader(DATA, BATCH, shuffle=True)  # type: ignore[arg-type]


def trainer(*callbacks: Any, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    if options.get("barebones"):
        defaults = {name: defaults[name] for name in ("accelerator", "devices", "max_epochs")}
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


LIMITS: dict[str, tuple[dict[str, Any], int]] = {
    "number": ({"limit_train_batches": 3}, 3),
    "fraction": ({"limit_train_batches": 0.5}, 4),
    "one": ({"limit_train_batches": 1}, 1),
    "more than there are": ({"limit_train_batches": 100}, 8),
    "overfit number": ({"overfit_batches": 2}, 2),
    "overfit fraction": ({"overfit_batches": 0.25}, 2),
    "fast": ({"fast_dev_run": True}, 1),
    "fast two": ({"fast_dev_run": 2}, 2),
    "steps": ({"max_steps": 3, "val_check_interval": 3, "max_epochs": -1}, 3),
    "accumulated steps": (
        {"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 4, "max_epochs": -1},
        4,
    ),
    "many steps": ({"max_steps": 100}, 8),
    "accumulated": ({"accumulate_grad_batches": 3}, 8),
    "within": ({"val_check_interval": 0.25}, 8),
    "reloaded": ({"reload_dataloaders_every_n_epochs": 1}, 8),
    "no inference mode": ({"inference_mode": False}, 8),
    "barebones": ({"barebones": True}, 8),
    "across epochs": ({"check_val_every_n_epoch": None, "val_check_interval": 3}, 8),
    "every second": ({"check_val_every_n_epoch": 2}, 8),
}


@pytest.mark.parametrize("name", LIMITS)
def test_as_many_batches_as_trained_on(name: str) -> None:
    options, batches = LIMITS[name]
    models = []
    for callbacks in ([], [Recalibrate()]):
        torch.manual_seed(1)
        model = Model()
        one = trainer(*callbacks, **options)
        one.fit(model, shuffled(), DataLoader(DATA, 16))  # type: ignore[arg-type]
        models.append(model)
        for callback in callbacks:
            assert callback.result is callback.found
            assert callback.result.batches == batches
            assert callback.result.samples == BATCH * batches
            one.test(model, DataLoader(DATA, 16), verbose=False)  # type: ignore[arg-type]
            if name == "overfit number":
                expected = DATA[: 2 * BATCH].double().mean(0)
                torch.testing.assert_close(callback.result.layers["net.0"].mean, expected)
            if "fast" not in name:
                assert callback.result.batches == batches
    plain, looked = models
    _assert_same_training(plain, looked)
    # What validates is not what training has collected.
    first = "net.0.running_mean"
    assert not torch.equal(plain.validated[0][first], looked.validated[0][first])


def _assert_same_training(plain: Model, looked: Model) -> None:
    assert len(plain.seen) == len(looked.seen)
    assert all(map(torch.equal, plain.seen, looked.seen))
    a, b = plain.state_dict(), looked.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("first", [False, True])
def test_weight_averaging_of_lightning(first: bool) -> None:
    """Stochastic weight averaging resets the averages for an epoch of its own."""
    models = []
    for callbacks in ([], [Recalibrate()]):
        torch.manual_seed(1)
        model = Model()
        swa = StochasticWeightAveraging(0.1, swa_epoch_start=0.5)
        order = [*callbacks, swa] if first else [swa, *callbacks]
        trainer(*order, max_epochs=4).fit(model, shuffled(), DataLoader(DATA, 16))  # type: ignore[arg-type]
        models.append(model)
    _assert_same_training(*models)
    assert callbacks[0].result is not None
    assert callbacks[0].result.batches == 8


@pytest.mark.parametrize(
    "callback",
    [GradientAccumulationScheduler({0: 4, 1: 1}), EarlyStopping("loss", patience=0)],
    ids=["scheduler", "stops early"],
)
def test_beside_other_callbacks(callback: Any) -> None:
    models = []
    for callbacks in ([], [Recalibrate()]):
        torch.manual_seed(1)
        models.append(Model())
        one = trainer(callback, *callbacks, max_steps=4, val_check_interval=4)
        one.fit(models[-1], shuffled(), DataLoader(DATA, 16))  # type: ignore[arg-type]
    if isinstance(callback, GradientAccumulationScheduler):
        _assert_same_training(*models)
        assert callbacks[0].result is not None
        assert callbacks[0].result.samples <= BATCH * len(models[1].seen)


class FullyShardedDataParallel(nn.Module):
    """A wrapper without whose forward the module inside would have no weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_module_is_called_through_what_gathers_its_weights() -> None:
    class Wraps(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.strategy.model = FullyShardedDataParallel(pl_module)

        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.calls = trainer.strategy.model.calls  # type: ignore[union-attr]
            trainer.strategy.model = pl_module

    wraps, callback, validation = Wraps(), Recalibrate(), DataLoader(DATA, 16)  # type: ignore[arg-type]
    trainer(wraps, callback, max_epochs=1).fit(Model(), shuffled(), validation)
    assert callback.result is not None
    assert wraps.calls >= callback.result.batches == 8


def test_manual_steps_do_not_limit() -> None:
    callback = Recalibrate()
    one = trainer(callback, max_steps=3, val_check_interval=6)
    one.fit(Model(automatic=False), shuffled(), DataLoader(DATA, 16))  # type: ignore[arg-type]
    assert callback.result is not None
    assert callback.result.batches == 8


@pytest.mark.parametrize("interval", [1.0, 3])
@pytest.mark.parametrize("limit", [1.0, 5])
def test_streams(interval: float, limit: float) -> None:
    models = []
    for callbacks in ([], [Recalibrate()]):
        torch.manual_seed(1)
        models.append(Model())
        one = trainer(*callbacks, val_check_interval=interval, limit_train_batches=limit)
        one.fit(models[-1], DataLoader(Stream(), BATCH), DataLoader(DATA, 16))  # type: ignore[arg-type]
    _assert_same_training(*models)
    assert callbacks[0].result is not None
    assert callbacks[0].result.batches == min(8, limit if limit > 1 else 8)


def test_stream_that_cannot_be_copied_is_refused_before_training() -> None:
    model = Model()
    with pytest.raises(nk.DataError, match="in the middle of an epoch"):
        trainer(Recalibrate(), val_check_interval=3).fit(
            model,
            DataLoader(Generated(), 16),
            DataLoader(DATA, 16),  # type: ignore[arg-type]
        )
    assert not model.seen
    # Between epochs nobody is in the middle; or with batches of its own.
    for callback, interval in ((Recalibrate(), 1.0), (Recalibrate(DATA.split(16)), 3)):
        trainer(callback, val_check_interval=interval).fit(
            model,
            DataLoader(Generated(), 16),
            DataLoader(DATA, 16),  # type: ignore[arg-type]
        )
        assert callback.result is not None
        assert callback.result.samples == 64


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_measurement_changes_nothing(
    error: type[BaseException], tmp_path: Path
) -> None:
    class Broken(Recalibrate):
        def _recalibrate(self, *args: Any) -> None:
            self.options["forward"] = self.fail
            super()._recalibrate(*args)

        def fail(self, module: Any, batch: Any) -> Any:
            module(batch)
            raise error("stop")

    models = [Model(), Model()]
    for model, callbacks in zip(models, ([], [Broken()]), strict=True):
        torch.manual_seed(1)
        one = trainer(*callbacks, max_epochs=1)
        try:
            one.fit(model, shuffled(), DataLoader(DATA, 16))  # type: ignore[arg-type]
        except (error, SystemExit):
            assert callbacks
    _assert_same_training(*models)
