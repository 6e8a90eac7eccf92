"""``freeze``, ``unfreeze``, ``convert``, ``accelerate`` and ``scale_momentum`` held to theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.parameter import is_lazy

import normkit as nk
from tests.sweep import pieces
from tests.sweep.behaviour import FINITE, MODES, check_behaviour, no_dropout, tensor_of
from tests.sweep.fault import Fault
from tests.sweep.grammar import Built, Program, programs
from tests.sweep.oracle import keeps_statistics, overrides_forward
from tests.sweep.snapshot import differences, snapshot
from tests.sweep.trial import Outcome, SkipTrial, attempt, check_words

__all__ = [
    "accelerate", "accelerate_cases", "convert", "convert_cases", "freeze", "freeze_cases",
    "scale_momentum", "scale_momentum_cases", "unfreeze", "unfreeze_cases",
]  # fmt: skip

Cases = st.SearchStrategy[Any]
KINDS: dict[str, str] = {
    "batch": "BatchNorm", "sync": "SyncBatchNorm", "ghost": "GhostBatchNorm",
    "renorm": "BatchRenorm", "domain": "DomainBatchNorm", "frozen": "FrozenBatchNorm",
}  # fmt: skip


def _handle(
    tool: str, built: Built, call: Callable[[], Any], lost: tuple[str, ...] = ()
) -> Outcome:
    """Call a tool that returns a handle; check refusals, what is printed, and ``undo``.

    The call is made, undone and made again. ``lost``: endings of what undo need not restore.
    """
    before = snapshot(built.model)
    outcome = attempt(tool, call)
    if outcome.result is None:
        if changed := differences(before, snapshot(built.model)):
            raise Fault(tool, "refused and changed", f"{changed[:4]} after {outcome.error}")
        return outcome
    check_words(tool, repr(outcome.result))
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        outcome.result.undo()
    if noted:
        raise Fault(tool, "undo warns", str(noted[0].message))
    changed = [k for k in differences(before, snapshot(built.model)) if not k.endswith(lost)]
    if changed:
        raise Fault(tool, "undo is not exact", str(changed[:4]))
    return attempt(tool, call)


def _names(handle: Any) -> tuple[set[str], dict[str, str]]:
    return {row.name for row in handle.changed}, {row.name: row.why for row in handle.skipped}


def _alias(model: nn.Module, name: str, names: Any) -> bool:
    """Return True if a layer is among those named, by whichever of its names."""
    layer = model.get_submodule(name)
    return any(layer is model.get_submodule(other) for other in names)


# freeze and unfreeze.


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
    return {k: t.detach().clone() for k, t in tensors.items() if not is_lazy(t)}


def freeze(program: Program, options: dict[str, bool]) -> str:
    """Hold ``freeze``: what it says it froze stays through two steps, the rest is named."""
    tool, built = "freeze", program.build()
    model = built.model
    outcome = _handle(tool, built, lambda: nk.freeze(model, **options), (" grad",))
    if outcome.result is None:
        if program.clean:
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    changed, skipped = _names(outcome.result)
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
        if not _alias(model, name, changed | skipped.keys()):
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
    outcome = _handle(tool, built, lambda: nk.unfreeze(model), (" grad",))
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
        if name in _names(froze.result)[0] and not own:
            for key, parameter in layer.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    raise Fault(tool, "left γ or β frozen", f"{key} of {name!r}")
    return "unfroze"


# accelerate and convert.


def accelerate_cases() -> Cases:
    """Draw a program and a mode."""
    return st.tuples(programs(kinds="torch torch ours foreign", values=FINITE, small=8), MODES)


def accelerate(program: Program, training: bool) -> str:
    """Hold ``accelerate``: everything as before, up to rounding; each layer changed or named."""
    tool, built = "accelerate", program.build()
    outcome = _handle(tool, built, lambda: nk.accelerate(built.model))
    if outcome.result is None:
        raise Fault(tool, "refused", str(outcome.error))
    changed, skipped = _names(outcome.result)
    family = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    for name, layer in built.model.named_modules():
        ours = any(cls.__module__.startswith("normkit.nn.") for cls in type(layer).__mro__[:3])
        if isinstance(layer, family) and not ours and not _alias(
            built.model, name, changed | skipped.keys()
        ):  # fmt: skip
            raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
        if name in changed and overrides_forward(layer):
            raise Fault(tool, "changed a subclass", f"{type(layer).__name__} {name!r}")
    if "nn.SyncBatchNorm" in program.model and training:
        raise SkipTrial("needs a GPU")
    check_behaviour(program, tool, training, lambda one: nk.accelerate(one.model), lambda _: None)
    return f"changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"


def convert_cases() -> Cases:
    """Draw a program, a kind, and a mode."""
    to = st.sampled_from(
        ["batch", "sync", ("ghost", 2), ("ghost", 3), "renorm", ("domain", 1), ("domain", 2),
         "frozen"]
    )  # fmt: skip
    return st.tuples(programs(kinds="torch torch ours foreign", values=FINITE), to, MODES)


def convert(program: Program, to: Any, training: bool) -> str:
    """Hold ``convert``: each layer of the kind asked for or named; what it computes is right."""
    tool, built = "convert", program.build()
    model = built.model
    outcome = _handle(tool, built, lambda: nk.convert(model, to))
    if outcome.result is None:
        if program.clean:
            raise Fault(tool, "refused what is right", str(outcome.error))
        return outcome.reason
    kind = to if isinstance(to, str) else to[0]
    changed, skipped = _names(outcome.result)
    for name, layer in model.named_modules():
        wanted = type(layer).__name__.startswith(KINDS[kind])
        batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        named = _alias(model, name, changed | skipped.keys())
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
    # In evaluation every kind computes what the layer did before.
    check_behaviour(program, tool, training, change, change if training else lambda _: None)
    return f"{kind}: changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"


# scale_momentum.


def scale_momentum_cases() -> Cases:
    """Draw a program and a number of micro-batches."""
    return st.tuples(programs(values=("normal",)), st.sampled_from([4, 2, 1, 100]))


def scale_momentum(program: Program, k: int) -> str:
    """Hold ``scale_momentum``: (1 − m′)^k = 1 − m in every layer, or the layer is named."""
    tool, built = "scale_momentum", program.build()
    model = built.model
    before = {name: getattr(m, "momentum", None) for name, m in model.named_modules()}
    outcome = _handle(tool, built, lambda: nk.scale_momentum(model, k))
    if outcome.result is None:
        return outcome.reason
    changed, skipped = _names(outcome.result)
    for name, layer in model.named_modules():
        if not keeps_statistics(layer) or isinstance(layer, pieces.FrozenBatchNorm2d):
            continue
        if not hasattr(layer, "momentum"):
            if isinstance(layer, nk.FrozenBatchNorm2d) or k == 1:
                continue
            if not _alias(model, name, skipped):
                raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
            continue
        momentum: Any = layer.momentum
        if name in changed:
            if abs((1 - momentum) ** k - (1 - before[name])) > 1e-9:
                raise Fault(tool, "wrong momentum", f"{before[name]} became {momentum} with k {k}")
        elif k > 1 and not _alias(model, name, changed | skipped.keys()):
            tracks = getattr(layer, "track_running_stats", True)
            if tracks:
                raise Fault(tool, "neither changed nor named", f"{type(layer).__name__} {name!r}")
    return f"changed {min(len(changed), 3)}, left {min(len(skipped), 3)}"
