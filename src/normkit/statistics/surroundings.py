"""Everything of a model and its surroundings that a measurement disturbs, put back afterwards."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

__all__ = ["in_evaluation", "modes_kept", "random_state_kept", "uncompiled"]


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's training or evaluation mode, whatever happens in between.

    The flags themselves, not by ``train()``, which a module may have overridden to do more.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode, and the modes that were put back afterwards."""
    with modes_kept(model):
        for module in model.modules():
            module.training = False
        yield


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put back the generators of torch (every device in use), numpy and Python.

    Loaders draw their order from them, and augmentations their choices: who looks at a model in
    the middle of a training must not change what comes after.
    """
    python, legacy = random.getstate(), np.random.get_state()
    # Not a device that was never used: asking for its state would start it.
    devices = (
        list(range(torch.cuda.device_count()))
        if torch.cuda.is_available() and torch.cuda.is_initialized()
        else []
    )
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what is compiled as it was written, so that hooks are seen."""
    # Nothing can be compiled before this module is there, and to load it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
