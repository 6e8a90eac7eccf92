"""Normalizers by name: how each is built, with which options.

No normalizer draws random numbers, so two arms built under the same seed start from the same
weights, and their difference is the normalizer's alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, cast

import torch
from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.models.noise import ShiftingNoise
from normkit.lab.models.parts import choice
from normkit.lab.models.pointwise import DynamicErf, DynamicTanh

__all__ = ["NORMS", "NORM_OPTIONS", "NormFactory", "factory", "groups_for"]

NormFactory = Callable[[int, int], nn.Module]
"""``norm(channels, rank)``: rank 0 for dense input (N, C), rank 1 for tokens (N, T, C), rank 2 for
images (N, C, H, W)."""


def groups_for(channels: int, rank: int) -> int:
    """Return GroupNorm's number of groups: the largest divisor of ``channels`` up to a limit.

    The limit is 32 groups (Wu & He 2018, arXiv 1803.08494, their default), and for images at
    least 2 channels a group, because with one GroupNorm would be InstanceNorm. Dense input has one
    value a channel, and a group of two would always give ±1, so there a group has at least 16
    channels (their other setting).

    >>> groups_for(64, 2), groups_for(16, 2), groups_for(6, 2), groups_for(1, 2)
    (32, 8, 3, 1)
    >>> groups_for(120, 0), groups_for(84, 0), groups_for(10, 0)
    (6, 4, 1)
    """
    limit = max(1, min(32, channels // (2 if rank else 16)))
    return next(g for g in range(limit, 0, -1) if channels % g == 0)


def _none(channels: int, rank: int, affine: bool) -> nn.Module:
    return nn.Identity()


def _started(layer: nn.Module, gamma: float, beta: float) -> nn.Module:
    """Set the initial γ and β of a layer. Draws no random number."""
    if (gamma, beta) != (1.0, 0.0):
        nn.init.constant_(cast("torch.Tensor", layer.weight), gamma)
        nn.init.constant_(cast("torch.Tensor", layer.bias), beta)
    return layer


def _batch(
    channels: int, rank: int, affine: bool, gamma: float = 1.0, beta: float = 0.0, **options: Any
) -> nn.Module:
    # Imported when asked for: a network with other normalizers needs none of the kernels.
    from normkit.nn import BatchNorm1d, BatchNorm2d

    kind = BatchNorm2d if rank else BatchNorm1d
    return _started(kind(channels, affine=affine, **options), gamma, beta)


def _ghost(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import GhostBatchNorm1d, GhostBatchNorm2d

    kind = GhostBatchNorm2d if rank else GhostBatchNorm1d
    return kind(channels, affine=affine, **options)


def _domain(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import DomainBatchNorm1d, DomainBatchNorm2d

    kind = DomainBatchNorm2d if rank else DomainBatchNorm1d
    return kind(channels, affine=affine, **options)


def _torch_batch(
    channels: int, rank: int, affine: bool, gamma: float = 1.0, beta: float = 0.0, **options: Any
) -> nn.Module:
    kind = nn.BatchNorm2d if rank else nn.BatchNorm1d
    return _started(kind(channels, affine=affine, **options), gamma, beta)


def _layer(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    # On images one group is layer normalization over (C, H, W) with γ and β per channel, which
    # needs no image size. On dense input the two are the same, and LayerNorm is its own name.
    if rank == 2:
        return nn.GroupNorm(1, channels, affine=affine, **options)
    return nn.LayerNorm(channels, elementwise_affine=affine, **options)


def _group(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    return nn.GroupNorm(groups_for(channels, rank), channels, affine=affine, **options)


def _instance(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    # A dense feature has one value per sample and channel: less its own mean it is always 0.
    return nn.InstanceNorm2d(channels, affine=affine, **options) if rank else nn.Identity()


def _half_instance(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    from normkit.nn import HalfInstanceNorm2d

    return HalfInstanceNorm2d(channels, affine=affine, **options) if rank else nn.Identity()


def _noise(channels: int, rank: int, affine: bool) -> nn.Module:
    return ShiftingNoise()


def _noisy_batch(channels: int, rank: int, affine: bool, **options: Any) -> nn.Module:
    norm = _batch(channels, rank, affine, **options)
    return nn.Sequential(OrderedDict(norm=norm, noise=ShiftingNoise()))


_NORMS: dict[str, Callable[..., nn.Module]] = {
    "none": _none,
    "batch": _batch,
    "torch-batch": _torch_batch,
    "ghost": _ghost,
    "domain": _domain,
    "layer": _layer,
    "group": _group,
    "instance": _instance,
    "half-instance": _half_instance,
    "dyt": DynamicTanh,
    "derf": DynamicErf,
    "noise": _noise,
    "noisy-batch": _noisy_batch,
}
NORM_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "batch": ("momentum", "average", "eps", "gamma", "beta"),
    "torch-batch": ("momentum", "eps", "gamma", "beta"),
    "ghost": ("ghost_size", "momentum", "average", "eps"),
    "domain": ("domains", "share_affine", "momentum", "average", "eps"),
    "layer": ("eps",),
    "group": ("eps",),
    "instance": ("eps",),
    "half-instance": ("eps",),
    "dyt": ("alpha",),
    "derf": ("alpha",),
    "noise": (),
    "noisy-batch": ("momentum", "average", "eps"),
}
"""The further arguments that a normalizer may be given; the first of ghost and domain must be.

