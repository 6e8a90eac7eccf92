"""``fold`` held to its promise: outputs as before on any input, each layer folded or named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import normkit as nk
from tests.sweep.behaviour import FINITE, no_dropout, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.handles import Cases, is_named, names_in, use_handle
from tests.sweep.oracle import keeps_statistics, unwrapped
from tests.sweep.program import Built, Program
from tests.sweep.trial import SkipTrial, attempt, compare

__all__ = ["fold", "fold_cases"]


def fold_cases() -> Cases:
    """Draw a program."""
    return programs(kinds="torch torch ours foreign", values=FINITE).map(lambda one: (one,))


def fold(program: Program) -> str:
    """Hold ``fold``: on every input as before, up to rounding; undo exact; no layer forgotten."""
    tool, built = "fold", program.build()
    model = built.model
    no_dropout(model)
    model.eval()
    example = next((x for x in built.inputs if len(x)), None)
    if example is None:
        raise SkipTrial("no input")

    def forward(model: Any, x: Any) -> Any:
        return tensor_of(program.call(model, x))

    plain = attempt(tool, lambda: _outputs(program, built), lambda: _outputs(program, built))
    if plain.result is None:
        raise SkipTrial("the model does not run")
    outcome = use_handle(tool, built, lambda: nk.fold(model, example, forward=forward))
    if outcome.result is None:
        if program.clean and not _is_wrapped(model):
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    changed, skipped = names_in(outcome.result)
    twin = program.build().model
    for name, layer in twin.named_modules():
        keeps = layer is unwrapped(layer) and keeps_statistics(layer)
        if keeps and not is_named(twin, name, changed | skipped.keys()):
            raise Fault(tool, "neither folded nor named", f"{type(layer).__name__} {name!r}")
    for before, after in zip(plain.result, _outputs(program, built), strict=True):
        scale = before.abs().max().clamp_min(1e-30)
        compare(program, tool, "output", after, before, scale, 1.0)
    return f"folded {min(len(changed), 3)}, left {min(len(skipped), 3)}"


def _is_wrapped(model: Any) -> bool:
    compiled = any(m._compiled_call_impl is not None for m in model.modules())
    return compiled or unwrapped(model) is not model


def _outputs(program: Program, built: Built) -> list[Tensor]:
    with torch.no_grad():
        return [tensor_of(program.call(built.model, x)).clone() for x in built.inputs if len(x)]
