"""The callback for PyTorch Lightning, in real trainings."""

from __future__ import annotations

import copy
import importlib
import socket
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from normkit.errors import OptionError, StatisticsError
from normkit.integrations.lightning import Recalibrate
from normkit.lab import data
from tests import forked
from tests.integrations import lightning_worker
from tests.together import together

pytestmark = [
    # Advice on speed, which a test does not need.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Consider setting `persistent_workers=True`"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches"),
    # Of Lightning's own code, which is behind torch's.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start"),
]


@pytest.fixture(scope="module")
def images() -> tuple[TensorDataset, TensorDataset]:
    """600 and 200 images of Fashion-MNIST."""
    fashion = data.load("fashion-mnist", offline=True)
    train, test = (
        next(data.batches(split, count, seed=0))
        for split, count in ((fashion.train, 600), (fashion.test, 200))
    )
    return TensorDataset(*train), TensorDataset(*test)


class LeNet(pl.LightningModule):
    """With dropout, so that the random state counts."""

    def __init__(self, drop: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=2),
            nn.BatchNorm2d(4),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(576, 32),
            nn.BatchNorm1d(32),
            nn.Sigmoid(),
            nn.Dropout(drop),
            nn.Linear(32, 10),
        )
        self.losses: list[float] = []
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.seen.append({k: v.clone() for k, v in self.state_dict().items()})
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: Path, *callbacks: Any, epochs: int = 2, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def loader(images: TensorDataset, **options: Any) -> DataLoader[Any]:
    return DataLoader(images, batch_size=50, **{"shuffle": True, **options})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def is_moment(name: str) -> bool:
    return "running" in name


def holds(state: dict[str, Tensor], found: Any) -> bool:
    """Whether a state dict has the statistics that were found."""
    return all(
        torch.equal(state[f"{name}.running_mean"], one.mean.float())
        and torch.equal(state[f"{name}.running_var"], one.variance.float())
        for name, one in found.layers.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 1, "persistent_workers": True},
        {"generator": torch.Generator()},
    ],
    ids=["plain", "workers that stay", "a generator of its own"],
)
def test_training_is_bitwise_the_same(options: dict[str, Any], images: Any, tmp_path: Path) -> None:
    def fit(*callbacks: Any) -> tuple[LeNet, Tensor]:
        pl.seed_everything(3, verbose=False)
        if "generator" in options:
            options["generator"].manual_seed(4)
        model = LeNet()
        # In the middle of an epoch, too.
        one = trainer(tmp_path, *callbacks, val_check_interval=0.5, num_sanity_val_steps=1)
        one.fit(model, loader(images[0], **options), DataLoader(images[1], 100))
        return model, torch.get_rng_state()

    (plain, plain_state), (looked, looked_state) = fit(), fit(Recalibrate())
    assert plain.losses == looked.losses
    assert same(plain.state_dict(), looked.state_dict())
    assert torch.equal(plain_state, looked_state)
    # And yet validation saw other statistics: in all but the sanity check.
    assert len(plain.seen) == len(looked.seen) == 5
    for number, (a, b) in enumerate(zip(plain.seen, looked.seen, strict=True)):
        differ = {k for k in a if not torch.equal(a[k], b[k])}
        # The counts of batches may differ too, or be equal by chance.
        differ = {k for k in differ if number == 0 or "tracked" not in k}
        assert differ == ({k for k in a if is_moment(k)} if number else set())


def test_validation_uses_recalibrated_statistics(images: Any, tmp_path: Path) -> None:
    class Looks(LeNet):
        def on_validation_start(self) -> None:
            self.net_then = copy.deepcopy(self.net)

    torch.manual_seed(0)
    model, callback = Looks(), Recalibrate(samples=None)
    train = loader(images[0], shuffle=False)
    trainer(tmp_path, callback, epochs=1).fit(model, train, DataLoader(images[1], 100))
    assert callback.result is not None
    assert callback.result.samples == 600
    inputs = [x for x, _ in DataLoader(images[0], 50)]
    expected = nk.recalibrate(model.net_then.train(), inputs, samples=None)
    (seen,) = model.seen
    assert holds(seen, callback.result)
    assert holds({k.removeprefix("net."): v for k, v in seen.items()}, expected)
    assert not holds(model.state_dict(), callback.result)


