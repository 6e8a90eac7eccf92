"""Former path of :mod:`normkit.integrations.lightning`, kept for programs that import it."""

from __future__ import annotations

import importlib
from typing import Any

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # a tool that looks at modules, such as doctest, wants no Lightning
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # At the time of use: nothing of lightning is imported before, and statistics needs none of it.
    return getattr(importlib.import_module("normkit.integrations.lightning"), name)
