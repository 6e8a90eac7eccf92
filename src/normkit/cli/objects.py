"""Objects of the user's own, named as servers name them: ``package.module:attribute``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normkit.errors import OptionError, explain

__all__ = ["find_object", "made"]


def find_object(name: str, option: str) -> Any:
    """What ``name`` names, looked for in the current directory first.

    Raises:
        OptionError: it is no such name, or nothing has it. What goes wrong inside the user's own
            module is the user's own error.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise OptionError(
            explain(f"{option} is package.module:attribute", name, f"as in {option} train:model")
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise OptionError(
            explain(
                f"{option} names a module that can be imported from here",
                f"{module_name}, and there is no {error.name} in {here} nor among the "
                "installed packages",
                "call normkit from the folder in which it lies",
            )
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = ", ".join(n for n in vars(found) if not n.startswith("_"))
            raise OptionError(
                explain(
                    f"{option} names an attribute that its module has",
                    f"{attribute}, and {module_name} has no {part}",
                    f"choose one of: {public}" if public else "define it there",
                )
            )
        found = getattr(found, part)
    return found


def made(found: Any, is_one: Callable[[Any], bool], what: str, option: str) -> Any:
    """``found`` itself if it is what is wanted, or what it returns, called without arguments.

    Raises:
        OptionError: neither is.
    """
    rule = f"{option} is {what}, or a function without arguments that returns it"
    if is_one(found):
        return found
    if not callable(found):
        raise OptionError(explain(rule, f"a {type(found).__name__}", "write such a function"))
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        raise OptionError(
            explain(rule, f"{found!r}, which needs arguments", "write one that passes them")
        ) from None
    result = found()
    if not is_one(result):
        raise OptionError(
            explain(rule, f"{found!r}, which returns a {type(result).__name__}", "return it")
        )
    return result
