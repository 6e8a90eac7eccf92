"""Classes of objects in a checkpoint: named, and trusted by name."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from normkit.cli.objects import search_here
from normkit.errors import OptionError, message
from normkit.statistics.printing.describe import describe

__all__ = ["classes_in", "how_to_trust", "trusted"]

# Of Python's own classes, those that hold values and do nothing; others are not suggested.
_VALUES = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|collections\.\w+|datetime\.\w+"
    r"|decimal\.Decimal|enum\.\w+|fractions\.Fraction|pathlib(\._local)?\.\w+|typing\.\w+|uuid\.UUID"
    r"|builtins\.(bytearray|complex|dict|frozenset|list|range|set|slice|tuple)"
)
# numpy's arrays and numbers are made by these, which are no classes.
_NUMPY = re.compile(r"numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)")


def classes_in(path: Path, reason: str) -> list[str]:
    """Return the names that ``torch.load`` does not accept in a file; empty if that is not why.

    Args:
        path: the file.
        reason: the error of ``torch.load``, which names one where the file's format is old.
    """
    with contextlib.suppress(Exception):  # not a file of the newer format, or a damaged one
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return re.findall(r"(?:Unsupported global|unsupported GLOBAL):? (?:GLOBAL )?([\w.]+)", reason)


def how_to_trust(names: Sequence[str]) -> str:
    """Return the options that trust these names; empty if one of them had better not be."""
    return " ".join(f"--trust {name}" for name in names) if all(map(_holds_values, names)) else ""


def _holds_values(name: str) -> bool:
    """Return whether a name looks like a class whose objects only hold values."""
    package, attribute = name.partition(".")[0], name.rpartition(".")[2]
    if package == "numpy":
        return _NUMPY.fullmatch(name) is not None
    if package in sys.stdlib_module_names:
        return _VALUES.fullmatch(name) is not None
    # A module of torch stands for a whole model; a script's classes cannot be imported.
    return package not in ("torch", "__main__") and attribute[:1].isupper()


def trusted(names: Sequence[str]) -> list[Any]:
    """Import the classes that a checkpoint may hold, for ``torch.serialization.safe_globals``.

    Raises:
        OptionError: there is no such class. A function is none: a file could call it with any
            arguments.
    """
    search_here()
    objects: list[tuple[Any, str]] = []
    for name in (each.replace(":", ".") for each in names):
        module, _, attribute = name.rpartition(".")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            received, fix = (
                f"{name or repr(name)}, which is not there",
                "name one that the error names",
            )
        else:
            if isinstance(value, type) or module == "typing" or _NUMPY.fullmatch(name):
                objects.append((value, name))
                continue
            received = f"{name}, {describe(value)}"
            fix = "leave it out; a file could call it with arguments of its own"
        raise OptionError(message("a class for --trust, such as argparse.Namespace", received, fix))
    if any(name == "numpy.dtype" for _, name in objects):
        import numpy as np

        # A type of numbers is of a class of its own.
        kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
        objects += [(kind, f"{kind.__module__}.{kind.__name__}") for kind in kinds]
    return objects