@pytest.mark.parametrize(
    "when",
    [
        {},
        {"save_on_train_epoch_end": False},
        {"save_weights_only": True},
        {"save_last": True, "monitor": "loss"},
    ],
)
def test_checkpoint_has_validated_statistics(
    when: dict[str, Any], images: Any, tmp_path: Path
) -> None:
    model, callback = LeNet(), Recalibrate()
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, **when)
    trainer(tmp_path, saves, callback).fit(model, loader(images[0]), DataLoader(images[1], 100))
    paths = sorted(p for p in tmp_path.glob("*.ckpt") if "last" not in p.name)
    assert len(paths) == 2
    assert callback.result is not None
    for path, seen in zip(paths, model.seen, strict=True):
        saved = torch.load(path, weights_only=True)
        assert same(saved["state_dict"], seen)
    assert holds(saved["state_dict"], callback.result)
    if "save_last" in when:
        last = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert holds(last["state_dict"], callback.result)
    # A checkpoint that no validation came before has training's own.
    assert not holds(model.state_dict(), callback.result)


def test_checkpoint_between_validations_has_training_averages(images: Any, tmp_path: Path) -> None:
    states: dict[bool, dict[str, Tensor]] = {}
    for look in (False, True):
        pl.seed_everything(0, verbose=False)
        folder = tmp_path / str(look)
        saves = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=15)
        callbacks = [saves, Recalibrate()] if look else [saves]
        trainer(tmp_path, *callbacks).fit(LeNet(), loader(images[0]), DataLoader(images[1], 100))
        (path,) = folder.glob("*.ckpt")
        states[look] = torch.load(path, weights_only=True)["state_dict"]
    assert same(states[False], states[True])


def test_resumed_training_restores_averages(images: Any, tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None) -> LeNet:
        torch.manual_seed(0)
        model = LeNet(drop=0.0)
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        one = trainer(tmp_path, saves, Recalibrate(), epochs=epochs)
        batches = loader(images[0], shuffle=False)
        one.fit(model, batches, DataLoader(images[1], 100), ckpt_path=path)
        return model

    fit(1)
    resumed = fit(2, tmp_path / "epoch=0.ckpt")
    assert len(resumed.losses) == 12
    assert same(resumed.state_dict(), fit(2).state_dict())


def test_keep_continues_from_recalibrated_statistics(images: Any, tmp_path: Path) -> None:
    model, callback = LeNet(), Recalibrate(keep=True)
    trainer(tmp_path, callback).fit(model, loader(images[0]), DataLoader(images[1], 100))
    assert callback.result is not None
    assert holds(model.state_dict(), callback.result)
    assert callback.state_dict() == {}


def test_test_and_validate_without_fit(images: Any, tmp_path: Path) -> None:
    model, test = LeNet(), DataLoader(images[1], 100)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    callback = Recalibrate()
    for name in ("validate", "test"):
        with pytest.raises(OptionError, match="the trainer has not trained"):
            getattr(trainer(tmp_path, callback), name)(model, test, verbose=False)
        given = Recalibrate(loader(images[0]))
        getattr(trainer(tmp_path, given), name)(model, test, verbose=False)
        assert given.result is not None
        assert holds(model.seen[-1], given.result)
        assert same(model.state_dict(), before)
    trainer(tmp_path, Recalibrate(on_test=False)).test(model, test, verbose=False)
    assert same(model.seen[-1], before)
    # After training the trainer has its data. What was refused above left evaluation mode.
    model.train()
    one = trainer(tmp_path, callback, epochs=1, limit_val_batches=0)
    one.fit(model, loader(images[0]), DataLoader(images[1], 100))
    assert callback.result is None
    one.test(model, test, verbose=False)
    assert callback.result is not None
    assert holds(model.seen[-1], callback.result)


