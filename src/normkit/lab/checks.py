"""Checks of single values, for descriptions, data and networks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from normkit.errors import OptionError, TypeMismatchError, message

__all__ = ["choice", "finite", "whole"]


def choice(what: str, value: object, allowed: Iterable[str]) -> str:
    """Check that ``value`` is one of ``allowed`` and return it.

    Raises:
        OptionError: it is not; the message lists those that are.

    >>> choice("act", "relu", ("relu", "gelu"))
    'relu'
    """
    allowed = tuple(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    raise OptionError(
        message(f"{what} to be one of {', '.join(allowed)}", repr(value), "use one of these")
    )


def whole(what: str, value: object, least: int | None = 1) -> int:
    """Check that ``value`` is an integer of at least ``least``, if not None, and return it.

    Raises:
        TypeMismatchError: not an int (True and 28.0 are not).
        OptionError: below ``least``.

    >>> whole("size", 28)
    28
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeMismatchError(
            message(f"{what} to be an int", f"{value!r} ({type(value).__name__})", "pass an int")
        )
    if least is not None and value < least:
        raise OptionError(
            message(f"{what} of at least {least}", str(value), f"use {least} or more")
        )
    return value


def finite(what: str, value: object) -> float:
    """Check that ``value`` is a finite number of at least 0 and return it as a float.

    Raises:
        TypeMismatchError: no number (True is none).
        OptionError: negative, infinite or not a number.

    >>> finite("momentum", 0)
    0.0
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeMismatchError(
            message(f"{what} to be a number", f"{value!r} ({type(value).__name__})", "pass a float")
        )
    if not (math.isfinite(value) and value >= 0):
        raise OptionError(
            message(f"a finite {what} of at least 0", repr(value), "use e.g. 0 or 0.1")
        )
    return float(value)
