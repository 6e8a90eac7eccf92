"""``consistency`` held to its promise: what all data together say, and nothing changed."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import normkit as nk
from tests.sweep import pieces
from tests.sweep.behaviour import FINITE, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.measuring import plainly, roles
from tests.sweep.oracle import Oracle, doubled, moments_of
from tests.sweep.program import Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import attempt, check_words

__all__ = ["consistency", "consistency_cases"]

TOOL = "consistency"


def consistency_cases() -> st.SearchStrategy[Any]:
    """Draw a program and ``samples``."""
    finite = (*FINITE, "constant")
    drawn = st.one_of(programs(values=finite, flat=True), programs(values=(*finite, "nan")))
    return st.tuples(drawn, st.sampled_from([2000, None, 5]))


def consistency(program: Program, samples: int | None) -> str:
    """Hold ``consistency`` to its promise; return what happened."""
    built = program.build()
    expected = roles(built, program.build())
    before = snapshot(built.model)
    outcome = attempt(
        TOOL,
        lambda: nk.consistency(built.model, built.batches, samples=samples, progress=False),
        lambda: plainly(program),
    )
    if changed := differences(before, snapshot(built.model)):
        raise Fault(TOOL, "changed the model", str(changed[:4]))
    if outcome.result is None:
        if program.clean and "measured" in expected.values():
            raise Fault(TOOL, "refused what is right", str(outcome.error))
        return outcome.reason
    result = outcome.result
    check_words(TOOL, repr(result))
    measured = {name.partition("[")[0] for name in result.layers}
    left = {row.name.partition("[")[0]: row.why for row in result.skipped}
    for name, which in expected.items():
        if which != "none" and name not in measured and name not in left:
            raise Fault(TOOL, "neither measured nor named", f"a layer, {which}: {name!r}")
        if which == "left" and name in measured:
            raise Fault(TOOL, "measured what is to be left", f"{name!r}")
    _check_numbers(program, result, samples)
    return "compared"


def _check_numbers(program: Program, result: Any, samples: int | None) -> None:
    built = program.build()
    oracle = Oracle(built.model)
    oracle.measured, oracle.by_parts = set(result.layers), True
    pairs, kept, seen, total = [], [], [[], []], 0  # type: ignore[var-annotated]
    # A loader labels all samples together.
    loader, done = "as_loader" in program.batches, -len(built.inputs[0])
    labels = pieces.labels(torch.cat(built.inputs))
    for x in built.inputs:
        done += len(built.inputs[0])
        if not len(x):
            continue
        outputs = []
        by_mode = []
        for oracle.mode in ("batch", "eval"):
            outputs += oracle.run([doubled(x)], program.call)
            by_mode.append(oracle.seen)
        if _single(oracle, by_mode[0]):
            continue
        for every, one in zip(seen, by_mode, strict=True):
            every.append(one)
        pairs.append([tensor_of(y) for y in outputs])
        kept.append(labels[done : done + len(x)] if loader else pieces.labels(x))
        total += len(x)
        if samples is not None and total >= samples:
            break
    if result.samples != total:
        raise Fault(TOOL, "miscounted", f"{result.samples} for {total}")
    worse = oracle.condition**2
    for name, gap in result.layers.items():
        _check_gap(program, oracle, name, gap, seen[0], worse)
        if name in result.inherited:
            _check_gap(program, oracle, name, result.inherited[name], seen[1], worse)
    a, b = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    _check_output(program, result.output, a, b, torch.cat(kept), worse)


def _single(oracle: Oracle, seen: dict[str, list[list[Tensor]]]) -> bool:
    for name, batches in seen.items():
        layer = oracle.model.get_submodule(name.partition("[")[0])
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
            continue
        for calls in batches:
            for x in calls:
                size = getattr(layer, "ghost_size", len(x))
                smallest = len(x) // math.ceil(len(x) / size)
                if smallest * x.shape[2:].numel() == 1:
                    return True
    return False


def _close(program: Program, what: str, value: float, truth: float, worse: float) -> None:
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-10}
    allowed = 1000 * eps[program.precision] * worse
    error = abs(value - truth) / (1 + abs(truth))
    if allowed < 0.1 and not error <= allowed:
        raise Fault(TOOL, f"wrong {what}", f"{value:.6g} for {truth:.6g}, allowed {allowed:.2g}")


def _check_gap(
    program: Program, oracle: Oracle, name: str, gap: Any, seen: list[Any], worse: float
) -> None:
    layer: Any = oracle.model.get_submodule(name.partition("[")[0])
    calls = [x for one in seen for batch in one.get(name, []) for x in batch]
    per_sample = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    if not calls:
        raise Fault(TOOL, "a gap without an input", f"{name!r}")
    mean, var = moments_of(calls, per_sample)
    running_mean, running_var = oracle._stats(layer)
    scale = var + layer.eps
    off = ((running_mean - mean) / scale.sqrt()).square().mean().sqrt()
    ratio = ((running_var + layer.eps) / scale).log().square().mean().sqrt()
    # Means are divided by deviations, which rounding blurs where they are small.
    _close(program, "gap of the mean", gap.mean, float(off), worse)
    _close(program, "gap of the variance", math.log(gap.variance), float(ratio), worse)


def _check_output(
    program: Program, output: Any, a: Tensor, b: Tensor, labels: Tensor, worse: float
) -> None:
    axes = [d for d in range(a.dim()) if d != 1] if a.dim() > 1 else [0]
    deviation = (a - a.mean(axes, keepdim=True)).square().sum()
    # Classes lie along the last axis of what a model of language calls logits.
    tokens = "Returns" in program.model and a.dim() == 3
    if not tokens and float(deviation) > 1e-12 * float((a.square() + b.square()).sum()):
        truth = float(((a - b).square().sum() / deviation).sqrt())
        blur = worse * float((a.square().sum() / deviation).sqrt())
        _close(program, "difference", output.difference, truth, blur)
    labelled = program.batches.startswith(("as_pairs", "as_lists", "as_dicts", "as_loader"))
    if not labelled or a.dim() != 2 or a.shape[1] < 2 or "Returns(" in program.model:
        return
    counts = labels >= 0
    if output.agreement is None or output.loss is None:
        if bool(counts.any()):
            raise Fault(TOOL, "no loss", str(output))
        return
    truths = [float(F.cross_entropy(y, labels, ignore_index=-100)) for y in (a, b)]
    for what, value, truth in zip(("first", "second"), output.loss, truths, strict=True):
        _close(program, f"{what} loss", value, truth, worse * (1 + float(a.abs().max())))
    top = [y[counts].topk(2).values for y in (a, b)]
    clear = min(float((t[:, 0] - t[:, 1]).min()) for t in top) > 1e-3
    if clear:
        agreement = float((a[counts].argmax(1) == b[counts].argmax(1)).double().mean())
        _close(program, "agreement", output.agreement, agreement, 1.0)