``gamma`` and ``beta`` are the values that γ and β start at, 1 and 0 unless given, rounded to the
parameters' type: in float32 a γ of 1.0000001 is the next number after 1, 1 + 2⁻²³. ``alpha`` is the
value that the α of dyt and derf starts at, 0.5 unless given.
"""

_TOKENS = ("none", "layer", "dyt", "derf")
"""The normalizers of tokens (N, T, C), each on its own."""

_NEEDED = {"ghost": ("ghost_size", 32), "domain": ("domains", 2)}

NORMS: tuple[str, ...] = tuple(_NORMS)


def factory(norm: str, affine: bool, options: Mapping[str, Any]) -> NormFactory:
    """Return the factory of the normalizers of this name, with these options.

    Raises:
        OptionError: an unknown name; an option that the normalizer does not have, or lacks; a
            start for γ or β with ``affine=False``, or one that is not a finite number.
    """
    make = _NORMS[choice("norm", norm, NORMS)]
    _check_options(norm, options)
    _check_start(affine, options)

    def normalizer(channels: int, rank: int) -> nn.Module:
        _check_rank(norm, rank)
        return make(channels, rank, affine, **options)

    return normalizer


def _check_rank(norm: str, rank: int) -> None:
    if rank == 1 and norm not in _TOKENS:
        raise OptionError(
            message(
                f"a normalizer of tokens, one of {', '.join(_TOKENS)}",
                f"norm={norm!r}",
                "use one of these for a transformer",
            )
        )


def _check_options(norm: str, options: Mapping[str, Any]) -> None:
    allowed = NORM_OPTIONS[norm]
    unknown = [name for name in options if name not in allowed]
    needed, example = _NEEDED.get(norm, ("", 0))
    if unknown or (needed and needed not in options):
        raise OptionError(
            message(
                f"options among {', '.join(allowed) or '(none)'} for the normalizer {norm!r}"
                + (f", with {needed}" if needed else ""),
                ", ".join(unknown) or f"no {needed}",
                f"use only these, e.g. {needed or 'ghost_size'}={example or 32}",
            )
        )


def _check_start(affine: bool, options: Mapping[str, Any]) -> None:
    starts = {name: options[name] for name in ("gamma", "beta", "alpha") if name in options}
    if starts.keys() - {"alpha"} and not affine:
        raise OptionError(
            message(
                "γ and β (affine=True) where their start is set",
                f"affine=False with {starts}",
                "leave out either",
            )
        )
    for name, value in starts.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise OptionError(
                message(f"a finite start for {name}", repr(value), f"use e.g. {name}=1.0")
            )
