"""Shared by the callbacks for PyTorch Lightning: its base class, and batches as its loops see them.

Needs ``lightning`` or ``pytorch_lightning``, which ``normkit[lightning]`` installs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from normkit.errors import OptionError, how_to_install, message

__all__ = ["callback_class", "check_forward", "prepare_batches"]


def callback_class() -> Any:
    """Return Lightning's class for callbacks, under the one of its two names in use."""
    names = ("lightning.pytorch", "pytorch_lightning")
    # The one that is already imported is the one whose Trainer will be used.
    for name in sorted(names, key=lambda name: name not in sys.modules):
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name).Callback
    raise ImportError(
        message(
            "lightning or pytorch_lightning to be installed",
            "neither",
            how_to_install("lightning"),
        )
    )


def check_forward(pl_module: Any, forward: object) -> None:
    """Raise unless there is a function to run the module with.

    Raises:
        OptionError: the module has no ``forward`` of its own, and ``forward`` is None.
    """
    bases: list[Any] = [c for c in type(pl_module).__mro__ if c.__name__ == "LightningModule"]
    if forward is None and bases and type(pl_module).forward is bases[0].forward:
        raise OptionError(
            message(
                "a module with a forward, to call on each batch",
                f"a {type(pl_module).__name__} without one",
                "pass forward=lambda module, batch: module.net(batch[0]), or the like",
            )
        )


def prepare_batches(trainer: Any, pl_module: Any) -> Callable[[Any], Any]:
    """Return a function that does to a batch what Lightning's own loops do before a step."""

    def prepare(batch: Any) -> Any:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return prepare
