"""Check the numbers that functions of adaptation share."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from normkit.errors import OptionError, message
from normkit.statistics.printing.describe import short

__all__ = ["check_memory", "check_prior"]


def check_prior(prior: object) -> None:
    """Raise unless ``prior`` is a finite number of samples, at least 0.

    Raises:
        OptionError: it is not.
    """
    number = _number(prior)
    if number is None or not 0 <= number < math.inf:
        raise OptionError(
            message(
                "prior as a number of samples, at least 0 and finite",
                f"prior={short(prior)}",
                "use 16, or 0 for the data's statistics alone; without adapt a model uses only "
                "those that it remembers",
            )
        )


def check_memory(memory: object) -> None:
    """Raise unless ``memory`` is a number of samples, at least 0.

    Raises:
        OptionError: it is not.
    """
    number = _number(memory)
    if number is None or not number >= 0:
        raise OptionError(
            message(
                "memory as a number of samples of the stream, at least 0",
                f"memory={short(memory)}",
                "use 1000, math.inf for the whole stream, or 0 for each batch alone",
            )
        )


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, str, bytes, Tensor)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
