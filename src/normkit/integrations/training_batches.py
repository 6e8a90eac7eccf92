"""Training data of a Lightning trainer, as far as its epochs go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from normkit.errors import OptionError, message

__all__ = ["TrainingBatches"]


class TrainingBatches:
    """Finds the training data that a trainer has, or last had: it drops them when it tests."""

    def __init__(self) -> None:
        self._loader: Any = None
        self._limit: int | None = None

    def of(self, trainer: Any, pl_module: Any) -> tuple[Iterable[Any], int | None]:
        """Return the loader, and how many of its batches an epoch trains on; None for all.

        Raises:
            OptionError: there is none, or more than one.
        """
        current = trainer.train_dataloader
        loader = self._loader if current is None else current
        if loader is None or isinstance(loader, (list, tuple, Mapping)):
            raise OptionError(
                message(
                    "one loader of training data to take the statistics from",
                    "none, as the trainer has not trained"
                    if loader is None
                    else f"a {type(loader).__name__}",
                    "pass the batches to Recalibrate(batches)",
                )
            )
        if current is not None:
            self._loader, self._limit = loader, _limit(trainer, pl_module, loader)
        return loader, self._limit


def _limit(trainer: Any, pl_module: Any, loader: Any) -> int | None:
    limits: list[int] = []
    wanted = trainer.limit_train_batches  # also of overfit_batches and fast_dev_run
    if isinstance(wanted, int):
        limits.append(wanted)
    elif wanted < 1:
        limits.append(int(len(loader) * wanted))
    if trainer.max_steps > 0 and pl_module.automatic_optimization:
        # As many as there have been, if steps took more of them before.
        steps = trainer.max_steps * trainer.accumulate_grad_batches
        limits.append(max(steps, trainer.fit_loop.total_batch_idx + 1))
    return min(limits, default=None)
