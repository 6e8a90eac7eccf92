"""Hooks of a model's forward pass that switch the recording on and off."""

from __future__ import annotations

import sys
import threading
import warnings
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from normkit.compat import allows_saved_tensor_hooks, exporting
from normkit.kernels.modes import transformed
from normkit.kernels.outputs import listen
from normkit.surgery.memory.recorder import Recorder, top_hooks

__all__ = ["COMPILED", "Enter", "active", "is_compiled", "leave", "stop"]

COMPILED = (
    "torch.compile decides itself what it keeps: set "
    "torch._functorch.config.activation_memory_budget, such as 0.5, before it compiles"
)


class _Call(NamedTuple):
    module: nn.Module
    recorder: Recorder | None
    frame: FrameType


class _Thread(threading.local):
    def __init__(self) -> None:
        self.calls: list[_Call] = []


_thread = _Thread()


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` was asked to compile ``module``, or it stands for one."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _warn_compiled() -> None:
    warnings.warn(f"save_memory saves nothing in what is compiled: {COMPILED}", stacklevel=1)


# What torch.compiler.assume_constant_result does, without importing the compiler: Dynamo calls the
# function once while it traces, and records no call.
_warn_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Enter:
    """Begin to record, before a model's forward pass; copied and pickled with the model.

    Not where nothing is saved, where something traces or transforms the call, and where other
    hooks on saved tensors are active: those of a checkpoint around the model count what is saved.
    """

    def __init__(self, blocks: bool) -> None:
        self.blocks = blocks
        self._warned = False

    def __call__(self, module: nn.Module, args: Any) -> None:
        saves = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            if saves and not exporting():
                _warn_compiled()
            return
        if saves and not self._warned and any(map(is_compiled, module.modules())):
            self._warned = True
            _warn_compiled()
        _end_interrupted()
        recorder = None
        if saves and not transformed() and allows_saved_tensor_hooks() and top_hooks() is None:
            frame = sys._getframe(1)
            recorder = Recorder(self.blocks, lambda: _runs(frame))
            recorder.hooks.__enter__()
            listen(recorder)
        _thread.calls.append(_Call(module, recorder, sys._getframe(1)))


def leave(module: nn.Module, args: Any, output: Any) -> None:
    """Stop recording after a forward pass, also one that raised."""
    calls = _thread.calls
    if not torch.compiler.is_compiling() and calls and calls[-1].module is module:
        _end(calls.pop())


def stop(module: nn.Module) -> None:
    """Stop recording ``module`` in this thread, also what an interrupt has left."""
    _end_interrupted()
    calls = _thread.calls
    if calls and calls[-1].module is module:
        recorder = calls[-1].recorder
        if recorder is None or recorder.active():
            _end(calls.pop())


def _end(call: _Call) -> None:
    if call.recorder is not None:
        listen(None)
        call.recorder.hooks.__exit__()
        call.recorder.close()


def _end_interrupted() -> None:
    """End calls that a KeyboardInterrupt has left, after which PyTorch calls no hooks."""
    calls = _thread.calls
    while calls and not _runs(calls[-1].frame):
        recorder = calls[-1].recorder
        if recorder is not None and not recorder.active():
            return  # within hooks of somebody else's, which are to be removed first
        _end(calls.pop())


def _runs(frame: FrameType) -> bool:
    """Return whether ``frame`` is among those that run in this thread."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not frame:
        running = running.f_back
    return running is not None


def active(module: nn.Module) -> Enter | None:
    """Return the hook of a model whose forward pass is recorded already."""
    hooks = module._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, Enter)), None)
