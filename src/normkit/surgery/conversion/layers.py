"""Layers before a conversion: their channels, what they pool, and why some are left."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.nn import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d, LayerNorm2d
from normkit.nn.affine import why_not_movable
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.freezing import base_class
from normkit.nn.layer import Layer
from normkit.nn.stats_spec import keeps_stats, stats_spec, why_unknown
from normkit.surgery.conversion.calls import Calls
from normkit.surgery.conversion.groups import groups_for
from normkit.surgery.conversion.kinds import BATCH, SAMPLE, Target
from normkit.surgery.modules import is_opaque, why_not_convertible, why_opaque, why_subclass
from normkit.surgery.sequential import LAYERS
from normkit.surgery.trainable import why_not_trainable

__all__ = [
    "CONSTANT",
    "OPTIONS",
    "channels",
    "form",
    "groups_after",
    "pool",
    "pool_after",
    "spatial_axes",
    "why_other",
    "why_skipped",
    "why_still_constant",
]

CONSTANT = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)

# What layers of this package have in common, and keep in every kind.
OPTIONS = frozenset({"_act", "_act_option", "_average"})


def channels(module: nn.Module) -> int:
    """Return the number of channels, by the tensors where there are any, as pruning leaves them."""
    layer = cast(Any, module)
    for name in ("weight", "running_mean"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            return tensor.shape[-1]
    for name in ("num_features", "num_channels"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(layer, name))
    return int(layer.normalized_shape[0])


def spatial_axes(module: nn.Module, target: Target, calls: Calls) -> int | None:
    """Return the number of spatial axes of a layer's input, 0 for any; None if not convertible.

    By the layer's class, or by the calls that were seen where that takes any number.
    """
    cls = base_class(type(module))
    axes = BATCH.get(cls)
    if axes is None and target.kind.converts_all:
        axes = SAMPLE.get(cls)
    if axes == 0 and (shown := calls.spatial_axes(module)) is not None:
        return shown
    return axes


def form(module: nn.Module, target: Target, calls: Calls) -> type[nn.Module] | None:
    """Return the class that ``module`` becomes; None where it cannot become any."""
    axes = spatial_axes(module, target, calls)
    return None if axes is None else target.kind.forms.get(axes)


def groups_after(module: nn.Module, target: Target) -> int | None:
    """Return how many groups of channels the layer will pool within a sample; None if none."""
    if target.name == "group":
        now = getattr(module, "num_groups", None) if isinstance(module, nn.GroupNorm) else None
        return target.number or now or groups_for(channels(module))
    return {"layer": 1, "instance": channels(module)}.get(target.name)


def pool(module: nn.Module) -> object:
    """Return what a layer normalizes by in evaluation; equal for layers that then compute alike."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, LayerNorm2d):
        return "position"
    if isinstance(module, _InstanceNorm) and not module.track_running_stats:
        return channels(module)
    if keeps_stats(module):
        return "running statistics"
    return ("batch", getattr(module, "ghost_size", None))


def pool_after(module: nn.Module, target: Target) -> object:
    """Return the :func:`pool` of ``module`` once it is converted."""
    now = pool(module)
    if target.name == "instance" and isinstance(module, _InstanceNorm):
        return now
    if not target.kind.across:
        return groups_after(module, target)
    if now == "running statistics":
        return now
    ghost_size = target.number if target.name == "ghost" else None
    return ("batch", ghost_size) if isinstance(module, _BatchNorm) else "new statistics"


def why_still_constant(module: nn.Module, target: Target) -> str | None:
    """Return why a layer that is constant by construction is not made to learn; None if it is."""
    if target.name == "frozen":
        return "already constant"
    if target.name != "batch":
        return 'constant by construction: convert it to "batch" first'
    return why_not_trainable(module)


def why_other(module: nn.Module, target: Target) -> str | None:
    """Return why a module that is not among those to convert is left, if a reader may wonder."""
    if is_opaque(module):
        return why_opaque(module)
    if target.kind.converts_all and isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        if isinstance(module, LazyModuleMixin):
            return "lazy and not yet initialized"
        if isinstance(module, nn.LayerNorm):
            return "normalizes the last axes, which need not be channels"
        return _why_not_exact(module)
    spec = stats_spec(module)
    if spec is not None and not spec.affine:
        return "normalizes by its input beside its running statistics"
    if spec is not None and not isinstance(module, _NormBase):
        return "neither torch.nn's nor normkit's"
    return None if isinstance(module, _NormBase) else why_unknown(module)


def why_skipped(
    module: nn.Module, target: Target, after: type[nn.Module] | None, calls: Calls
) -> str | None:
    """Return why a batch normalization, or another layer of a known class, is not converted."""
    before = base_class(type(module))
    if isinstance(module, Domains):
        return "has statistics for each domain, which other kinds cannot hold"
    if before not in BATCH and before not in SAMPLE:
        if isinstance(module, LazyModuleMixin):
            return "lazy and not yet initialized"
        return _why_not_exact(module)
    if isinstance(module, LazyModuleMixin):
        return "lazy and not yet initialized"
    axes = spatial_axes(module, target, calls)
    if after is None:
        no_form = f"there is no {target.name} form for inputs of"
        if axes:
            return f"{no_form} {axes} spatial axes"
        return f"{no_form} any number of spatial axes; batches= shows how many they have"
    groups = groups_after(module, target)
    alone = groups == channels(module) and groups != pool(module)  # each channel by itself
    if alone and (why := _why_no_positions(module, axes, calls)):
        return why
    if isinstance(module, _InstanceNorm) and SAMPLE[before] + 1 in calls.ranks(module):
        return "gets inputs without a batch axis, which other kinds need"
    if target.name == "frozen":
        if not keeps_stats(module):
            return "has no running statistics"
        if (why := why_not_movable(module)) is not None:
            return why
    shared = OPTIONS if isinstance(module, Layer) else ()
    return why_not_convertible(module, after, shared)


def _why_not_exact(module: nn.Module) -> str:
    """Return why a layer is left whose class is none of the known ones, but derives from one."""
    if base_class(type(module)) in LAYERS:  # of this package, such as those that take a mask
        return "has no counterpart among other kinds"
    return why_subclass(module)


def _why_no_positions(module: nn.Module, axes: int | None, calls: Calls) -> str | None:
    """Return why the channels of a layer cannot be normalized by themselves; None if they can."""
    if calls.without_positions(module):
        return "one value for each channel and sample, which has no deviation"
    if isinstance(module, (_InstanceNorm, LayerNorm2d)):
        return None
    if axes in (0, 1) and not calls.ranks(module):
        return (
            "its inputs may be (N, C), with one value for each channel and sample: batches= shows "
            "whether they are"
        )
    return None
