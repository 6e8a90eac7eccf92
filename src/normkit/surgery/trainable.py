"""A frozen batch normalization, constant by construction, back to one that learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.handle import Skipped, Step
from normkit.nn import BatchNorm2d, FrozenBatchNorm2d
from normkit.nn.freezing import base_class, freeze_layer, is_frozen, unfreeze_layer
from normkit.surgery.modules import why_not_convertible
from normkit.surgery.new_state import NewState, state_change

__all__ = ["NEW_PARAMETERS", "thaw", "trainable_state", "why_not_trainable"]

NEW_PARAMETERS = "γ and β are new parameters, to be added to the optimizer"

_TENSORS = ("weight", "bias", "running_mean", "running_var")

# ε of copies that keep it in their forward and not in an attribute.
_USUAL_EPS = (1e-5, 0.0, 1e-6, 1e-3)

# Largest difference, relative to the largest output, between equal formulas by type.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}


def why_not_trainable(module: nn.Module) -> str | None:
    """Return why a constant layer cannot become a :class:`normkit.BatchNorm2d`; None if it can."""
    values = [module._buffers.get(name, module._parameters.get(name)) for name in _TENSORS]
    if any(v is None or v.dim() != 1 or v.shape != values[0].shape for v in values):  # type: ignore[union-attr]
        return "constant by construction, and lacks a weight, bias, mean or variance by channel"
    eps = _eps(module)
    if eps is None:
        return "constant by construction, and computes something else than batch normalization"
    if eps == 0:
        return "constant by construction, with ε = 0, with which no layer can train"
    return why_not_convertible(module, BatchNorm2d)


def trainable_state(module: nn.Module) -> NewState:
    """Return the state of a constant layer as a :class:`normkit.BatchNorm2d`, in tensors anew."""
    weight, bias, mean, var = (getattr(module, name).detach().clone() for name in _TENSORS)
    example = BatchNorm2d(len(weight), eps=_eps(module) or 0.0, device="meta")
    common = {*vars(nn.Module()), "_act", "_act_option"} & vars(module).keys()
    return NewState(
        BatchNorm2d,
        {key: value for key, value in vars(example).items() if key not in common},
        {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)},
        {
            "running_mean": mean,
            "running_var": var,
            "num_batches_tracked": torch.zeros((), dtype=torch.long, device=mean.device),
        },
    )


def thaw(name: str, module: nn.Module, statistics: bool, affine: bool) -> Step:
    """Return the step that makes a constant layer learn, wholly or one of the two."""
    change = state_change(name, module, trainable_state(module))

    def do() -> None:
        change.do()
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(affine)
        if not statistics:
            freeze_layer(module)

    def undo() -> Skipped | None:
        if is_frozen(module):
            unfreeze_layer(module)
        return change.undo()

    return Step(do, undo)


def _eps(module: nn.Module) -> float | None:
    """Return the ε with which ``module`` is a batch normalization; None if it is with none.

    Found by trying: many copies have it in their ``forward`` alone.
    """
    weight, bias, mean, var = (getattr(module, name).detach() for name in _TENSORS)
    declared = getattr(module, "eps", None)
    if weight.is_meta or base_class(type(module)) is FrozenBatchNorm2d:
        return declared if isinstance(declared, float) else None
    x = torch.linspace(-3, 3, 18 * len(weight), device=weight.device).to(weight.dtype)
    x = x.view(2, 3, 3, len(weight)).movedim(-1, 1).contiguous()
    with torch.no_grad():
        y = module.forward(x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(y.isfinite().all()):
        return None
    errors = {}
    for eps in dict.fromkeys((declared if isinstance(declared, float) else 1e-5, *_USUAL_EPS)):
        m, v, w, b = (t.double() for t in (mean, var, weight, bias))
        expected = F.batch_norm(x.double(), m, v, w, b, False, 0.0, eps)
        errors[eps] = float((y.double() - expected).abs().max() / expected.abs().max())
    first, best = next(iter(errors)), min(errors, key=lambda eps: errors[eps])
    # Where the variance is large, rounding decides between them, and none of them matters.
    best = first if errors[first] <= 2 * errors[best] else best
    return best if errors[best] < _ROUNDING.get(weight.dtype, 0.02) else None
