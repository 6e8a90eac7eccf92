"""Contexts that restore what a measurement disturbs: modes, buffers, random state, shards."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normkit.nn.freezing import FrozenMixin

__all__ = [
    "evaluation_mode",
    "is_sharded",
    "overwrite",
    "preserve_buffers",
    "preserve_modes",
    "preserve_rng",
    "preserve_shards",
    "restore_values",
    "run_eagerly",
    "tensor_version",
]


@contextlib.contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training or evaluation mode on exit.

    Sets the flags themselves and not by ``train()``, which a module may have overridden to do
    more. For a frozen layer it is the mode last requested.
    """
    before = [(module, _requested_mode(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            if isinstance(module, FrozenMixin):
                module._requested_mode = training
            module.training = training and not isinstance(module, FrozenMixin)


def _requested_mode(module: nn.Module) -> bool:
    return module._requested_mode if isinstance(module, FrozenMixin) else module.training


@contextlib.contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore every buffer on exit, the tensor object and its values.

    Some modules write to theirs in evaluation mode too, such as the observers of quantization.
    """
    before = [
        (module, name, buffer, buffer.detach().clone(), tensor_version(buffer))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, values, version in before:
            module._buffers[name] = buffer
            restore_values(buffer, values, version)


def restore_values(tensor: Tensor, values: Tensor, version: int | None) -> None:
    """Restore the values that ``tensor`` had at ``version``, if it has been written since."""
    # Those of quantization, and of torch.nn.functional, are written without a new version.
    if tensor_version(tensor) != version or not (tensor.is_meta or torch.equal(tensor, values)):
        # Observers resize theirs.
        if tensor.shape != values.shape:
            tensor.resize_(values.shape)
        overwrite(tensor, values)


def overwrite(tensor: Tensor, values: Tensor) -> None:
    """Copy ``values`` into ``tensor``, which may have been made in inference mode."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)


def tensor_version(tensor: Tensor) -> int | None:
    """Return a number that changes with ``tensor``; None for inference tensors, which have none."""
    return None if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and restore their modes on exit."""
    with preserve_modes(model):
        for module in model.modules():
            module.training = False
        yield


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """Restore the generators of torch (every device in use), numpy and Python on exit.

    Loaders draw their order from them, and augmentations their choices: a measurement in the
    middle of training must not change the rest of it.
    """
    python, legacy = random.getstate(), np.random.get_state()
    # Asking for the state of a device that was never used would initialize it.
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


def is_sharded(model: nn.Module) -> bool:
    """Return True if each forward of ``model`` gathers weights from other processes.

    FSDP of both kinds, also FairScale's, and DeepSpeed's ZeRO-3.
    """
    return any(
        _is_a(module, "FSDPModule") or _is_a(module, "FullyShardedDataParallel")
        for module in model.modules()
    ) or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _is_a(module: nn.Module, name: str) -> bool:
    # By name: importing the classes takes seconds, and not every torch has both.
    return any(cls.__name__ == name for cls in type(module).__mro__)


@contextlib.contextmanager
def preserve_shards(model: nn.Module) -> Iterator[None]:
    """Drop gathered weights on exit, where ``model`` had sharded ones on entry.

    FSDP keeps those of the outermost module after a forward. An optimizer's step in between would
    not reach them or the shards, and the next forward would run on former weights.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if _is_a(module, "FSDPModule"):
                if all(hasattr(parameter, "device_mesh") for parameter in module.parameters()):
                    reshard: Any = module.reshard
                    stack.callback(reshard)
            elif _is_a(module, "FullyShardedDataParallel"):
                handle: Any = getattr(module, "_handle", None)
                if handle is not None and not _is_gathered(handle):
                    stack.callback(_reshard, module, handle)
        yield


def _is_gathered(handle: Any) -> bool:
    # It gets the attribute at its first forward, unless it shards nothing.
    return hasattr(handle.flat_param, "_full_param_padded") and not handle.needs_unshard()


def _reshard(module: Any, handle: Any) -> None:
    """Drop the gathered weights of a FullyShardedDataParallel, which has no method for it."""
    if _is_gathered(handle):
        runtime = sys.modules["torch.distributed.fsdp._runtime_utils"]
        runtime._reshard(module, handle, True)


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled modules eagerly, so that hooks are called."""
    # Nothing is compiled before this module is imported, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
