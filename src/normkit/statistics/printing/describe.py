"""Describe values of users in messages: an argument, a batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from torch import Tensor, nn

__all__ = ["SHOWN", "describe", "short", "some"]

SHOWN = 4
"""Parts of a batch, or keys of a mapping, that a message names."""


def describe(value: object, depth: int = 2) -> str:
    """Describe an argument or a batch in a few words: its type, shapes, and first parts.

    >>> import torch
    >>> describe([torch.zeros(20, 3), {"id": 4}])
    'a list with a (20, 3) tensor of torch.float32, a dict with id'
    >>> describe(nn.Linear), describe(describe), describe("a.pt"), describe(())
    ('the class Linear', 'the function describe', "the text 'a.pt'", 'an empty tuple')
    """
    if isinstance(value, Tensor):
        return f"a {tuple(value.shape)} tensor of {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    # A class may be private to a library; what it is a kind of is known.
    name = next(c.__name__ for c in type(value).__mro__ if not c.__name__.startswith("_"))
    if isinstance(value, (str, bytes, PurePath)):
        word = "path" if isinstance(value, PurePath) else "text"
        return f"the {word} {short(str(value) if isinstance(value, PurePath) else value)}"
    if isinstance(value, (bool, int, float)) or value is None:
        return repr(value) if value is None else f"the {name} {value!r}"
    if isinstance(value, Mapping):
        return (
            f"{_with_article(name)} with {some([str(key) for key in value])}"
            if value
            else f"an empty {name}"
        )
    if isinstance(value, (list, tuple)):
        if not depth:
            return f"{_with_article(name)} of {len(value)}"
        parts = [describe(part, depth - 1) for part in value[:SHOWN]]
        more = f" and {len(value) - SHOWN} more" if len(value) > SHOWN else ""
        return (
            f"{_with_article(name)} with {', '.join(parts)}{more}" if parts else f"an empty {name}"
        )
    if callable(value) and hasattr(value, "__qualname__") and not isinstance(value, nn.Module):
        inner = value.__qualname__.rpartition(".")[2]
        return "a lambda" if inner == "<lambda>" else f"the function {inner}"
    shape = getattr(value, "shape", None)
    if type(value).__module__ == "numpy" and isinstance(shape, tuple):
        return f"a {shape} {name} of {getattr(value, 'dtype', 'numbers')}"
    return _with_article(name)


def _with_article(name: str) -> str:
    # Of several capitals the first is read as a letter: an SGD.
    vowels = "AEFHILMNORSX" if name[:2].isupper() else "AEIOaeio"
    return f"{'an' if name[:1] in vowels else 'a'} {name}"


def some(names: list[str]) -> str:
    """Join the first names, and say how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def short(value: object) -> str:
    """Return the ``repr`` of a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
