"""``adapt`` held to its promises: the batch's moments without a prior, nothing changed after."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import normkit as nk
from tests.sweep.behaviour import FINITE, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.program import Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import Outcome, SkipTrial, attempt, compare

__all__ = ["adapt", "adapt_cases"]

RIGHT = ("frozen", "constant by construction", "kept in evaluation mode")
"""Reasons to leave a layer that ``batch_statistics`` leaves too."""


def adapt_cases() -> st.SearchStrategy[Any]:
    """Draw a program, a prior, a memory, and whether the model trains γ and β (``tent``)."""
    return st.tuples(
        programs(values=FINITE), st.sampled_from([0, 0, 16]), st.sampled_from([0, 0, 100])
    )


def adapt(program: Program, prior: float, memory: float) -> str:
    """Hold ``adapt``: without prior and memory ``batch_statistics``, and all restored exactly."""
    tool, built = "adapt", program.build()
    model = built.model
    before = snapshot(model)
    skipped: list[str] = []

    def call() -> list[Tensor]:
        with nk.adapt(model, prior, memory=memory) as handle:
            skipped.extend(row.why for row in handle.skipped)
            return _outputs(program, model, built.inputs)

    spare = program.build()

    def plainly() -> None:
        with torch.no_grad():
            spare.model.eval()
            _outputs(program, spare.model, spare.inputs)

    outcome = attempt(tool, call, plainly)
    if changed := differences(before, snapshot(model)):
        raise Fault(tool, "changed something", str(changed[:4]))
    if outcome.result is None:
        expected = _by_batch_statistics(program) if program.clean else Outcome()
        if expected.result is not None and not prior and "one value" not in str(outcome.error):
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    if prior or memory:
        finite = all(y.isfinite().all() for y in outcome.result)
        if not finite and prior and _finite(program):
            raise Fault(tool, "output not finite", f"prior {prior}, memory {memory}")
        return "mixed"
    if "Ghost" in program.model or any(not why.startswith(RIGHT) for why in skipped):
        raise SkipTrial("batch statistics are of parts, or of layers that are left")
    expected = _by_batch_statistics(program)
    if expected.result is None:
        return "no batch statistics to compare with"
    for y, truth in zip(outcome.result, expected.result, strict=True):
        truth = truth.double()
        scale = truth.abs().max().clamp_min(1e-2).expand_as(truth) if truth.numel() else truth
        compare(program, tool, "output", y, truth, scale, 100.0)
    return "as batch statistics"


def _outputs(program: Program, model: nn.Module, inputs: list[Any]) -> list[Tensor]:
    return [tensor_of(program.call(model, x)).detach() for x in inputs if len(x)]


def _by_batch_statistics(program: Program) -> Outcome:
    other = program.build()

    def call() -> list[Tensor]:
        with nk.batch_statistics(other.model):
            return _outputs(program, other.model, other.inputs)

    return attempt("batch_statistics", call, call)


def _finite(program: Program) -> bool:
    """Return True if the model's own evaluation of the inputs is finite."""
    other = program.build()
    other.model.eval()
    return all(y.isfinite().all() for y in _outputs(program, other.model, other.inputs))