class FromTheStart(LeNet):
    def __init__(self) -> None:
        super().__init__()
        self.net[1].eval()


class FromTheFirstEpoch(LeNet):
    def on_train_epoch_start(self) -> None:
        self.net[1].eval()


class ByOurs(LeNet):
    def on_train_start(self) -> None:
        nk.freeze(self.net[1])


@pytest.mark.parametrize("kind", [FromTheStart, FromTheFirstEpoch, ByOurs])
def test_layers_frozen_in_training_are_skipped(
    kind: type[LeNet], images: Any, tmp_path: Path
) -> None:
    model, callback = kind(), Recalibrate()
    trainer(tmp_path, callback, epochs=1).fit(model, loader(images[0]), DataLoader(images[1], 100))
    assert callback.result is not None
    assert list(callback.result.layers) == ["net.5"]
    assert [row.name for row in callback.result.skipped] == ["net.1"]
    assert (model.seen[-1]["net.1.running_mean"] == 0).all()
    assert (model.seen[-1]["net.5.running_mean"] != 0).any()
    assert not model.net[1].training


class Transferred(LeNet):
    """Does on the device what others do in the loader."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 3 * batch[0], batch[1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_batches_pass_through_module_hooks(precision: Any, images: Any, tmp_path: Path) -> None:
    inputs: list[Tensor] = []
    model, callback = Transferred(), Recalibrate(samples=None)
    model.net.insert(0, nn.BatchNorm2d(1))
    one = trainer(tmp_path, callback, epochs=1, precision=precision)
    one.fit(model, loader(images[0]), DataLoader(images[1], 100))
    inputs = [x for x, _ in DataLoader(images[0], 50)]
    assert callback.result is not None
    x = 3 * (torch.cat(inputs).double() + 1)
    found = callback.result.layers["net.0"]
    torch.testing.assert_close(found.mean, x.mean()[None])
    torch.testing.assert_close(found.variance, x.var()[None])
    assert model.seen[-1]["net.0.running_mean"].dtype == (
        torch.float64 if precision == "64-true" else torch.float32
    )


class Stops(LeNet):
    """Fails in the middle of the second epoch's validation."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        if self.current_epoch == 1:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_exception_restores_training_averages(
    error: BaseException, images: Any, tmp_path: Path
) -> None:
    batches = loader(images[0], shuffle=False), DataLoader(images[1], 100)
    states = []
    for callbacks in ([], [Recalibrate()]):
        torch.manual_seed(0)
        model = Stops(error)
        with pytest.raises((ValueError, KeyboardInterrupt, SystemExit)):
            trainer(tmp_path, *callbacks).fit(model, *batches)
        states.append(model.state_dict())
    assert same(*states)


def test_statistics_loaded_meanwhile_stay(images: Any, tmp_path: Path) -> None:
    class Best(pl.Callback):
        """Goes back to the best weights, as some do when a validation was worse."""

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.load_state_dict({**pl_module.state_dict(), "net.1.running_mean": ONES})

    ONES = torch.ones(4)
    model = LeNet()
    one = trainer(tmp_path, Best(), Recalibrate(), epochs=1)
    one.fit(model, loader(images[0]), DataLoader(images[1], 100))
    assert torch.equal(model.net[1].running_mean, ONES)


class Silent(LeNet):
    forward = pl.LightningModule.forward

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.seen.append({k: v.clone() for k, v in self.state_dict().items()})


def test_module_without_forward_is_an_error(images: Any, tmp_path: Path) -> None:
    batches = loader(images[0]), DataLoader(images[1], 200)
    with pytest.raises(OptionError, match="pass forward=lambda module, batch"):
        trainer(tmp_path, Recalibrate(), epochs=1).fit(Silent(), *batches)
    model = Silent()
    callback = Recalibrate(forward=lambda module, batch: module.net(batch[0]))
    trainer(tmp_path, callback, epochs=1).fit(model, *batches)
    assert callback.result is not None
    assert holds(model.seen[-1], callback.result)


