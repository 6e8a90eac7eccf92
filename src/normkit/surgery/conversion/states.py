"""State of a layer once it has been converted: its class, attributes and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from normkit.nn import GroupNorm
from normkit.nn.freezing import is_frozen
from normkit.surgery.conversion.kinds import Target
from normkit.surgery.conversion.layers import channels, groups_after
from normkit.surgery.new_state import KIND_ATTRIBUTES, NewState

__all__ = ["STATISTICS", "converted_state", "sizes_note"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# Attributes that only some kinds have. Momentum and kind of average stay, unused, in layers without
# statistics, so that the way back to a batch normalization finds them.
ATTRIBUTES = KIND_ATTRIBUTES | {
    "num_features", "track_running_stats", "affine", "num_groups", "num_channels",
    "normalized_shape", "elementwise_affine",
}  # fmt: skip


def converted_state(
    module: nn.Module,
    target: Target,
    after: type[nn.Module],
    like: Tensor,
    group: Any = None,
) -> NewState:
    """Return the state of ``module`` as an ``after``.

    ``like``: a tensor of the type and device of new statistics. ``group``: the processes that share
    statistics, if ``target`` names their number.
    """
    if target.name == "frozen":
        constant: Any = after
        frozen = constant.from_batch_norm(module)
        return NewState(after, {}, frozen._parameters, frozen._buffers)
    example = _example(module, target, after)
    names = vars(example).keys() - vars(nn.Module()).keys()
    attributes: dict[str, Any] = {key: vars(example)[key] for key in names - vars(module).keys()}
    forced = {target.kind.number, "num_groups"} if target.kind.number else {"num_groups"}
    attributes |= {key: vars(example)[key] for key in forced & names}
    if "affine" in attributes:
        attributes["affine"] = getattr(module, "weight", None) is not None
    if target.name == "sync":
        attributes["process_group"] = group or getattr(module, "process_group", None)
    removed = ATTRIBUTES - names
    if target.kind.across:
        buffers = _statistics_of_batches(module, target, like)
        if buffers is not None:
            attributes["track_running_stats"] = True
        return NewState(after, attributes, None, buffers, removed)
    if isinstance(module, _BatchNorm):
        attributes |= {"track_running_stats": False} if "track_running_stats" in names else {}
    thaws = is_frozen(module)
    if thaws:  # there are no statistics left to freeze
        attributes["training"] = vars(module)["_requested_mode"]
        removed |= {"_requested_mode"}
    buffers = None if isinstance(module, nn.modules.instancenorm._InstanceNorm) and (
        issubclass(after, _NormBase)
    ) else _without_statistics(module, after)  # fmt: skip
    return NewState(after, attributes, None, buffers, removed, False if thaws else None)


def sizes_note(module: nn.Module, target: Target, after: type[nn.Module]) -> str:
    """Return how the channels are divided, for the table."""
    if not issubclass(after, GroupNorm):
        return ""
    groups = groups_after(module, target) or 1
    each = channels(module) // groups
    return f"{groups} group{'s' * (groups > 1)} of {each} channel{'s' * (each > 1)}"


def _example(module: nn.Module, target: Target, after: type[nn.Module]) -> nn.Module:
    factory: Callable[..., nn.Module] = after
    size = channels(module)
    if issubclass(after, GroupNorm):
        return factory(groups_after(module, target), size, device="meta")
    return factory(size, *(() if target.number is None else (target.number,)), device="meta")


def _statistics_of_batches(
    module: nn.Module, target: Target, like: Tensor
) -> dict[str, Any] | None:
    """Return the buffers of a batch normalization; None where those of ``module`` stay."""
    number = target.number if target.name == "domain" else None
    if isinstance(module, _BatchNorm) and number is not None:
        return {
            name: None if b is None else b.expand(number, *b.shape).clone()
            for name, b in module._buffers.items()
        }
    if isinstance(module, _BatchNorm) or (
        isinstance(module, _NormBase) and module.track_running_stats
    ):
        return None
    size = channels(module)
    rest = {key: b for key, b in module._buffers.items() if key not in STATISTICS}
    return {
        **rest,
        "running_mean": torch.zeros(size, dtype=like.dtype, device=like.device),
        "running_var": torch.ones(size, dtype=like.dtype, device=like.device),
        "num_batches_tracked": torch.zeros((), dtype=torch.long, device=like.device),
    }


def _without_statistics(module: nn.Module, after: type[nn.Module]) -> dict[str, Any]:
    rest: dict[str, Any] = {key: b for key, b in module._buffers.items() if key not in STATISTICS}
    empty: Iterable[str] = STATISTICS if issubclass(after, _NormBase) else ()
    return {**rest, **dict.fromkeys(empty)}
