"""Exceptions raised by normkit, and the form of their messages.

    NormkitError
    ├── ShapeError        (ValueError,    a tensor whose rank or size does not fit the layer
    │                      RuntimeError)
    ├── TypeMismatchError (TypeError,     a tensor or argument of the wrong type
    │                      NotImplementedError)
    ├── OptionError       (ValueError)    an argument outside its allowed values
    ├── StatisticsError   (RuntimeError)  statistics that cannot be computed or used
    │   └── NonFiniteError                values that are not finite, or too large
    ├── DataError         (RuntimeError)  a data set that cannot be found, checked or read
    └── StoreError        (RuntimeError)  a store of runs that cannot be opened or written

Each leaf also subclasses the built-in exception that ``torch.nn`` raises in the same case, so code
that catches the built-in one keeps working; where ``torch.nn`` raises one type for a wrong rank and
another for a wrong size, it subclasses both. Messages state what was expected, what was received,
and how to fix it (:func:`message`).
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "NonFiniteError",
    "NormkitError",
    "OptionError",
    "ShapeError",
    "StatisticsError",
    "StoreError",
    "TypeMismatchError",
    "message",
]


class NormkitError(Exception):
    """Root of all errors that normkit raises itself."""


class ShapeError(NormkitError, ValueError, RuntimeError):
    """A tensor's rank or size does not fit."""


class TypeMismatchError(NormkitError, TypeError, NotImplementedError):
    """A tensor's or an argument's type does not fit."""


class OptionError(NormkitError, ValueError):
    """An argument's value is not one of those allowed."""


class StatisticsError(NormkitError, RuntimeError):
    """Statistics cannot be computed from the input, or cannot be used."""


class NonFiniteError(StatisticsError):
    """Values are not finite, or too large for the type of their moments."""


class DataError(NormkitError, RuntimeError):
    """A data set cannot be found, verified or read."""


class StoreError(NormkitError, RuntimeError):
    """A store of runs cannot be opened, read or written."""


def message(expected: str, received: str, fix: str) -> str:
    """Compose an error message: what was expected, what was received, how to fix it.

    >>> message("groups to divide channels", "3 groups for 64 channels", "use 2, 4 or 8")
    'Expected groups to divide channels; received 3 groups for 64 channels. Fix: use 2, 4 or 8.'
    """
    return f"Expected {expected}; received {received}. Fix: {fix}."
