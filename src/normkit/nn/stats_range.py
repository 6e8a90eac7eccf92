"""Running statistics that do not fit the type they are stored in.

A variance is a square: that of float32 values around 10²⁰ exceeds float32, that of float16 values
around 10³ exceeds float16. Stored as infinity it would silence its channel, since in evaluation
(x − μ)/√∞ is zero for every x. So what is finite and does not fit is refused with nothing changed,
or keeps the type it had.

What is infinite or NaN from the start passes as in ``torch.nn``: it shows in the outputs, and
mixed-precision training counts on it.

Forward passes are checked on a CPU. On other devices a check would wait for the values, and graphs
that are compiled, traced or transformed cannot raise; there, and only there, a buffer becomes
infinite as ``torch.nn``'s does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from normkit.errors import NonFiniteError, message
from normkit.kernels.modes import transformed

__all__ = ["check_loaded", "check_update", "exceeds", "in_float64", "keep_wider", "may_exceed"]

_STATS = ("running_mean", "running_var")


def exceeds(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a finite one of ``values`` is not finite in ``dtype``.

    >>> exceeds(torch.tensor([1e5, torch.inf]), torch.float16), exceeds(torch.ones(1), torch.half)
    (True, False)
    """
    return bool((values.isfinite() & ~values.to(dtype).isfinite()).any())


def may_exceed(mean: Tensor, var: Tensor, running: Tensor | None) -> bool:
    """Return whether a step towards these moments may exceed the type of ``running``.

    Moments that the kernels leave in float32 fit float32: see :mod:`normkit.kernels.wide`.
    """
    if running is None or not (running.dtype == torch.float16 or var.dtype == torch.float64):
        return False
    if not (running.is_cpu and var.is_cpu) or transformed(mean, var, running) or not var.numel():
        return False
    # The unbiased variance is at most twice the biased one; an average exceeds neither end.
    limit = torch.finfo(running.dtype).max / 2
    return not float((mean.abs() + var).max()) < limit


def in_float64(running: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return copies of mean and variance, to see what an update makes of them."""
    mean, var = running
    return mean.to(torch.float64, copy=True), var.to(torch.float64, copy=True)


def check_update(
    layer: str, running: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], var: Tensor
) -> None:
    """Raise if an update of mean and variance does not fit.

    Args:
        layer: its class.
        running: the buffers before it.
        new: what they would become, in float64.
        var: variance of the batch.

    Raises:
        NonFiniteError: a finite value would become infinite.
    """
    # Of values that are not finite the variance is NaN.
    defined = ~new[1].isnan()
    for name, old, value in zip(_STATS, running, new, strict=True):
        bad = defined & old.isfinite() & ~value.to(old.dtype).isfinite()
        if not bool(bad.any()):
            continue
        largest = float(value[bad].abs().max())
        spread = math.sqrt(float(var.nan_to_num(0.0, posinf=math.inf).max()))
        received = f"{largest:.3g} after a batch with a standard deviation of {spread:.3g}"
        if not math.isfinite(spread):
            received = "more, after a batch whose variance exceeds that"
        fix = (
            "look for what made the input so large, such as a learning rate that is too high, or "
            "scale it"
        )
        if old.dtype == torch.float16:
            fix = "keep the normalization layers in float32, layer.float(); inputs may stay float16"
        elif old.dtype != torch.float64:
            fix += "; layer.double() keeps larger statistics"
        raise NonFiniteError(
            message(
                f"{name} of {layer} within {old.dtype}, up to {torch.finfo(old.dtype).max:.3g}",
                f"{received}; nothing is updated",
                fix,
            )
        )


def keep_wider(layer: str, before: Mapping[str, Tensor | None], after: dict[str, Any]) -> None:
    """Put back statistics that a conversion of the layer made infinite, and warn.

    Both then, since kernels want them of one type.

    Args:
        layer: its class.
        before, after: the layer's buffers.
    """
    old = [t for name in _STATS if _is_readable(t := before.get(name))]
    new = [t for name in _STATS if _is_readable(t := after.get(name))]
    if not len(old) == len(new) == 2 or old[0].dtype == new[0].dtype:
        return
    dtype = new[0].dtype
    if not any(exceeds(t, dtype) for t in old):
        return
    after.update({name: t.to(new[0].device) for name, t in zip(_STATS, old, strict=True)})
    warnings.warn(
        message(
            f"running statistics of {layer} within {dtype}, up to {torch.finfo(dtype).max:.3g}",
            f"{max(float(t.abs().max()) for t in old):.3g}; they stay {old[0].dtype}",
            "leave it at that, as the layer takes inputs of either type; or call layer.float()",
        ),
        stacklevel=4,
    )


def check_loaded(
    layer: str, buffers: Mapping[str, Any], state: dict[str, Any], prefix: str, errors: list[str]
) -> None:
    """Keep statistics of a checkpoint that do not fit from being loaded, and say so in ``errors``.

    Args:
        layer: its class.
        buffers: the layer's.
        state: the checkpoint, a copy of ``load_state_dict``'s.
        prefix: of the layer's names in it.
        errors: messages that ``load_state_dict`` raises in the end.
    """
    for name in _STATS:
        old, value = buffers.get(name), state.get(prefix + name)
        if not (_is_readable(old) and _is_readable(value)) or value.dtype == old.dtype:
            continue
        if not exceeds(value, old.dtype):
            continue
        state[prefix + name] = old
        errors.append(
            message(
                f"{prefix}{name} of {layer} within {old.dtype}, up to "
                f"{torch.finfo(old.dtype).max:.3g}",
                f"{float(value.abs().max()):.3g}",
                f"load into layers of {value.dtype}, such as before model.half(), or pass "
                "assign=True",
            )
        )


def _is_readable(value: object) -> TypeGuard[Tensor]:
    """Return whether ``value`` is a plain tensor of floats with values."""
    return type(value) is Tensor and not value.is_meta and value.is_floating_point()
