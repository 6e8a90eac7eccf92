"""The tools, what is drawn for each, and the loop that looks for programs that break one."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.sweep import (
    adapting,
    bad,
    behaviour,
    comparing,
    contexts,
    folding,
    freezing,
    measuring,
    surgery,
)
from tests.sweep.fault import Fault
from tests.sweep.trial import SkipTrial

__all__ = ["TOOLS", "Find", "Tool", "hunt"]


class Tool(NamedTuple):
    """A tool: what to draw for it, its promise, and the line that calls it."""

    cases: Callable[[], st.SearchStrategy[tuple[Any, ...]]]
    hold: Callable[..., str]
    call: str

    def text(self, case: tuple[Any, ...]) -> str:
        """Return a case as a program."""
        program, *options = case
        call = options[0][1] if self.hold is bad.bad else self.call.format(*options)
        return f"{program}\n{call}"


TOOLS = {
    "recalibrate": Tool(
        measuring.recalibrate_cases, measuring.recalibrate,
        "print(nk.recalibrate(model, batches, **{}))",
    ),
    "consistency": Tool(
        comparing.consistency_cases, comparing.consistency,
        "print(nk.consistency(model, batches, samples={}))",
    ),
    "freeze": Tool(freezing.freeze_cases, freezing.freeze, "print(nk.freeze(model, **{}))"),
    "unfreeze": Tool(
        freezing.unfreeze_cases, freezing.unfreeze,
        "model.train(); nk.freeze(model, **{}); print(nk.unfreeze(model))",
    ),
    "convert": Tool(
        surgery.convert_cases, surgery.convert, "print(nk.convert(model, {!r}))  # training: {}"
    ),
    "accelerate": Tool(
        surgery.accelerate_cases, surgery.accelerate, "print(nk.accelerate(model))  # training: {}"
    ),
    "save_memory": Tool(
        surgery.save_memory_cases, surgery.save_memory,
        "nk.accelerate(model); print(nk.save_memory(model, blocks={}))  # training: {}",
    ),
    "fold": Tool(
        folding.fold_cases, folding.fold,
        "model.eval(); print(nk.fold(model, inputs[0]))",
    ),
    "scale_momentum": Tool(
        surgery.scale_momentum_cases, surgery.scale_momentum,
        "print(nk.scale_momentum(model, {}))",
    ),
    "average_buffers": Tool(
        contexts.average_buffers_cases, contexts.average_buffers,
        "print(nk.average_buffers(model))",
    ),
    "batch_statistics": Tool(
        contexts.batch_statistics_cases, contexts.batch_statistics,
        "with nk.batch_statistics(model): model(inputs[0])  # model.eval() within: {}",
    ),
    "adapt": Tool(
        adapting.adapt_cases, adapting.adapt,
        "with nk.adapt(model, {}, memory={}): model(inputs[0])",
    ),
    "use_domain": Tool(
        contexts.use_domain_cases, contexts.use_domain,
        "with nk.use_domain(model, {}): model.eval()(inputs[0])",
    ),
    "layers": Tool(
        behaviour.layers_cases, behaviour.layers, "model.train({})(inputs[0])"
    ),
    "bad input": Tool(bad.bad_cases, bad.bad, ""),
}  # fmt: skip

Key = tuple[str, str, str]


class Find(NamedTuple):
    """A fault and the smallest program that shows it."""

    fault: Fault
    text: str
    examples: int


def hunt(
    name: str,
    examples: int,
    known: set[Key],
    counts: Counter[str],
    number: int | None = None,
    shrinks: bool = True,
) -> Find | None:
    """Look for a fault of one tool that is not known yet, and shrink its program.

    Args:
        examples: how many programs to draw.
        known: keys of faults not to stop at.
        counts: outcomes, counted on.
        number: seed; None for the same programs each time.
    """
    tool, find, drawn = TOOLS[name], None, 0

    def run(case: tuple[Any, ...]) -> None:
        nonlocal find, drawn
        drawn += find is None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts[f"{name}: {tool.hold(*case)}"] += 1
        except SkipTrial as reason:
            counts[f"{name}: said nothing: {str(reason)[:60]}"] += 1
        except Exception as error:
            fault = error if isinstance(error, Fault) else _of_the_sweep(name, error)
            counts[f"{name}: faults, and those met while shrinking"] += 1
            if fault.key in known or (find is not None and fault.key != find.fault.key):
                return
            find = Find(fault, tool.text(case), drawn)
            raise fault from error

    test = settings(
        max_examples=examples, database=None, deadline=None, derandomize=number is None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
    )(given(tool.cases())(run))  # fmt: skip
    try:
        (test if number is None else seed(number)(test))()
    except Fault:
        pass
    except Exception as error:
        if find is None:
            raise
        counts[f"{name}: {type(error).__name__} of hypothesis"] += 1
    return find


def _of_the_sweep(name: str, error: Exception) -> Fault:
    """Return an error of the sweep's own code as a fault, so that a long run goes on."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename.rpartition('/')[2]}:{frame.name}"
    return Fault(name, f"the sweep raised {type(error).__name__} in {where}", str(error)[:300])
