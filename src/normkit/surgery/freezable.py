"""Reasons not to freeze a layer, and notes on the statistics of one that is frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normkit.errors import StatisticsError, message
from normkit.handle import place_name
from normkit.nn.freezing import FrozenMixin, can_freeze, is_constant, is_frozen
from normkit.nn.stats_spec import keeps_stats, running_stats, stats_spec, why_unknown
from normkit.statistics.printing.describe import some
from normkit.surgery.modules import is_opaque, why_opaque

__all__ = ["UNMOVED", "caveat", "check_finite", "why_not_frozen"]

CONSTANT, NO_STATISTICS = "already constant", "has no running statistics"

# Reasons to skip a layer whose statistics do not move anyway.
UNMOVED = (CONSTANT, NO_STATISTICS)


def why_not_frozen(module: nn.Module, statistics: bool, freezing: bool) -> str | None:
    """Return why ``module`` is not changed although a reader might expect it; else None."""
    if is_opaque(module):
        return why_opaque(module)
    if isinstance(module, LazyModuleMixin) and isinstance(module, _NormBase):
        return "lazy and not yet initialized"
    if isinstance(module, _NormBase) and not keeps_stats(module):
        return NO_STATISTICS
    if is_constant(module):
        return CONSTANT
    if (why := why_unknown(module)) is not None:
        return why
    if stats_spec(module) is None:
        return None
    if not statistics or is_frozen(module):
        return None
    if not freezing and not isinstance(module, FrozenMixin):
        return None  # its statistics are updated already
    if is_parametrized(module):
        return "parametrized"
    if isinstance(module, FrozenMixin):
        return "a subclass of a frozen layer"
    return None if can_freeze(module) else "its class customizes subclassing or copying"


def check_finite(layers: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise if the statistics of a layer are not finite.

    Raises:
        StatisticsError: naming the layers.
    """
    broken = [
        place_name(name)
        for name, module in layers
        for tensor in running_stats(module) or ()
        if not tensor.is_meta and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        names = list(dict.fromkeys(broken))
        raise StatisticsError(
            message(
                "finite statistics in every layer to freeze",
                f"NaN or infinity in {some(names)}",
                "call normkit.recalibrate(model, batches), then freeze",
            )
        )


def caveat(module: nn.Module) -> str:
    """Return a note on statistics that were probably never updated, for the table."""
    mean, var = running_stats(module) or (None, None)
    if mean is None or var is None or mean.is_meta:
        return ""
    initial = torch.atleast_2d((mean == 0) & (var == 1)).all(-1)  # bank by bank
    if bool(initial.any()):
        banks = ", ".join(str(k) for k, one in enumerate(initial.tolist()) if one)
        which = "" if bool(initial.all()) else f"bank {banks} "
        return f" ({which}still at the initial mean 0 and variance 1)"
    if getattr(module, "momentum", None) == 0:
        return " (momentum 0: never updated in training)"
    return ""
