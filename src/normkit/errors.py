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

import json
import re
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

__all__ = [
    "DataError",
    "NonFiniteError",
    "NormkitError",
    "OptionError",
    "ShapeError",
    "StatisticsError",
    "StoreError",
    "TypeMismatchError",
    "how_to_install",
    "how_to_rebuild",
    "message",
]


class NormkitError(Exception):
    """Root of all errors that normkit raises itself."""


class ShapeError(NormkitError, ValueError, RuntimeError):
    """Rank or size of a tensor does not fit."""


class TypeMismatchError(NormkitError, TypeError, NotImplementedError):
    """Type of a tensor or an argument does not fit."""


class OptionError(NormkitError, ValueError):
    """Value of an argument is not one of those allowed."""


class StatisticsError(NormkitError, RuntimeError):
    """Statistics cannot be computed from the input, or cannot be used."""


class NonFiniteError(StatisticsError):
    """Values are not finite, or too large for the type of their moments."""


class DataError(NormkitError, RuntimeError):
    """Data set cannot be found, verified or read."""


class StoreError(NormkitError, RuntimeError):
    """Store of runs cannot be opened, read or written."""


def message(expected: str, received: str, fix: str) -> str:
    """Compose an error message: what was expected, what was received, how to fix it.

    >>> message("groups to divide channels", "3 groups for 64 channels", "use 2, 4 or 8")
    'Expected groups to divide channels; received 3 groups for 64 channels. Fix: use 2, 4 or 8.'
    """
    return f"Expected {expected}; received {received}. Fix: {fix}."


def how_to_install(extra: str) -> str:
    """Return a command that installs, by pip, what an extra of the package needs.

    There is no release yet that could be named: it is the checkout that the package lies in, else
    the extra's requirements.
    """
    if root := _checkout():
        return f"pip install --no-build-isolation -e '{root}[{extra}]'"
    names = _requirements(extra)
    return f"pip install {' '.join(map(repr, names))}" if names else f"install normkit's {extra}"


def how_to_rebuild() -> str:
    """Return a command that builds the package again, by pip, for the torch that is installed."""
    command = "pip install --no-build-isolation --no-deps --force-reinstall"
    if root := _checkout():
        return f"{command} -e '{root}'"
    source = _installed_from()
    return f"{command} '{source}'" if source else f"{command} and the folder of normkit's source"


def _checkout() -> Path | None:
    """Return the source tree that the package lies in, if it does."""
    root = Path(__file__).parents[2]
    return root if (root / "setup.py").exists() and (root / "src" / "normkit").exists() else None


def _installed_from() -> Path | None:
    """Return the source, folder or archive, that pip installed the package from, if it is there."""
    import importlib.metadata

    try:
        origin = importlib.metadata.distribution("normkit").read_text("direct_url.json")
        source = Path(url2pathname(urlparse(json.loads(origin or "{}")["url"]).path))
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return None
    archive = source.name.endswith(".tar.gz") and source.is_file()
    return source if archive or (source / "setup.py").exists() else None


def _requirements(extra: str) -> list[str]:
    import importlib.metadata  # takes a tenth of a second, and is needed here only

    try:
        lines = importlib.metadata.requires("normkit") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names: list[str] = []
    for name, _, marker in (line.partition(";") for line in lines):
        if f'"{extra}"' not in marker.replace("'", '"'):
            continue
        if inner := re.fullmatch(r"normkit\[(.*)\]", name.strip()):
            names += [each for part in inner[1].split(",") for each in _requirements(part.strip())]
        else:
            names.append(name.strip())
    return list(dict.fromkeys(names))
