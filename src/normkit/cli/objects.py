"""Import objects of the user, named ``package.module:attribute`` as for web servers."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normkit.errors import OptionError, message

__all__ = ["call_or_return", "find_object"]


def find_object(name: str, option: str) -> Any:
    """Import the object called ``name``, from the current directory first.

    Raises:
        OptionError: ``name`` has another form, or its module or attribute does not exist. Errors
            inside the user's module pass through.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise OptionError(
            message(
                f"package.module:attribute for {option}", name, f"pass e.g. {option} train:model"
            )
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        stem = module_name.removesuffix(".py")
        raise OptionError(
            message(
                f"a module for {option} that can be imported from {here}",
                f"{module_name}, but there is no {error.name} here nor installed",
                "run normkit in the folder that contains it"
                if stem == module_name
                else f"pass {stem}:{attribute}, without .py",
            )
        ) from None
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = ", ".join(n for n in vars(value) if not n.startswith("_"))
            raise OptionError(
                message(
                    f"an attribute of {module_name} for {option}",
                    f"{attribute}, but {module_name} has no {part}",
                    f"choose one of: {public}" if public else "define it there",
                )
            )
        value = getattr(value, part)
    return value


def call_or_return(value: Any, is_one: Callable[[Any], bool], what: str, option: str) -> Any:
    """Return ``value`` if it satisfies ``is_one``, else the result of calling it.

    Raises:
        OptionError: neither ``value`` nor its result satisfies ``is_one``, or it needs arguments.
    """
    expected = f"{what} for {option}, or a function without arguments that returns one"
    if is_one(value):
        return value
    if not callable(value):
        raise OptionError(message(expected, f"a {type(value).__name__}", "write such a function"))
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        fix = "write a function that passes them"
        raise OptionError(message(expected, f"{value!r}, which needs arguments", fix)) from None
    result = value()
    if not is_one(result):
        raise OptionError(
            message(expected, f"{value!r}, which returns a {type(result).__name__}", "return one")
        )
    return result
