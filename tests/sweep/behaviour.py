"""Layers as they are used: outputs, gradients and running statistics against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import normkit as nk
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.oracle import Oracle, doubled, unwrapped
from tests.sweep.program import Built, Program
from tests.sweep.trial import SkipTrial, attempt, compare

__all__ = [
    "FINITE", "MODES", "Behaviour", "behave", "check_behaviour", "layers", "layers_cases",
    "no_dropout", "oracle_behaviour", "tensor_of",
]  # fmt: skip

TOOL = "layers"


class Behaviour(NamedTuple):
    """What a model did with some batches."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def tensor_of(output: Any) -> Tensor:
    """Return the first tensor of an output."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict):
            output = output["logits"]
        else:
            output = output[0] if isinstance(output, (list, tuple)) else output.logits
    return output


def no_dropout(model: nn.Module) -> None:
    """Let dropout drop nothing, so that two runs can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0


def _gradients(model: nn.Module, outputs: list[Any]) -> dict[str, Tensor]:
    model.zero_grad()
    named = {k: p for k, p in model.named_parameters() if p.requires_grad}
    total: Any = 0.0
    for y in outputs:
        # Weights that differ by position: a sum of normalized values has no gradient.
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        total = total + (y.double() * weights).sum()
    if not named or not getattr(total, "requires_grad", False):
        return {}
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {k: g for k, g in zip(named, grads, strict=True) if g is not None}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {k: b.detach().clone() for k, b in model.named_buffers()}


def behave(program: Program, built: Built, training: bool) -> Behaviour:
    """Run the model itself, in one mode."""
    model = built.model
    no_dropout(model)
    model.train(training)
    outputs = [tensor_of(program.call(model, x)) for x in built.inputs if len(x)]
    inner = unwrapped(model)
    return Behaviour([y.detach() for y in outputs], _gradients(inner, outputs), _buffers(inner))


def oracle_behaviour(
    program: Program,
    built: Built,
    training: bool,
    modes: dict[str, bool] | None = None,
) -> tuple[Behaviour, float]:
    """Run the same by the oracle's formulas; and by how much rounding errors grow."""
    inner = unwrapped(built.model)
    no_dropout(inner)
    if modes is None:
        inner.train(training)
        modes = {name: module.training for name, module in inner.named_modules()}
    oracle = Oracle(inner)
    inputs = [doubled(x) for x in built.inputs]
    outputs = [tensor_of(y) for y in oracle.run(inputs, program.call, modes, gradients=True)]
    done = Behaviour([y.detach() for y in outputs], _gradients(inner, outputs), _buffers(inner))
    return done, oracle.condition


def check_behaviour(
    program: Program, tool: str, training: bool, change: Callable[[Built], Any], plainly: Any
) -> None:
    """Compare a changed model with the oracle of the program's own.

    Args:
        change: applied to the model that is looked at.
        plainly: applied to the oracle's model: what the change is to come to.
    """
    where = "in training" if training else "in evaluation"
    built = program.build()
    if any(t.is_meta for t in (*built.model.parameters(), *built.model.buffers())):
        raise SkipTrial("has no values")
    before = {name for name, _ in unwrapped(built.model).named_parameters()}
    plainly(built)
    try:
        truth, worse = oracle_behaviour(program, built, training)
    except Exception as error:
        raise SkipTrial(f"the model does not run: {type(error).__name__}") from error
    if any(word in program.model for word in ("OwnNorm", "ChannelsLast", "Prescaled", "Masked")):
        worse *= _condition(built.inputs)  # whose own divisions the oracle does not see
    built = program.build()
    change(built)
    plain = lambda: behave(program, program.build(), training)  # noqa: E731
    outcome = attempt(tool, lambda: behave(program, built, training), plain)
    if outcome.result is None:
        if program.clean and isinstance(outcome.error, nk.NormkitError):
            raise Fault(tool, f"does not run {where}", str(outcome.error))
        raise SkipTrial(outcome.reason)
    real, inner = outcome.result, unwrapped(built.model)
    for y, y_true in zip(real.outputs, truth.outputs, strict=True):
        scale = y_true.double().abs().max().clamp_min(1e-2).expand_as(y_true)
        compare(program, tool, f"output {where}", y, y_true, scale, worse**2)
    # γ and β may have become constants, or been constants.
    lost = [k for k in truth.gradients if k in dict(inner.named_parameters())]
    extra = {k for k in real.gradients if k in before}
    if not {*lost} <= real.gradients.keys() or extra - {*lost}:
        raise Fault(tool, f"other gradients {where}", str(real.gradients.keys() ^ {*lost}))
    # Gradients of weights are sums over inputs, in which large ones cancel.
    largest = max([float(x.double().abs().max()) for x in built.inputs if x.numel()] or [0.0])
    worse_still = worse**3 * (1 + largest) ** 2
    total = max([float(g.abs().max()) for g in truth.gradients.values() if g.numel()] or [0.0])
    for key in lost:
        g = truth.gradients[key]
        scale = torch.full_like(g.double(), max(total, 1e-2))
        compare(program, tool, f"gradient {where}", real.gradients[key], g, scale, worse_still)
    for key, b in truth.buffers.items():
        if key in real.buffers and b.numel():
            scale = b.double().abs().max().clamp_min(1e-2).expand_as(b)
            what = f"buffer {key.rpartition('.')[2]} {where}"
            # Banks of domains, of which there is one.
            value = real.buffers[key]
            value = value[0] if value.dim() == b.dim() + 1 else value
            compare(program, tool, what, value, b, scale, worse**2)


def _condition(inputs: list[Tensor]) -> float:
    every = torch.cat([x.double().flatten() for x in inputs] or [torch.ones(2).double()])
    return float(1 + every.abs().max() / every.std().clamp_min(1e-6)) if len(every) > 1 else 1.0


MODES = st.sampled_from([True, False])
FINITE = ("normal", "unlike", "sorted", "offset")


def layers_cases() -> st.SearchStrategy[tuple[Program, bool]]:
    """Draw a program and a mode."""
    return st.tuples(programs(kinds="ours ours ours torch", values=FINITE, small=8), MODES)


def layers(program: Program, training: bool) -> str:
    """Hold the layers themselves to their formulas."""
    if "nn.SyncBatchNorm" in program.model and training:
        raise SkipTrial("needs a GPU")
    check_behaviour(program, TOOL, training, lambda built: None, lambda built: None)
    return "trained" if training else "evaluated"
