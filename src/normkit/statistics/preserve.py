"""Everything of a model and its surroundings that a measurement disturbs, put back afterwards."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from normkit.nn.held import Held

__all__ = [
    "apart", "buffers_kept", "in_evaluation", "modes_kept", "random_state_kept", "uncompiled",
    "version_of",
]  # fmt: skip


def apart(batches: Iterable[Any]) -> Iterable[Any]:
    """Of a DataLoader, one that gives what it would give next, and leaves it alone.

    A loader may be in the middle of an epoch: to iterate over it once more draws from its own
    generator, and where its workers persist, starts the epoch over. Other iterables as they are.

    >>> generator = torch.Generator().manual_seed(0)
    >>> loader = DataLoader(range(100), batch_size=50, shuffle=True, generator=generator)
    >>> looked = [next(iter(apart(loader))) for _ in range(2)]
    >>> torch.equal(looked[0], looked[1]), torch.equal(looked[0], next(iter(loader)))
    (True, True)
    """
    if not isinstance(batches, DataLoader):
        return batches
    loader = copy.copy(batches)
    # Past the loader's own guard, which forbids to exchange its parts.
    state = loader.__dict__
    state.update(_iterator=None, persistent_workers=False)
    parts = {name: state[name] for name in ("generator", "sampler", "batch_sampler")}
    # A sampler that cannot be copied is shared, as it would be without us.
    with contextlib.suppress(Exception):
        # All at once, so that what shares a generator goes on sharing its copy; and not the data,
        # to which samplers refer.
        state.update(copy.deepcopy(parts, {id(loader.dataset): loader.dataset}))
    return loader


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's training or evaluation mode, whatever happens in between.

    The flags themselves, not by ``train()``, which a module may have overridden to do more. Of a
    frozen layer that is the mode it would be in.
    """
    before = [(module, _asked(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            if isinstance(module, Held):
                module._mode_asked = training
            module.training = training and not isinstance(module, Held)


def _asked(module: nn.Module) -> bool:
    return module._mode_asked if isinstance(module, Held) else module.training


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back every buffer, the tensor and its values, whatever happens in between.

    Some modules write into theirs in evaluation mode too, such as the observers of quantization.
    """
    before = [
        (module, name, buffer, buffer.detach().clone(), version_of(buffer))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, copied, was in before:
                module._buffers[name] = buffer
                # Those of quantization are written without being counted.
                if version_of(buffer) != was or not torch.equal(buffer, copied):
                    # Observers give theirs another shape.
                    if buffer.shape != copied.shape:
                        buffer.resize_(copied.shape)
                    buffer.copy_(copied)


def version_of(tensor: Tensor) -> int | None:
    """What changes when ``tensor`` does; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version


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
