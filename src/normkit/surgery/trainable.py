"""Frozen batch normalization, constant by construction, back to one that learns."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normkit.core import formula
from normkit.core.formula import Spec
from normkit.core.pools import PER_CHANNEL
from normkit.handle import Changed, Skipped, Step
from normkit.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
)
from normkit.nn.freezing import base_class, freeze_layer, is_frozen, unfreeze_layer
from normkit.nn.norm_spec import equivalent
from normkit.surgery.modules import why_not_convertible
from normkit.surgery.new_state import NewState, as_foreign, state_change

__all__ = ["NEW_PARAMETERS", "thaw", "trainable_class", "trainable_state", "why_not_trainable"]

NEW_PARAMETERS = "γ and β are new parameters, to be added to the optimizer"
NOT_LEARNED = "statistics updating, γ and β still frozen"

# The layer that each constant one becomes; those of other libraries are all for images.
_TRAINABLE: dict[type, type[_BatchNorm]] = {
    FrozenBatchNorm1d: BatchNorm1d,
    FrozenBatchNorm2d: BatchNorm2d,
    FrozenBatchNorm3d: BatchNorm3d,
}

# Attributes that FrozenBatchNorm2d leaves alone and does not use: those of the layer that it was.
_KEPT = ("momentum", "_average")

_TENSORS = ("weight", "bias", "running_mean", "running_var")

# ε of copies that keep it in their forward and not in an attribute.
_USUAL_EPS = (1e-5, 0.0, 1e-6, 1e-3)

# Largest difference, relative to the largest output, between equal formulas by type.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


def trainable_class(module: nn.Module) -> type[_BatchNorm]:
    """Return the class that a constant layer gets in order to learn."""
    return _TRAINABLE.get(base_class(type(module)), BatchNorm2d)


def why_not_trainable(module: nn.Module) -> str | None:
    """Return why a constant layer cannot become one that learns; None if it can."""
    module, then = _twin(module)
    if then:
        return f"calls {', '.join(type(one).__name__ for one in then)} after normalizing"
    values = [module._buffers.get(name, module._parameters.get(name)) for name in _TENSORS]
    if any(v is None or v.dim() != 1 or v.shape != values[0].shape for v in values):  # type: ignore[union-attr]
        return "constant by construction, and lacks a weight, bias, mean or variance by channel"
    eps = _eps(module)
    if eps is None:
        return "constant by construction, and computes something else than batch normalization"
    if eps == 0:
        return "constant by construction, with ε = 0, with which no layer can train"
    return why_not_convertible(module, trainable_class(module), _common_options(module))


def trainable_state(module: nn.Module) -> NewState:
    """Return the state of a constant layer as one that learns, in new tensors."""
    twin, _ = _twin(module)
    new = _trainable_state(twin)
    return new if twin is module else as_foreign(module, twin, new)


def _twin(module: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return a layer here that computes what ``module`` does, or itself, and what it calls then."""
    return equivalent(module) or (module, [])


def _trainable_state(module: nn.Module) -> NewState:
    cls = trainable_class(module)
    weight, bias, mean, var = (getattr(module, name).detach().clone() for name in _TENSORS)
    example = cls(len(weight), eps=_eps(module) or 0.0, device="meta")
    common = {*vars(nn.Module()), "_act", "_act_option"} & vars(module).keys()
    attributes = {key: value for key, value in vars(example).items() if key not in common}
    return NewState(
        cls,
        {**attributes, **_common_options(module)},
        {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)},
        {
            "running_mean": mean,
            "running_var": var,
            "num_batches_tracked": torch.zeros((), dtype=torch.long, device=mean.device),
        },
    )


def thaw(name: str, module: nn.Module, statistics: bool, affine: bool) -> tuple[Changed, Step]:
    """Return the step that makes a constant layer learn, wholly or one of the two, and its row."""
    change = state_change(name, module, trainable_state(module))
    # freeze() may have been called too, before the layer became constant.
    was_frozen = is_frozen(module)

    def freeze(frozen: bool) -> None:
        if is_frozen(module) is not frozen:
            (freeze_layer if frozen else unfreeze_layer)(module)

    def do() -> None:
        change.do()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(affine)
        freeze(not statistics)

    def undo() -> Skipped | None:
        if (skipped := change.undo()) is None:
            freeze(was_frozen)
        return skipped

    note = NEW_PARAMETERS if affine else NOT_LEARNED
    return Changed(name, base_class(type(module)), trainable_class(module), note=note), Step(
        do, undo
    )


def _common_options(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of the layer that ``module`` was before it became constant."""
    if not isinstance(module, (*_TRAINABLE, _BatchNorm)):
        return {}  # under these names another library may mean something else
    return {key: vars(module)[key] for key in _KEPT if key in vars(module)}


def _eps(module: nn.Module) -> float | None:
    """Return the ε with which ``module`` is a batch normalization; None if it is with none.

    Found by trying: many copies have it in their ``forward`` alone.
    """
    weight = getattr(module, "weight").detach()  # noqa: B009  # mypy: may be a module
    declared = getattr(module, "eps", None)
    if weight.is_meta or base_class(type(module)) in _TRAINABLE:
        return declared if isinstance(declared, float) else None
    probe, tensors = _probe(module)
    x = torch.linspace(-3, 3, 18 * len(weight), device=weight.device).to(weight.dtype)
    x = x.view(2, 3, 3, len(weight)).movedim(-1, 1).contiguous()
    y: Any = None
    # Code of another library, which may want other inputs.
    with torch.no_grad(), contextlib.suppress(Exception):
        y = probe.forward(x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(y.isfinite().all()):
        return None
    w, b, m, v = (tensors[name].double().view(1, -1, 1, 1) for name in _TENSORS)
    rounding = _ROUNDING.get(weight.dtype, 0.02)
    # 16 bits do not tell the small ones apart: the first will do.
    for eps in dict.fromkeys((declared if isinstance(declared, float) else 1e-5, *_USUAL_EPS)):
        # Not by PyTorch's function, which refuses ε = 0 in torch 2.10.
        expected = formula.normalize(x.double(), Spec(PER_CHANNEL, eps), w, b, None, m, v)
        if float((y.double() - expected).abs().max() / expected.abs().max()) < rounding:
            return eps
    return None


def _probe(module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a constant layer with tensors that show what it computes, and those.

    Its own may hide it: with γ = 0, as the last layer of a residual branch starts, every layer
    returns β; with a large β no activation shows, and with a large variance no ε.
    """
    ranges = {
        "weight": (1, 2),
        "bias": (0, 0.5),
        "running_mean": (0, 0.5),
        "running_var": (1e-3, 1),
    }
    tensors = {}
    for name, (start, end) in ranges.items():
        like = getattr(module, name).detach()
        values = torch.linspace(start, end, len(like), device=like.device)
        tensors[name] = values.to(like.dtype)
    probe: nn.Module = object.__new__(type(module))
    vars(probe).update({key: value for key, value in vars(module).items() if key != "forward"})
    for table in ("_parameters", "_buffers"):
        rest = {key: t for key, t in getattr(module, table).items() if key not in tensors}
        vars(probe)[table] = rest if table == "_parameters" else {**rest, **tensors}
    return probe, tensors
