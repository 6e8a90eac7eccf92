"""A callback for PyTorch Lightning: validation with population statistics.

Needs ``lightning`` or ``pytorch_lightning``, which ``normkit[lightning]`` brings; nothing else of
this package imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, explain
from normkit.integrations.stats_swap import Exchange, write
from normkit.statistics.batches import (
    Forward,
    check_batches,
    check_samples,
    check_tolerance,
    prepared,
)
from normkit.statistics.preserve import modes_kept
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results import Recalibration
from normkit.statistics.stats_layers import find, memory_of, unwrapped

__all__ = ["Recalibrate"]


def _base() -> Any:
    """Lightning's class for callbacks, of whichever of its two names the program uses."""
    names = ("lightning.pytorch", "pytorch_lightning")
    # The one that is imported already is the one whose Trainer will be used.
    for name in sorted(names, key=lambda name: name not in sys.modules):
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name).Callback
    raise ImportError(
        explain(
            "normkit.integrations.lightning needs lightning or pytorch_lightning",
            "neither",
            "pip install 'normkit[lightning]'",
        )
    )


class Recalibrate(_base()):  # type: ignore[misc]
    """Validate, and test, with population statistics: :func:`normkit.recalibrate` before each.

    The statistics are taken from the training data under the weights as they are then. They stay
    until the next training step begins, so whatever is saved in between, such as by
    ``ModelCheckpoint`` at the end of validation or of the epoch, holds the statistics that it was
    judged by. Then training's own running averages are put back, bit by bit: training goes on as
    it would without the callback. A checkpoint also keeps those, and ``fit(ckpt_path=…)`` goes on
    with them.

    The training data's loader is copied and not touched, in the middle of an epoch either; the
    random state is kept. Lightning's sanity check is left as it is. With several processes each
    looks at its share and the shares are merged.

    Args:
        batches: take the statistics from these, an iterable that can be gone over several times;
            None for the training data that the trainer has, or last had. With several processes:
            each its own share.
        samples, tolerance, layerwise, forward: as in :func:`normkit.recalibrate`. ``forward`` is
            called with the LightningModule and a batch on its device; without it the module's own
            ``forward`` is called.
        keep: leave the statistics in the model; training's averages go on from them.
        on_test: before ``trainer.test`` too.

    Attributes:
        found: what the last one gave, to be printed; None before the first.

    Raises:
        OptionError: when training begins, not after its first epoch: an argument outside its
            range, no batches to take, a module without ``forward``, or beside a callback that
            exchanges the weights for validation.
        StatisticsError: likewise, for a model without layers that remember statistics.

    >>> callback = Recalibrate(samples=5_000)    # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        batches: Iterable[Any] | None = None,
        *,
        samples: int | None = 10_000,
        tolerance: float | None = None,
        layerwise: bool = False,
        forward: Forward | None = None,
        keep: bool = False,
        on_test: bool = True,
    ) -> None:
        super().__init__()
        check_samples(samples)
        check_tolerance(tolerance)
        if batches is not None:
            check_batches(batches)
        if isinstance(batches, Iterator):
            raise OptionError(
                explain(
                    "the batches are gone over before each validation",
                    f"a {type(batches).__name__}, which can be gone over once",
                    "pass a list or a DataLoader",
                )
            )
        self.batches = batches
        self.options: dict[str, Any] = {
            "samples": samples,
            "tolerance": tolerance,
            "layerwise": layerwise,
            "forward": forward,
        }
        self.keep = keep
        self.on_test = on_test
        self.found: Recalibration | None = None
        self._exchange = Exchange()
        self._loaded: dict[str, Tensor] = {}
        self._loader: Any = None
        self._layers: list[nn.Module] = []
        self._still: list[nn.Module] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot go well before anything is trained."""
        self._loaded = {}
        if self.options["forward"] is None and type(pl_module).forward is _no_forward(pl_module):
            raise OptionError(
                explain(
                    "the module's forward is called on each batch",
                    f"a {type(pl_module).__name__}, which has none of its own",
                    "pass forward=lambda module, batch: module.net(batch[0]), or the like",
                )
            )
        for callback in trainer.callbacks:
            # They put averaged weights into the model after this one has looked at the others.
            if any(cls.__name__ == "WeightAveraging" for cls in type(callback).__mro__):
                raise OptionError(
                    explain(
                        "statistics are taken under the weights that are validated",
                        f"{type(callback).__name__}, which exchanges them for validation",
                        "leave one of the two out; normkit.recalibrate after training serves "
                        "averaged weights",
                    )
                )
        self._meet(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look whether it can be done; go on with the averages that a checkpoint kept."""
        self._meet(pl_module)
        find(unwrapped(pl_module))
        self._batches(trainer)
        write(pl_module, self._loaded)
        self._loaded = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Training goes on: with its own averages."""
        self._exchange.end(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """See which layers are held still in training; in validation none looks different."""
        self._note(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate, except for the sanity check."""
        if not trainer.sanity_checking:
            self._recalibrate(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put back, unless training goes on from here."""
        if trainer.state.fn != "fit":
            self._exchange.end(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate, if wanted."""
        if self.on_test:
            self._recalibrate(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Put back."""
        self._exchange.end(pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Put back, when the last checkpoint has been saved."""
        self._exchange.end(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put back."""
        self._exchange.end(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: training's own moments, while others are in their place."""
        return {"own": dict(self._exchange.own)} if self._exchange.own else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._loaded = dict(state_dict.get("own", {}))

    def _recalibrate(self, trainer: Any, pl_module: Any) -> None:
        batches = self._batches(trainer)
        self._exchange.end(pl_module)

        def prepare(batch: Any) -> Any:
            # As Lightning's own loops do it.
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

        # Tensors made in inference mode could not be trained on later.
        with torch.inference_mode(False), torch.no_grad(), modes_kept(pl_module):
            if not self.keep:
                self._exchange.begin(pl_module)
            for module in pl_module.modules():
                module.training = True
            for module in self._still:
                module.training = False
            with trainer.precision_plugin.val_step_context():
                self.found = recalibrate(
                    pl_module, prepared(batches, prepare), progress=False, **self.options
                )
            if not self.keep:
                self._exchange.made(pl_module)

    def _batches(self, trainer: Any) -> Iterable[Any]:
        if self.batches is not None:
            return self.batches
        # A trainer lets go of its training data when it is asked to test.
        if trainer.train_dataloader is not None:
            self._loader = trainer.train_dataloader
        loader = self._loader
        if loader is None or isinstance(loader, (list, tuple, Mapping)):
            raise OptionError(
                explain(
                    "statistics are taken from the trainer's training data, if it has one loader",
                    "none, as it has not trained"
                    if loader is None
                    else f"a {type(loader).__name__}",
                    "pass the batches to Recalibrate(batches)",
                )
            )
        found: Iterable[Any] = loader
        return found

    def _meet(self, pl_module: nn.Module) -> None:
        self._layers = [layer for layer in pl_module.modules() if memory_of(layer) is not None]
        self._note(pl_module)

    def _note(self, pl_module: nn.Module) -> None:
        if pl_module.training:
            self._still = [layer for layer in self._layers if not layer.training]


def _no_forward(pl_module: Any) -> Any:
    """``forward`` as Lightning's own class has it, which leads nowhere."""
    bases: list[Any] = [c for c in type(pl_module).__mro__ if c.__name__ == "LightningModule"]
    return bases[0].forward if bases else None
