"""Scale and shift of a layer that in evaluation mode only scales and shifts its channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.core.activations import has_hooks
from normkit.nn.freezing import base_class, is_constant
from normkit.nn.scale import Scale
from normkit.nn.stats_spec import stats_spec, why_unknown
from normkit.surgery.modules import is_opaque, why_opaque

__all__ = ["channel_axis", "is_candidate", "scale_shift", "why_not_affine"]


def is_candidate(module: nn.Module) -> bool:
    """Return whether a reader would expect ``module`` to be folded, or to be told why not.

    >>> is_candidate(nn.BatchNorm2d(3)), is_candidate(Scale(3)), is_candidate(nn.GroupNorm(1, 3))
    (True, True, False)
    """
    if is_opaque(module):
        return why_opaque(module) is not None
    batch = isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)
    return (
        batch
        or type(module) is Scale
        or is_constant(module)
        or stats_spec(module) is not None
        or why_unknown(module) is not None
    )


def why_not_affine(module: nn.Module) -> str | None:
    """Return why a candidate is not the same scale and shift for every input; None if it is."""
    if is_opaque(module):
        return why_opaque(module)
    if has_hooks(module):
        return "it has hooks, or its forward was replaced"
    if type(module) is Scale:
        return None
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy and not yet initialized"
    spec = stats_spec(module)
    if spec is None and not is_constant(module):
        return why_unknown(module) or (
            "normalizes by its input, as it keeps no running statistics"
            if isinstance(module, _NormBase)
            else "keeps no running statistics"
        )
    if module.training:
        return "in training mode, where it normalizes by its batch"
    if spec is not None and not spec.affine:
        return "normalizes by its input beside its running statistics"
    if spec is not None and getattr(module, spec.mean).dim() != 1:
        return "has statistics for each domain: which are to be used is decided in each call"
    if not all(bool(t.isfinite().all()) for t in scale_shift(module)):
        return "its scale or shift is not finite"
    return None


def scale_shift(module: nn.Module) -> tuple[Tensor, Tensor]:
    r"""Return s and t of ``y = s·x + t`` per channel, in float64.

    .. math::
        s = \gamma / \sqrt{\sigma^2 + \epsilon} \qquad t = \beta - s\,\mu

    >>> layer = nn.BatchNorm1d(1, eps=0).eval()
    >>> _ = layer.running_mean.fill_(2), layer.running_var.fill_(4)
    >>> [float(value) for value in scale_shift(layer)]
    [0.5, -1.0]
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if type(module) is Scale:
        s = module.weight.detach().cpu().double()
        return s, torch.zeros_like(s) if bias is None else bias.detach().cpu().double()
    spec = stats_spec(module)
    names = ("running_mean", "running_var") if spec is None else (spec.mean, spec.var)
    mean, var = (getattr(module, name).detach().cpu().double() for name in names)
    # Some constant layers of other libraries have none of their own, but this number in forward.
    eps = getattr(module, "eps", None)
    s = (var + (1e-5 if eps is None else float(eps))).rsqrt()
    if weight is not None:
        s = s * weight.detach().cpu().double()
    t = -s * mean
    return s, t if bias is None else t + bias.detach().cpu().double()


def channel_axis(module: nn.Module, rank: int) -> int:
    """Return the axis of the channels of a candidate's input of that many axes."""
    if isinstance(module, _InstanceNorm):  # which takes a single sample too
        spatial = next(n for n in (1, 2, 3) if base_class(type(module)).__name__.endswith(f"{n}d"))
        return rank - spatial - 1
    return 1
