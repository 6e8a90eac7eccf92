"""``batch_statistics``, ``use_domain`` and ``average_buffers`` held to their promises."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import nn

import normkit as nk
from tests.sweep import pieces
from tests.sweep.behaviour import FINITE, no_dropout, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.oracle import Oracle, doubled, keeps_statistics, overrides_forward, unwrapped
from tests.sweep.program import Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import SkipTrial, attempt, check_words, compare

__all__ = [
    "average_buffers", "average_buffers_cases", "batch_statistics", "batch_statistics_cases",
    "use_domain", "use_domain_cases",
]  # fmt: skip

Cases = st.SearchStrategy[Any]


def _outputs(program: Program, model: nn.Module, inputs: list[Any]) -> list[Any]:
    return [tensor_of(program.call(model, x)).detach() for x in inputs if len(x)]


def _compare(program: Program, tool: str, real: list[Any], oracle: Oracle, true: list[Any]) -> None:
    for y, y_true in zip(real, true, strict=True):
        truth = tensor_of(y_true)
        scale = truth.abs().max().clamp_min(1e-2).expand_as(truth)
        compare(program, tool, "output", y, truth, scale, oracle.condition**2)


def batch_statistics_cases() -> Cases:
    """Draw a program, and whether the model is put into evaluation mode within."""
    return st.tuples(programs(values=FINITE), st.sampled_from([False, True]))


def batch_statistics(program: Program, evaluates: bool) -> str:
    """Hold ``batch_statistics``: outputs as in training without dropout, and nothing changed."""
    tool, built = "batch_statistics", program.build()
    model, inner = built.model, unwrapped(built.model)
    before, mode = snapshot(model), model.training

    def call() -> list[Any]:
        with nk.batch_statistics(model):
            if evaluates:
                model.eval()
            return _outputs(program, model, built.inputs)

    spare = program.build()
    no_dropout(spare.model)
    spare.model.train()

    def plainly() -> None:
        _outputs(program, spare.model, spare.inputs)

    outcome = attempt(tool, call, plainly)
    if evaluates and isinstance(model, nn.Module):
        model.train(mode)
    if changed := [k for k in differences(before, snapshot(model)) if ".training" not in k]:
        raise Fault(tool, "changed something", str(changed[:4]))
    if outcome.result is None:
        if program.clean and "nn.SyncBatchNorm" not in program.model:
            kept = [m for m in inner.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
            if any(keeps_statistics(m) and not overrides_forward(m) for m in kept):
                raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    if "replace_forward" in str(program):
        raise SkipTrial("a layer that is left, as a warning says")
    other = program.build()
    oracle = Oracle(other.model)
    oracle.updates = False
    # As they do in training: a layer that its model's train() holds does not.
    told = unwrapped(program.build().model).train()
    frozen = {name: not m.training for name, m in told.named_modules()}
    modes = {
        name: isinstance(m, (nn.modules.batchnorm._NormBase, pieces.Registered))
        and keeps_statistics(m)
        and not frozen[name]
        and (isinstance(m, pieces.Registered) or not overrides_forward(m))
        for name, m in oracle.model.named_modules()
    }
    true = oracle.run([doubled(x) for x in other.inputs], program.call, modes)
    _compare(program, tool, outcome.result, oracle, true)
    return "in evaluation mode" if evaluates else "as it was"


def use_domain_cases() -> Cases:
    """Draw a program with layers by domain, and a domain."""
    return st.tuples(
        programs(kinds="ours domain domain", values=FINITE), st.sampled_from([0, 1, 2, -1])
    )


def use_domain(program: Program, domain: int) -> str:
    """Hold ``use_domain``: the bank asked for in every layer, and the choice restored."""
    tool, built = "use_domain", program.build()
    if "Domain" not in program.model or "Lazy" in program.model or "meta" in str(program):
        raise SkipTrial("no layer by domain, or one that cannot run")
    model = built.model
    no_dropout(model)
    model.eval()
    before = snapshot(model)

    def call() -> list[Any]:
        with nk.use_domain(model, domain):
            return _outputs(program, model, built.inputs)

    outcome = attempt(tool, call)
    if changed := differences(before, snapshot(model)):
        raise Fault(tool, "changed something", str(changed[:4]))
    counts = [m.domains for m in model.modules() if hasattr(m, "domains")]
    fits = all(0 <= domain < count for count in counts)
    if outcome.result is None:
        if fits and program.clean:
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    if not fits:
        raise Fault(tool, "took a domain that there is not", f"{domain} of {counts}")
    other = program.build()
    for module in other.model.modules():
        if hasattr(module, "domains"):
            module._domain = domain  # type: ignore[assignment]
    oracle = Oracle(other.model)
    true = oracle.run([doubled(x) for x in other.inputs], program.call)
    _compare(program, tool, outcome.result, oracle, true)
    return "used"


def average_buffers_cases() -> Cases:
    """Draw a program."""
    return st.tuples(programs(values=("normal",)))


def average_buffers(program: Program) -> str:
    """Hold ``average_buffers``: in one process there is nothing to change, and nothing changes."""
    tool, built = "average_buffers", program.build()
    before = snapshot(built.model)
    outcome = attempt(tool, lambda: nk.average_buffers(built.model))
    changed = differences(before, snapshot(built.model))
    if changed:
        raise Fault(tool, "changed something", str(changed[:4]))
    if outcome.result is None:
        return outcome.reason
    check_words(tool, repr(outcome.result))
    if outcome.result.changed:
        raise Fault(tool, "says changed and is not", str(outcome.result.changed[:2]))
    return "merged"