def test_errors_come_before_training(images: Any, tmp_path: Path) -> None:
    val = DataLoader(images[1], 100)

    def refused(model: LeNet, train: Any, *callbacks: Any) -> str:
        with pytest.raises((OptionError, StatisticsError)) as caught:
            trainer(tmp_path, *callbacks).fit(model, train, val)
        assert model.losses == []
        return str(caught.value)

    plain = LeNet()
    plain.net[1] = plain.net[5] = nn.Identity()
    assert "a layer with running statistics" in refused(plain, loader(images[0]), Recalibrate())
    several = {"a": loader(images[0]), "b": loader(images[0])}
    assert "one loader of training data to take the statistics from; received a dict" in refused(
        LeNet(), several, Recalibrate()
    )
    ema = EMAWeightAveraging()
    assert "no callback that swaps the weights" in refused(
        LeNet(), loader(images[0]), ema, Recalibrate()
    )
    with pytest.raises(OptionError, match="iterated over once"):
        Recalibrate(iter([torch.ones(2, 1)]))
    with pytest.raises(OptionError, match="samples of at least 1"):
        Recalibrate(samples=0)
    with pytest.raises(nk.TypeMismatchError, match="iterable of batches"):
        Recalibrate(torch.ones(2, 1))


# In one process, as each of the packages takes seconds to import.
NAMES = """
import sys
import torch
from torch.utils.data import DataLoader, TensorDataset

def check(pl):
    sys.modules.pop("normkit.integrations.lightning", None)
    from normkit.integrations.lightning import Recalibrate

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)
        def forward(self, x):
            return self.norm(x)
        def training_step(self, batch, _):
            return self(batch[0]).square().sum()
        def validation_step(self, batch, _):
            pass
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = DataLoader(TensorDataset(torch.randn(20, 2)), 5)
    callback = Recalibrate()
    pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], logger=False,
               enable_checkpointing=False, enable_progress_bar=False).fit(Model(), batches, batches)
    assert callback.result.samples == 20
    print([m for m in ("lightning", "pytorch_lightning") if m in sys.modules])

import pytorch_lightning
check(pytorch_lightning)
sys.modules["lightning"] = None
check(pytorch_lightning)
for name in [m for m in sys.modules if m.partition(".")[0] in ("lightning", "pytorch_lightning")]:
    del sys.modules[name]
import lightning.pytorch
check(lightning.pytorch)
"""


def test_both_package_names(tmp_path: Path) -> None:
    done = forked.python("-c", NAMES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("[")] == [
        "['pytorch_lightning']", "['lightning', 'pytorch_lightning']", "['lightning']",
    ]  # fmt: skip


def test_missing_lightning_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "import normkit\n"
        "assert not {'lightning', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.modules.update(lightning=None, pytorch_lightning=None)\n"
        "import normkit.integrations.lightning\n"
    )
    done = forked.python("-c", code)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "pip install" in said and "[lightning]" in said


def test_former_import_path() -> None:
    former = importlib.import_module("normkit.statistics.lightning")
    assert former.Recalibrate is Recalibrate
    assert not hasattr(former, "__test__")


def test_two_processes_merge_their_shares(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = together(lightning_worker, [1, 1], str(port), tmp_path)
    ranks = [result["with"] for result in both]
    (x, seen, _, samples), (_, others, _, _) = ranks
    assert samples == 40
    # Every validation, at both, on the statistics of all.
    assert len(seen) == len(others) == 2
    for mine, theirs in zip(seen, others, strict=True):
        assert same(mine, theirs)
        torch.testing.assert_close(mine["net.0.running_mean"], x.double().mean(0).float())
        torch.testing.assert_close(mine["net.0.running_var"], x.double().var(0).float())
    # And training as without: the weights at both, and the averages of the first, which
    # DistributedDataParallel gives to the others before each forward. (In validation too, so that
    # without the callback those at the end are the first's everywhere.)
    for rank in (0, 1):
        plain = both[rank]["without"][2]
        differ = {k for k in plain if not torch.equal(plain[k], ranks[rank][2][k])}
        assert not any(rank == 0 or not is_moment(k) for k in differ)
