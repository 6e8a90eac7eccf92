"""``convert``, ``accelerate``, ``save_memory``, ``scale_momentum`` held to their promises."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import normkit as nk
from normkit.compat import release
from normkit.nn.norm_spec import norm_spec
from tests.sweep import pieces
from tests.sweep.behaviour import FINITE, MODES, behave, check_behaviour
from tests.sweep.fault import Fault
from tests.sweep.grammar import programs
from tests.sweep.handles import Cases, is_named, names_in, use_handle
from tests.sweep.oracle import keeps_statistics, overrides_forward, unwrapped
from tests.sweep.program import Built, Program
from tests.sweep.trial import SkipTrial

__all__ = [
    "accelerate", "accelerate_cases", "convert", "convert_cases", "save_memory",
    "save_memory_cases", "scale_momentum", "scale_momentum_cases",
]  # fmt: skip

KINDS: dict[str, str | tuple[str, ...]] = {
    "batch": "BatchNorm", "sync": "SyncBatchNorm", "ghost": "GhostBatchNorm",
    "renorm": "BatchRenorm", "domain": "DomainBatchNorm", "frozen": "FrozenBatchNorm",
    "group": "GroupNorm", "layer": "GroupNorm", "instance": ("InstanceNorm", "GroupNorm"),
}  # fmt: skip
AGAIN = "train the network again"


def accelerate_cases() -> Cases:
    """Draw a program and a mode."""
    return st.tuples(programs(kinds="torch torch ours foreign", values=FINITE, small=8), MODES)


def accelerate(program: Program, training: bool) -> str:
    """Hold ``accelerate``: everything as before, up to rounding; each layer changed or named."""
    tool, built = "accelerate", program.build()
    outcome = use_handle(tool, built, lambda: nk.accelerate(built.model))
    if outcome.result is None:
        raise Fault(tool, "refused", str(outcome.error))
    changed, skipped = names_in(outcome.result)
    family = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    for name, layer in built.model.named_modules():
        ours = any(cls.__module__.startswith("normkit.nn.") for cls in type(layer).__mro__[:3])
        if isinstance(layer, family) and not ours and not is_named(
            built.model, name, changed | skipped.keys()
        ):  # fmt: skip
            raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
        if name in changed and overrides_forward(layer) and norm_spec(layer) is None:
            raise Fault(tool, "changed a subclass", f"{type(layer).__name__} {name!r}")
    if "nn.SyncBatchNorm" in program.model and training:
        raise SkipTrial("needs a GPU")
    check_behaviour(program, tool, training, lambda one: nk.accelerate(one.model), lambda _: None)
    return f"changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"


def save_memory_cases() -> Cases:
    """Draw a program, whether blocks are computed again, and a mode."""
    return st.tuples(
        programs(kinds="torch torch ours foreign", values=FINITE, small=8), st.booleans(), MODES
    )


def save_memory(program: Program, blocks: bool, training: bool) -> str:
    """Hold ``save_memory``: outputs, gradients and buffers to the last bit; layers named."""
    if "torch.compile" in program.model or release(torch.__version__) < (2, 8):
        raise SkipTrial("refused where it is compiled, and before torch 2.8")
    tool, built = "save_memory", program.build()
    nk.accelerate(built.model)
    outcome = use_handle(tool, built, lambda: nk.save_memory(built.model, blocks=blocks))
    if outcome.result is None:
        raise Fault(tool, "refused", str(outcome.error))
    if "nn.SyncBatchNorm" in program.model and training:
        raise SkipTrial("needs a GPU")
    results = []
    for saves in (False, True):
        built = program.build()
        if any(t.is_meta for t in (*built.model.parameters(), *built.model.buffers())):
            raise SkipTrial("has no values")
        nk.accelerate(built.model)
        if saves:
            nk.save_memory(built.model, blocks=blocks)
        try:
            results.append(behave(program, built, training))
        except Exception as error:
            if saves:
                raise Fault(tool, "does not run", str(error)) from error
            raise SkipTrial(f"the model does not run: {type(error).__name__}") from error
    before, after = results
    for what in ("gradients", "buffers"):
        a, b = getattr(before, what), getattr(after, what)
        if a.keys() != b.keys():
            raise Fault(tool, f"other {what}", str(a.keys() ^ b.keys()))
        for key, value in a.items():
            if not value.equal(b[key]) and not value.isnan().any():
                raise Fault(tool, f"other bits of {what}", key)
    return f"changed {min(len(outcome.result.changed), 3)}, blocks {blocks}"


def convert_cases() -> Cases:
    """Draw a program, a kind, and a mode."""
    to = st.sampled_from(
        ["batch", "sync", ("ghost", 2), ("ghost", 3), "renorm", ("domain", 1), ("domain", 2),
         "frozen", "group", "layer", "instance", "torch", "torch"]
    )  # fmt: skip
    return st.tuples(programs(kinds="torch torch ours foreign", values=FINITE), to, MODES)


def convert(program: Program, to: Any, training: bool) -> str:
    """Hold ``convert``: each layer of the kind asked for or named; what it computes is right."""
    tool, built = "convert", program.build()
    model = built.model
    outcome = use_handle(tool, built, lambda: nk.convert(model, to))
    if outcome.result is None:
        if program.clean:
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    kind = to if isinstance(to, str) else to[0]
    changed, skipped = names_in(outcome.result)
    for name, layer in model.named_modules():
        if kind == "torch":
            ours = any(cls.__module__.startswith("normkit") for cls in type(layer).__mro__)
            if ours and not is_named(model, name, skipped.keys()):
                raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
            continue
        wanted = type(layer).__name__.startswith(KINDS[kind])
        batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        named = is_named(model, name, changed | skipped.keys())
        if batch and not wanted and not named:
            raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
        if name in changed and not wanted:
            raise Fault(tool, "says changed and is not", f"{type(layer).__name__} {name!r}")
    if kind == "domain" and to[1] > 1:
        return f"{kind}: changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"
    if "nn.SyncBatchNorm" in program.model and training:
        raise SkipTrial("needs a GPU")

    def change(one: Built) -> None:
        nk.convert(one.model, to)

    if not training and "track_running_stats=False" in program.model:
        raise SkipTrial("evaluates by batches, which kinds divide in their own ways")
    if AGAIN in repr(outcome.result) or (training and kind == "torch"):
        return f"{kind}: changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"
    # In evaluation every other kind computes what the layer did before.
    check_behaviour(program, tool, training, change, change if training else lambda _: None)
    return f"{kind}: changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"


def scale_momentum_cases() -> Cases:
    """Draw a program and a number of micro-batches."""
    return st.tuples(programs(values=("normal",)), st.sampled_from([4, 2, 1, 100]))


def scale_momentum(program: Program, k: int) -> str:
    """Hold ``scale_momentum``: (1 − m′)^k = 1 − m in every layer, or the layer is named."""
    tool, built = "scale_momentum", program.build()
    model = built.model
    before = {name: getattr(m, "momentum", None) for name, m in model.named_modules()}
    outcome = use_handle(tool, built, lambda: nk.scale_momentum(model, k))
    if outcome.result is None:
        return outcome.reason
    changed, skipped = names_in(outcome.result)
    for name, layer in model.named_modules():
        if layer is not unwrapped(layer):  # a compiled layer has the attributes of its own
            continue
        if not keeps_statistics(layer) or isinstance(layer, pieces.FrozenBatchNorm2d):
            continue
        if not hasattr(layer, "momentum"):
            if isinstance(layer, nk.FrozenBatchNorm2d) or k == 1:
                continue
            if not is_named(model, name, skipped):
                raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
            continue
        momentum: Any = layer.momentum
        if name in changed:
            if abs((1 - momentum) ** k - (1 - before[name])) > 1e-9:
                raise Fault(tool, "wrong momentum", f"{before[name]} became {momentum} with k {k}")
        elif k > 1 and not is_named(model, name, changed | skipped.keys()):
            tracks = getattr(layer, "track_running_stats", True)
            if tracks:
                raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
    return f"changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"
