"""Checks of options that several functions here take."""

from __future__ import annotations

import math

from normkit.errors import OptionError, explain

__all__ = ["check_samples", "check_tolerance"]


def check_samples(samples: int | None) -> None:
    """Refuse a number of samples that is none.

    Raises:
        OptionError: not an integer of at least 1, nor None.
    """
    if samples is not None and (
        not isinstance(samples, int) or isinstance(samples, bool) or samples < 1
    ):
        raise OptionError(
            explain(
                "samples is a number of at least 1, or None for all there are",
                f"samples={samples!r}",
                "leave it out: the default is enough for most",
            )
        )


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a relative standard error that is none.

    Raises:
        OptionError: not above 0, or not finite.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise OptionError(
            explain(
                "tolerance is a relative standard error above 0",
                f"tolerance={tolerance!r}",
                "use 0.01, for one percent",
            )
        )
