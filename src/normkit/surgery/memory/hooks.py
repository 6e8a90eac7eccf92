"""Hooks of a model's forward pass that switch the recording on and off."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import nn

from normkit.kernels.modes import transformed
from normkit.kernels.outputs import listening
from normkit.surgery.memory.recorder import Recorder, top_hooks

__all__ = ["Enter", "is_active", "leave"]


_hooks_allowed = getattr(torch._C._autograd, "_saved_tensors_hooks_is_enabled", lambda: True)


class _Frame(NamedTuple):
    module: nn.Module
    recorder: Recorder | None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.frames: list[_Frame] = []


_thread = _Thread()


class Enter:
    """Begin to record, before a model's forward pass; copied and pickled with the model.

    Not where nothing is saved, where something traces or transforms the call, and where other
    hooks on saved tensors are active: those of a checkpoint around the model count what is saved.
    """

    def __init__(self, blocks: bool) -> None:
        self.blocks = blocks

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        recorder = None
        if (
            torch.is_grad_enabled()
            and not transformed()
            and _hooks_allowed()
            and top_hooks() is None
        ):
            recorder = Recorder(self.blocks)
            recorder.hooks.__enter__()
            listening.listener = recorder
        _thread.frames.append(_Frame(module, recorder))


def leave(module: nn.Module, args: Any, output: Any) -> None:
    """Stop recording after a forward pass, also one that raised."""
    frames = _thread.frames
    if torch.compiler.is_compiling() or not frames or frames[-1].module is not module:
        return
    recorder = frames.pop().recorder
    if recorder is not None:
        listening.listener = None
        recorder.hooks.__exit__()
        recorder.close()


def is_active(module: nn.Module) -> bool:
    """Return whether a model's forward pass is recorded already."""
    return any(isinstance(hook, Enter) for hook in module._forward_pre_hooks.values())
