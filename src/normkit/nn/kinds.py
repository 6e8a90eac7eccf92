"""Kind of normalization of a module, whatever it keeps."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.nn.frozen import FrozenBatchNorm
from normkit.nn.norm_spec import norm_spec
from normkit.nn.stats_spec import stats_spec
from normkit.nn.zerocenteredrmsnorm import ZeroCenteredRMSNorm

__all__ = ["Kind", "kind_of"]

Kind = Literal["batch", "instance", "group", "layer", "rms"]

_BY_CLASS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (_BatchNorm, "batch"),
    (_InstanceNorm, "instance"),
    (nn.GroupNorm, "group"),
    (nn.LayerNorm, "layer"),
    (nn.RMSNorm, "rms"),
)
_BY_FORMULA: tuple[tuple[type[nn.Module], Kind], ...] = (
    *_BY_CLASS,
    (FrozenBatchNorm, "batch"),
    (ZeroCenteredRMSNorm, "rms"),
)
_BY_NAME: tuple[tuple[str, Kind], ...] = (
    ("rmsnorm", "rms"),
    ("layernorm", "layer"),
    ("groupnorm", "group"),
    ("instancenorm", "instance"),
    ("batchnorm", "batch"),
)
"""By how the name of a class ends that is none of the known ones; digits behind do not count."""


def kind_of(module: nn.Module) -> Kind | None:
    """Return what kind of normalization a module is, or None if it is none.

    >>> kind_of(nn.BatchNorm2d(3)), kind_of(nn.LayerNorm(3)), kind_of(nn.ReLU())
    ('batch', 'layer', None)
    """
    if (spec := stats_spec(module)) is not None:
        return "batch" if spec.per == "batch" else "instance"
    # Before its class: T5LayerNorm and what derives from LayerNorm may be something else.
    if (formula := norm_spec(module)) is not None:
        return next(kind for cls, kind in _BY_FORMULA if issubclass(formula.layer, cls))
    for cls, kind in _BY_CLASS:
        if isinstance(module, cls):
            return kind
    if next(module.children(), None) is not None:  # a block named after the layer in it
        return None
    name = type(module).__name__.lower().rstrip("0123456789d")
    return next((kind for end, kind in _BY_NAME if name.endswith(end)), None)
