"""``recalibrate`` held to its promise."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import normkit as nk
from tests.sweep import pieces
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.oracle import (
    Oracle,
    doubled,
    keeps_statistics,
    moments_of,
    overrides_forward,
    unwrapped,
)
from tests.sweep.program import Built, Program
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import attempt, check_words, compare

__all__ = ["plainly", "recalibrate", "recalibrate_cases", "role", "roles"]

TOOL = "recalibrate"


@st.composite
def recalibrate_cases(draw: Any) -> tuple[Program, dict[str, Any]]:
    """Draw a program and the options of ``recalibrate``."""
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["layerwise"] = True
    if draw(st.booleans()):
        options["samples"] = draw(st.sampled_from([None, 5, 1]))
    if draw(st.integers(0, 5)) == 5:
        options["tolerance"] = draw(st.sampled_from([0.5, 0.01, 5]))
    return draw(programs()), options


def role(layer: nn.Module, model: nn.Module) -> str:
    """Say what becomes of a layer: "none", "measured", "left", or "either"."""
    if not keeps_statistics(layer):
        return "none"
    if isinstance(layer, nk.FrozenBatchNorm2d):
        return "left"
    if overrides_forward(layer) and not isinstance(layer, pieces.Registered):
        return "left"
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and not layer.track_running_stats:
        return "none"
    if getattr(layer, "momentum", None) == 0 or (model.training and not layer.training):
        return "left"
    return "either" if "forward" in vars(layer) else "measured"


def roles(built: Built, spare: Built) -> dict[str, str]:
    """Say for every layer, by its first name, what becomes of it."""
    model, told = unwrapped(built.model), unwrapped(spare.model)
    found = {name: role(layer, model) for name, layer in model.named_modules()}
    told.train()
    for name, layer in told.named_modules():
        # Held by its own class, or by the model's.
        if found[name] == "measured" and not layer.training:
            found[name] = "left"
    return found


def recalibrate(program: Program, options: dict[str, Any]) -> str:
    """Hold ``recalibrate`` to its promise; return what happened."""
    built, spare = program.build(), program.build()
    model = unwrapped(built.model)
    expected = roles(built, spare)
    before = snapshot(built.model)
    outcome = attempt(
        TOOL,
        lambda: nk.recalibrate(built.model, built.batches, progress=False, **options),
        lambda: plainly(program),
    )
    after = snapshot(built.model)
    if outcome.result is None:
        if changed := differences(before, after):
            raise Fault(TOOL, "refused and changed", f"{changed[:4]} after {outcome.error}")
        once = options.get("layerwise") and program.batches.startswith("stream")
        idle = "Unused(" in program.model  # perhaps the only layer
        fits = program.clean and not (once or idle or options.get("tolerance"))
        if fits and "measured" in expected.values():
            raise Fault(TOOL, "refused what is right", str(outcome.error))
        return outcome.reason
    result = outcome.result
    check_words(TOOL, repr(result))
    _check_named(result, expected)
    _check_surroundings(model, result, differences(before, after))
    _check_statistics(program, model, result, options)
    result.undo()
    if changed := differences(before, snapshot(built.model)):
        raise Fault(TOOL, "undo is not exact", str(changed[:4]))
    return "layer by layer" if result.passes > 1 else "by batch"


def plainly(program: Program) -> None:
    """Run the model in evaluation mode, without any tool."""
    built = program.build()
    model = unwrapped(built.model).eval()
    with torch.no_grad():
        for x in built.inputs:
            program.call(model, x)


def _banks(result: Any) -> dict[str, str]:
    """Map each name in the result to the layer's."""
    return {name: name.partition("[")[0] for name in result.layers}


def _check_named(result: Any, expected: dict[str, str]) -> None:
    measured = set(_banks(result).values())
    left = {row.name.partition("[")[0]: row.why for row in result.skipped}
    for name, which in expected.items():
        if which == "none":
            continue
        if name not in measured and name not in left:
            raise Fault(TOOL, "neither measured nor named", f"a layer, {which}: {name!r}")
        if which == "left" and name in measured:
            raise Fault(TOOL, "measured what is to be left", f"{name!r}")
        never = "called" in left.get(name, "") or "domain" in left.get(name, "")
        if which == "measured" and name not in measured and not never:
            raise Fault(TOOL, "left what is known", f"{name!r}: {left[name]}")


