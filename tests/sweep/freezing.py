"""``freeze`` and ``unfreeze`` held to their promises."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.parameter import is_lazy

import normkit as nk
from tests.sweep.behaviour import FINITE, no_dropout, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.handles import Cases, is_named, names_in, use_handle
from tests.sweep.oracle import keeps_statistics
from tests.sweep.program import Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import SkipTrial, attempt

__all__ = ["freeze", "freeze_cases", "unfreeze", "unfreeze_cases"]


def freeze_cases() -> Cases:
    """Draw a program and the options of ``freeze``."""
    options = st.sampled_from([{}, {"statistics": False}, {"affine": False}])
    return st.tuples(programs(values=(*FINITE, "nan")), options)


def _steps(program: Program, model: nn.Module, inputs: list[Any]) -> None:
    """Take two steps of SGD."""
    no_dropout(model)
    model.train()
    for _ in range(2):
        model.zero_grad()
        parameters = [p for p in model.parameters() if p.requires_grad]
        total: Any = 0.0
        for x in inputs:
            if len(x):
                total = total + tensor_of(program.call(model, x)).double().square().sum()
        if parameters and getattr(total, "requires_grad", False):
            total.backward()
            with torch.no_grad():
                for p in parameters:
                    if p.grad is not None:
                        p -= 0.1 * p.grad


def _state(layer: nn.Module) -> dict[str, Any]:
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {k: t.detach().clone() for k, t in tensors.items() if not is_lazy(t) and not t.is_meta}


def freeze(program: Program, options: dict[str, bool]) -> str:
    """Hold ``freeze``: what it says it froze stays through two steps, the rest is named."""
    tool, built = "freeze", program.build()
    model = built.model
    outcome = use_handle(tool, built, lambda: nk.freeze(model, **options), (" grad",))
    if outcome.result is None:
        if program.clean:
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    changed, skipped = names_in(outcome.result)
    wants_stats = options.get("statistics", True)
    wants_affine = options.get("affine", True)
    before = {name: _state(layer) for name, layer in model.named_modules()}
    try:
        _steps(program, model, built.inputs)
    except Exception as error:
        raise SkipTrial(f"cannot be trained: {type(error).__name__}") from error
    for name, layer in model.named_modules():
        if not keeps_statistics(layer) or isinstance(layer, nk.FrozenBatchNorm2d):
            continue
        tracks = getattr(layer, "track_running_stats", True)
        if not tracks and name not in changed:
            continue
        if not is_named(model, name, changed | skipped.keys()):
            _check_held(tool, name, layer, before[name], wants_stats, wants_affine, "unnamed")
        if name in changed:
            stats = wants_stats and name not in skipped
            affine = wants_affine and name not in skipped
            _check_held(tool, name, layer, before[name], stats, affine, "frozen")
    return f"froze {min(len(changed), 3)}, left {min(len(skipped), 3)}"


def _check_held(
    tool: str, name: str, layer: Any, before: dict[str, Any], stats: bool, affine: bool, how: str
) -> None:
    """Raise if a layer's tensors moved."""
    buffers = {key for key, _ in layer.named_buffers()}
    for key, value in _state(layer).items():
        wanted = stats if key in buffers else affine
        same = torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0))
        if wanted and key in before and not same:
            raise Fault(tool, f"a layer {how} moved", f"{key} of {name!r}")


def unfreeze_cases() -> Cases:
    """Draw a program and the options of both."""
    return freeze_cases()


def unfreeze(program: Program, options: dict[str, bool]) -> str:
    """Hold ``unfreeze``: after ``freeze`` the model is as before, but for ``requires_grad``."""
    tool, built = "unfreeze", program.build()
    model = built.model
    model.train()
    before = snapshot(model)
    froze = attempt("freeze", lambda: nk.freeze(model, **options))
    if froze.result is None:
        raise SkipTrial(froze.reason)
    outcome = use_handle(tool, built, lambda: nk.unfreeze(model), (" grad",))
    if outcome.result is None:
        raise Fault(tool, "refused what freeze took", str(outcome.error))
    # Layers frozen before, by freeze or by construction, learn as well afterwards.
    own = "freeze(" in str(program) or "Frozen" in str(program)
    changed = [
        key
        for key in differences(before, snapshot(model))
        if not own and not key.endswith((" grad", " requires_grad"))
    ]
    if changed:
        raise Fault(tool, "does not undo freeze", str(changed[:4]))
    for name, layer in model.named_modules():
        if name in names_in(froze.result)[0] and not own:
            for key, parameter in layer.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    raise Fault(tool, "left γ or β frozen", f"{key} of {name!r}")
    return "unfroze"
