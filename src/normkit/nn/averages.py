r"""Averages for running statistics: exponential, cumulative or debiased.

All three are one step towards the newest value, :math:`r_t = r_{t-1} + s_t (v_t - r_{t-1})`, and
differ in its share :math:`s_t` after :math:`t` batches:

- *exponential*: :math:`s_t = m`, PyTorch's ``momentum``. The start (0 and 1) fades as
  :math:`(1-m)^t`.
- *cumulative*: :math:`s_t = 1/t`. Every batch weighs the same, also those of long-outdated
  weights.
- *debiased*: :math:`s_t = m / (1 - (1-m)^t)`. The same fading weights as exponential, divided by
  their sum, so that the start has no part in it. It is a running sum over a running count, as
  Caffe's BatchNorm layer keeps it, without a buffer more than PyTorch has.

A momentum of None makes each of them cumulative: ``torch.optim.swa_utils.update_bn`` sets it in
every layer to measure statistics anew, and puts it back.

``momentum`` is the share *replaced*. Articles that write "momentum 0.9" often mean the share
*kept*; theirs is ``1 - momentum`` here.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from normkit.errors import OptionError, message

__all__ = [
    "Average",
    "check_average",
    "share",
    "step_towards",
    "unbiased",
    "warn_if_uncounted",
]

Average = Literal["exponential", "cumulative", "debiased"]


def check_average(average: str, momentum: float | None) -> None:
    """Validate ``average`` and its ``momentum``.

    Raises:
        OptionError: unknown ``average``, or an invalid momentum.
    """
    if not isinstance(average, str) or average not in get_args(Average):
        raise OptionError(
            message(
                'average as "exponential", "cumulative" or "debiased"',
                f"average={average!r}",
                'use "exponential", as torch.nn does',
            )
        )
    if average == "debiased" and (momentum is None or not 0 <= momentum <= 1):
        raise OptionError(
            message(
                "momentum between 0 and 1 for a debiased average",
                f"momentum={momentum}",
                'use momentum=0.1, or average="cumulative" to weigh all batches equally',
            )
        )


def share(
    average: str, momentum: float | None, tracked: Tensor, dtype: torch.dtype = torch.float32
) -> float | Tensor:
    """Share :math:`s_t` of the newest value after ``tracked`` batches, this one included.

    A tensor where it depends on the count, so that no device has to be waited for; computed in
    ``dtype``, that of the statistics where it is wider than float32.

    >>> share("debiased", 0.1, torch.tensor(1)), share("cumulative", 0.1, torch.tensor(4))
    (tensor(1.), tensor(0.2500))
    >>> share("debiased", None, torch.tensor(4))
    tensor(0.2500)
    """
    if momentum == 0:  # the usual way to hold a layer's statistics still
        return 0.0
    if average == "cumulative" or momentum is None:
        return 1.0 / tracked.to(dtype)
    if average == "debiased":
        if momentum == 1:
            return 1.0
        # 1 − (1 − m)^t without cancellation for small m.
        log_decay = tracked.to(dtype) * math.log1p(-momentum)
        return (momentum / -torch.expm1(log_decay)).clamp_max(1.0)
    return momentum


def warn_if_uncounted(layer: Any, prefix: str) -> None:
    """Warn of loaded statistics behind which no batch is counted, as in checkpoints without it.

    An average by the count would replace them by the next batch.
    """
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if any(type(t) is not Tensor or t.is_meta for t in (mean, var, tracked)):
        return
    with torch.no_grad():
        learned = ((mean != 0) | (var != 1)).any(-1)
        uncounted = bool(((tracked == 0) & learned).any())
    if uncounted:
        warnings.warn(
            message(
                f"num_batches_tracked above 0 with the running statistics of "
                f"{prefix.rstrip('.') or type(layer).__name__}, which are averaged by it",
                "0, so that the next batch in training replaces them",
                "set num_batches_tracked to the number of batches behind them, or use "
                "average='exponential' with a momentum",
            ),
            stacklevel=2,
        )


def unbiased(var: Tensor, values: int | Tensor) -> Tensor:
    """Turn the biased variance of ``values`` values into the unbiased one.

    >>> unbiased(torch.tensor(2.0), 4)
    tensor(2.6667)
    """
    if isinstance(values, Tensor):  # of integers, whose quotient would be rounded to float32
        values = values.to(torch.promote_types(torch.float32, var.dtype))
    return var * (values / (values - 1))


def step_towards(running: Tensor, value: Tensor, share: float | Tensor) -> None:
    """Move the buffer ``running`` by ``share`` of the way to ``value``, in place.

    Computed in the wider of the two types, then stored in the buffer's.
    """
    value = value.reshape(running.shape)
    wide = torch.promote_types(running.dtype, value.dtype)
    if isinstance(share, Tensor):
        share = share.to(wide)
    # Weighed, not running + (value − running)·share: with a share near 1 that would leave of a
    # small value what rounding leaves of a large running one. Not lerp_, which vmap cannot batch.
    if running.dtype == wide:
        running.mul_(1 - share).add_(value.to(wide) * share)
    else:
        running.copy_(running.to(wide) * (1 - share) + value.to(wide) * share)