def _check_surroundings(model: nn.Module, result: Any, changed: list[str]) -> None:
    allowed = set()
    for name, layer in model.named_modules(remove_duplicate=False):
        if any(layer is model.get_submodule(key) for key in _banks(result).values()):
            for key in ("running_mean", "running_var", "mu", "v", "num_batches_tracked"):
                allowed.add(f"{name}.{key} bits")
    for prefix in ("", "module.", "_orig_mod."):
        names = [(key, key.removeprefix(prefix)) for key in changed]
        # A layer that is itself the wrapped model has no name within.
        changed = [key for key, name in names if not {name, f".{name}"} & allowed]
    if changed:
        raise Fault(TOOL, "changed something else", str(changed[:4]))


def _take(inputs: list[Tensor], samples: int | None) -> list[Tensor]:
    taken, total = [], 0
    for x in inputs:
        taken.append(x)
        total += len(x)
        if samples is not None and total >= samples:
            break
    return taken


def _oracle_statistics(
    program: Program, result: Any, samples: int | None
) -> tuple[dict[str, tuple[Tensor, Tensor, int]], float]:
    """Return each layer's mean, variance and count, and by how much rounding errors grow."""
    built = program.build()
    oracle = Oracle(built.model)
    oracle.measured, oracle.mode = set(result.layers), "batch"
    inputs = [doubled(x) for x in _take(built.inputs, samples)]
    for _ in range(result.passes):
        oracle.run(inputs, program.call)
        found = {}
        for name, batches in oracle.seen.items():
            layer = oracle.model.get_submodule(name.partition("[")[0])
            calls = [x for batch in batches for x in batch]
            per_sample = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
            if per_sample:
                calls = [x if x.dim() > layer._get_no_batch_dim() else x[None] for x in calls]
            count = sum(len(x) if per_sample else x.numel() // x.shape[1] for x in calls)
            found[name] = (*moments_of(calls, per_sample), count)
        oracle.fixed = {name: (mean, var) for name, (mean, var, _) in found.items()}
    return found, oracle.condition


def _check_statistics(
    program: Program, model: nn.Module, result: Any, options: dict[str, Any]
) -> None:
    samples = options.get("samples", 10_000)
    if options.get("tolerance") is not None:
        samples = result.samples
    truth, worse = _oracle_statistics(program, result, samples)
    if truth.keys() != result.layers.keys():
        raise Fault(TOOL, "other layers", f"{sorted(truth)} against {sorted(result.layers)}")
    taken = _take(program.build().inputs, samples)
    if result.samples != sum(map(len, taken)) or result.batches != len(list(taken)):
        counted = (result.samples, result.batches)
        raise Fault(TOOL, "miscounted", f"{counted} for {[len(x) for x in taken]}")
    for name, (mean, var, count) in truth.items():
        one = result.layers[name]
        layer: Any = model.get_submodule(name.partition("[")[0])
        if one.count != count:
            raise Fault(TOOL, "miscounted values", f"{one.count} for {count} at {name!r}")
        scale = var + layer.eps + 1e-30
        compare(program, TOOL, "mean", one.mean, mean, scale.sqrt(), worse**2)
        compare(program, TOOL, "variance", one.variance, var, scale, worse**2)
        _check_written(name, layer, one)


def _check_written(name: str, layer: Any, one: Any) -> None:
    keys = ("mu", "v") if isinstance(layer, pieces.Registered) else ("running_mean", "running_var")
    for key, value in zip(keys, (one.mean, one.variance), strict=True):
        tensor = getattr(layer, key)
        tensor = tensor[layer.domain] if tensor.dim() == 2 else tensor
        if not torch.equal(tensor.double(), value.to(tensor.dtype).double()):
            raise Fault(TOOL, "written otherwise than told", f"{key} of {name!r}")
