"""The doctor's callback for PyTorch Lightning: it looks, logs and disturbs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normkit.errors import OptionError
from normkit.integrations.lightning import DoctorCallback, Recalibrate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Net(pl.LightningModule):
    """With dropout, so that the random state counts."""

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(16, 3),
        )  # fmt: skip
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(seed: int, count: int, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(3, (count,), generator=generator)
    data = TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)
    return DataLoader(data, batch_size=50, **options)


def fit(folder: Path, model: Net, *callbacks: Any, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    one = pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})
    one.fit(model, loader(0, 600, shuffle=True), loader(1, 300))
    return one


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained already"])
def test_training_is_bitwise_the_same(trained: bool, tmp_path: Path) -> None:
    def run(*callbacks: Any) -> tuple[Net, Tensor]:
        pl.seed_everything(3, verbose=False)
        model = Net()
        if trained:
            nn.init.normal_(model.net[1].weight)
        fit(tmp_path, model, *callbacks)
        return model, torch.get_rng_state()

    callback = DoctorCallback(show=False)
    (plain, state), (looked, other) = run(), run(callback)
    assert callback.diagnosis is not None
    assert plain.losses == looked.losses
    assert torch.equal(state, other)
    after = looked.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in plain.state_dict().items())
    assert looked.training == plain.training


def test_model_rules_first_and_the_rest_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Keeps(DoctorCallback):
        before: Any = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            self.before = self.diagnosis

    callback = Keeps()
    logger = CSVLogger(tmp_path)
    fit(tmp_path, Net(momentum=0.99), callback, logger=logger)
    before, after = callback.before, callback.diagnosis
    assert after is not None
    assert [one.places for one in before.of("NK104")] == [("net.1",)]
    assert (before.score, before.profile) == (None, None)
    assert after.of("NK104")
    assert after.gain is not None
    assert after.gain.samples == 300
    assert after.profile is not None
    out = capsys.readouterr().out
    assert f"normkit doctor, before training: {before.headline}\n" in out
    assert f"normkit doctor, after training: {after.headline}" in out
    rows = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "doctor/gain_low" in rows
    assert repr(after.gain.change)[:8] in rows


def test_a_trained_module_is_examined_with_its_data(tmp_path: Path) -> None:
    model = Net()
    fit(tmp_path, model)
    model.net[1].running_mean += 9
    seen: list[Any] = []

    class Keeps(DoctorCallback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            seen.append(self.diagnosis)

    fit(tmp_path, model, Keeps(show=False), max_epochs=1)
    assert [one.places for one in seen[0].of("NK290")] == [("net.1",)]


def test_a_diagnosis_that_fails_is_a_warning(tmp_path: Path) -> None:
    def fails(model: nn.Module, batch: Any) -> Any:
        raise ZeroDivisionError("by the user")

    callback = DoctorCallback(forward=fails, show=False)
    with pytest.warns(UserWarning, match="ZeroDivisionError: by the user"):
        fit(tmp_path, Net(), callback)


def test_bad_arguments_and_modules_are_refused_before_training(tmp_path: Path) -> None:
    class NoForward(Net):
        forward = pl.LightningModule.forward

    with pytest.raises(OptionError, match="without one"):
        fit(tmp_path, NoForward(), DoctorCallback())
    with pytest.raises(OptionError):
        DoctorCallback(samples=0)


def test_beside_recalibrate(tmp_path: Path) -> None:
    callback = DoctorCallback(show=False)
    fit(tmp_path, Net(), Recalibrate(), callback)
    assert callback.diagnosis is not None
    assert callback.diagnosis.gain is not None
    assert callback.diagnosis.gain.change == pytest.approx(0, abs=1e-6)
