"""Callback for PyTorch Lightning: a diagnosis when training begins, and one when it ends.

Needs ``lightning`` or ``pytorch_lightning``, which ``normkit[lightning]`` installs; nothing else
in this package imports it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from normkit.doctor.diagnose import diagnose
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import SEVERITIES
from normkit.doctor.norms import find_norms, have_trained
from normkit.errors import OptionError
from normkit.integrations.base_lightning import callback_class, check_forward, prepare_batches
from normkit.integrations.training_batches import TrainingBatches
from normkit.statistics.batches.map_batches import map_batches
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import check_function, check_samples
from normkit.statistics.layers.find import unwrap
from normkit.statistics.outputs.losses import Loss

__all__ = ["DoctorCallback"]


class DoctorCallback(callback_class()):  # type: ignore[misc]
    """Diagnose the module's normalization: :func:`normkit.diagnose` before and after training.

    When training begins, behind the sanity check, the module and its optimizer are examined, and
    of a module that is trained already its statistics on the training data too. When training
    ends, all is: the statistics on the training data, and on the validation data what mending
    brings. Both are printed; the second is logged as ``doctor/score``, ``doctor/gain`` with its
    interval, and the number of findings of each severity.

    Training is bitwise the same as without the callback: loaders are copied, the random state is
    restored, and nothing in the module changes. A diagnosis that fails is a warning.

    Args:
        samples, forward, loss: as in :func:`normkit.diagnose`. ``forward`` is called with the
            LightningModule and a batch on its device; without it the module's own ``forward`` is.
        show: print.

    Attributes:
        diagnosis: the latest :class:`normkit.doctor.Diagnosis`; None before the first.

    Raises:
        OptionError: when training begins: an argument outside its range, or a module without
            ``forward``.

    With several processes nothing is examined, as each sees a share of the data: run
    ``normkit doctor`` on the checkpoint.

    >>> callback = DoctorCallback(samples=5_000)    # Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        *,
        samples: int | None = 10_000,
        forward: Forward | None = None,
        loss: Loss | None = None,
        show: bool = True,
    ) -> None:
        super().__init__()
        check_samples(samples)
        check_function(forward, "forward", "forward(model, batch)")
        check_function(loss, "loss", "loss(output, batch)")
        self.options: dict[str, Any] = {"samples": samples, "forward": forward, "loss": loss}
        self.show = show
        self.diagnosis: Diagnosis | None = None
        self._training = TrainingBatches()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise early if the callback cannot work."""
        check_forward(pl_module, self.options["forward"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Examine the module, and its statistics if it is trained already."""
        trained = have_trained(find_norms(unwrap(pl_module)))
        self._diagnose("before training", trainer, pl_module, trained, False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Examine all there is, and log what mending would bring."""
        done = self._diagnose("after training", trainer, pl_module, True, True)
        if done is not None:
            _log(trainer, done)

    def _diagnose(
        self, when: str, trainer: Any, pl_module: Any, training: bool, evaluation: bool
    ) -> Diagnosis | None:
        if trainer.world_size > 1:
            if trainer.is_global_zero:
                warnings.warn(
                    "DoctorCallback examines nothing in several processes; run normkit doctor on "
                    "the checkpoint",
                    stacklevel=2,
                )
            return None
        optimizers = trainer.optimizers
        try:
            train = self._train(trainer, pl_module) if training else None
            with torch.inference_mode(False), trainer.precision_plugin.val_step_context():
                self.diagnosis = diagnose(
                    pl_module,
                    train,
                    _validation(trainer, pl_module) if evaluation else None,
                    optimizer=optimizers[0] if len(optimizers) == 1 else None,
                    **self.options,
                )
        except Exception as error:  # hours of training are worth more than a diagnosis
            warnings.warn(f"DoctorCallback: {type(error).__name__}: {error}", stacklevel=2)
            return None
        if self.show:
            print(f"\nnormkit doctor, {when}: {self.diagnosis!r}\n")
        return self.diagnosis

    def _train(self, trainer: Any, pl_module: Any) -> Iterable[Any] | None:
        try:
            batches, limit = self._training.of(trainer, pl_module)
        except OptionError:  # several loaders
            return None
        return map_batches(prepare_batches(trainer, pl_module), batches, limit)


def _validation(trainer: Any, pl_module: Any) -> Iterable[Any] | None:
    """Return the validation batches, where there is one loader of them."""
    loader = trainer.val_dataloaders
    counts = trainer.num_val_batches
    if loader is None or isinstance(loader, (list, tuple, Mapping)) or len(counts) != 1:
        return None
    (count,) = counts
    limit = int(count) if count != float("inf") else None
    if limit == 0:
        return None
    return map_batches(prepare_batches(trainer, pl_module), loader, limit)


def _log(trainer: Any, diagnosis: Diagnosis) -> None:
    figures = {
        f"doctor/{severity}s": float(sum(one.severity == severity for one in diagnosis.findings))
        for severity in SEVERITIES
    }
    if diagnosis.score is not None:
        figures["doctor/score"] = diagnosis.score
    if diagnosis.gain is not None:
        figures["doctor/gain"] = diagnosis.gain.change
        figures["doctor/gain_low"] = diagnosis.gain.low
        figures["doctor/gain_high"] = diagnosis.gain.high
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
