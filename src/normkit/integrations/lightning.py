"""Callbacks for PyTorch Lightning: validation with population statistics, and a diagnosis.

Needs ``lightning`` or ``pytorch_lightning``, which ``normkit[lightning]`` installs; nothing else
in this package imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, message
from normkit.integrations.base_lightning import callback_class, check_forward, prepare_batches
from normkit.integrations.doctor_lightning import DoctorCallback
from normkit.integrations.stats_swap import StatsSwap, write_stats
from normkit.integrations.training_batches import TrainingBatches
from normkit.nn.stats_spec import stats_spec
from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.map_batches import map_batches
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import (
    check_batches,
    check_function,
    check_samples,
    check_tolerance,
)
from normkit.statistics.layers.find import find_norm_layers, unwrap
from normkit.statistics.layers.preserve import is_sharded, preserve_modes
from normkit.statistics.recalibrate import recalibrate
from normkit.statistics.results.recalibration import Recalibration

__all__ = ["DoctorCallback", "Recalibrate"]


class Recalibrate(callback_class()):  # type: ignore[misc]
    """Validate and test with population statistics: :func:`normkit.recalibrate` before each.

    The statistics are taken from the training data under the current weights. They stay until the
    next training step begins, so what is saved in between, such as by ``ModelCheckpoint`` at the
    end of validation or of the epoch, contains the statistics that it was validated with. Then
    training's running averages are restored bit for bit: training continues as it would without
    the callback. A checkpoint contains those too, and ``fit(ckpt_path=…)`` resumes with them.

    The training data's loader is copied, so an epoch is not disturbed; the random state is
    restored. No more batches are taken than an epoch trains on, under ``limit_train_batches``,
    ``overfit_batches``, ``fast_dev_run`` and ``max_steps``. Lightning's sanity check is not
    affected. With several processes each measures its share and the shares are merged.

    Args:
        batches: take the statistics from these, a re-iterable; None for the training data that
            the trainer has, or last had. With several processes: each its own share.
        samples, tolerance, layerwise, forward: as in :func:`normkit.recalibrate`. ``forward`` is
            called with the LightningModule and a batch on its device; without it the module's own
            ``forward`` is called.
        keep: leave the statistics in the model; training's averages continue from them.
        on_test: before ``trainer.test`` too.

    Attributes:
        result: the latest :class:`normkit.statistics.Recalibration`; None before the first.

    Raises:
        OptionError: when training begins, not after its first epoch: an argument outside its
            range, no batches to take, a module without ``forward``, or a callback that swaps the
            weights for validation.
        StatisticsError: likewise, for a model without layers that keep running statistics.
        DataError: likewise, for validation within epochs over training data whose position cannot
            be copied, as of a generator.

    >>> callback = Recalibrate(samples=5_000)    # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        batches: Iterable[Any] | None = None,
        *,
        samples: int | None = 10_000,
        tolerance: float | None = None,
        layerwise: bool | None = None,
        forward: Forward | None = None,
        keep: bool = False,
        on_test: bool = True,
    ) -> None:
        super().__init__()
        check_samples(samples)
        check_tolerance(tolerance)
        check_function(forward, "forward", "forward(model, batch)")
        if batches is not None:
            check_batches(batches)
        if isinstance(batches, Iterator):
            raise OptionError(
                message(
                    "re-iterable batches, for one pass before each validation",
                    f"a {type(batches).__name__}, which can be iterated over once",
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
        self.result: Recalibration | None = None
        self._swap = StatsSwap()
        self._loaded: dict[str, Tensor] = {}
        self._training = TrainingBatches()
        self._layers: list[nn.Module] = []
        self._frozen: list[nn.Module] = []

    @property
    def found(self) -> Recalibration | None:
        """Former name of ``result``."""
        return self.result

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise early, before anything is trained, if the callback cannot work."""
        self._loaded = {}
        check_forward(pl_module, self.options["forward"])
        for callback in trainer.callbacks:
            # They swap in averaged weights after this callback has measured the others.
            if any(cls.__name__ == "WeightAveraging" for cls in type(callback).__mro__):
                raise OptionError(
                    message(
                        "no callback that swaps the weights for validation",
                        f"{type(callback).__name__}",
                        "drop one of the two; normkit.recalibrate after training handles "
                        "averaged weights",
                    )
                )
        self._find_layers(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that batches and layers exist, and restore averages from a checkpoint."""
        self._find_layers(pl_module)
        find_norm_layers(unwrap(pl_module))
        batches, _ = self._batches(trainer, pl_module)
        interval = trainer.val_check_batch
        if interval is None or interval < trainer.num_training_batches:
            # Raises if that is not possible in the middle of an epoch.
            DetachedLoader(batches).copy()
        write_stats(pl_module, self._loaded)
        self._loaded = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restore training's averages."""
        self._swap.restore(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Note which layers are frozen in training, as validation does not show it."""
        self._note_frozen(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate, except for the sanity check."""
        if not trainer.sanity_checking:
            self._recalibrate(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore training's averages, unless ``fit`` continues."""
        if trainer.state.fn != "fit":
            self._swap.restore(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate, if ``on_test``."""
        if self.on_test:
            self._recalibrate(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore training's averages."""
        self._swap.restore(pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore training's averages, after the last checkpoint."""
        self._swap.restore(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore training's averages."""
        self._swap.restore(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return training's averages for a checkpoint, while others replace them."""
        return {"own": dict(self._swap.saved)} if self._swap.saved else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load training's averages from a checkpoint."""
        self._loaded = dict(state_dict.get("own", {}))

    def _recalibrate(self, trainer: Any, pl_module: Any) -> None:
        batches, limit = self._batches(trainer, pl_module)
        self._swap.restore(pl_module)

        # FullyShardedDataParallel gathers the weights in the forward of a module around this one.
        wrapper = trainer.strategy.model
        model = wrapper if isinstance(wrapper, nn.Module) and is_sharded(wrapper) else pl_module
        # Tensors made in inference mode could not be trained on later.
        with torch.inference_mode(False), torch.no_grad(), preserve_modes(pl_module):
            if not self.keep:
                self._swap.save(pl_module)
            for module in pl_module.modules():
                module.training = True
            for module in self._frozen:
                module.training = False
            with trainer.precision_plugin.val_step_context():
                self.result = recalibrate(
                    model,
                    map_batches(prepare_batches(trainer, pl_module), batches, limit),
                    progress=False,
                    **self.options,
                )
            if not self.keep:
                self._swap.applied(pl_module)

    def _batches(self, trainer: Any, pl_module: Any) -> tuple[Iterable[Any], int | None]:
        if self.batches is not None:
            return self.batches, None
        return self._training.of(trainer, pl_module)

    def _find_layers(self, pl_module: nn.Module) -> None:
        self._layers = [layer for layer in pl_module.modules() if stats_spec(layer) is not None]
        self._note_frozen(pl_module)

    def _note_frozen(self, pl_module: nn.Module) -> None:
        if pl_module.training:
            self._frozen = [layer for layer in self._layers if not layer.training]
