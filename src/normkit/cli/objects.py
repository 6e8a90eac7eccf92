"""Import objects of the user, named ``package.module:attribute`` as for web servers."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from normkit.errors import OptionError, message
from normkit.statistics.printing.describe import describe

__all__ = ["call_or_return", "find_object", "search_here"]

_SHOWN = 8


def search_here() -> None:
    """Let Python import from the current directory first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def find_object(name: str, option: str) -> Any:
    """Import the object called ``name``, from the current directory first.

    Raises:
        OptionError: ``name`` has another form, its module or attribute does not exist, or its
            module ends the program. Errors inside the user's module pass through.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        stem = module_name.removesuffix(".py") or "train"
        raise OptionError(
            message(
                f"package.module:attribute for {option}",
                name or "an empty text",
                f"pass e.g. {_typed(option)}{_module_of(stem)}:{attribute or 'model'}",
            )
        )
    search_here()
    try:
        with _user_code(f"importing {module_name} for {option}", module_name):
            value = importlib.import_module(module_name)
    except (ModuleNotFoundError, TypeError) as error:
        # A TypeError: a relative name.
        inside = isinstance(error, ModuleNotFoundError) and not _is_part(error.name, module_name)
        if inside or (isinstance(error, TypeError) and not module_name.startswith(".")):
            raise
        missing = getattr(error, "name", None) or module_name
        raise _no_module(module_name, attribute, option, missing) from None
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise OptionError(
                message(
                    f"an attribute of {module_name} for {option}",
                    f"{attribute}, but {module_name} has no {part}",
                    _choices(value, part),
                )
            )
        value = getattr(value, part)
    return value


def _typed(option: str) -> str:
    """Return an option as it stands before its value; an argument has no name there."""
    return f"{option} " if option.startswith("-") else ""


def _is_part(missing: str | None, module_name: str) -> bool:
    """Return whether the missing module is the one that was named, or a package of it."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _module_of(path: str) -> str:
    """Return a path without its ending as a module's name."""
    return ".".join(part for part in Path(path).parts if part not in (".", "/"))


def _no_module(module_name: str, attribute: str, option: str, missing: str) -> OptionError:
    expected = f"a module for {option} that can be imported from {Path.cwd()}"
    if module_name.endswith(".py") or "/" in module_name:
        path = Path(module_name)
        inside = not path.is_absolute() and ".." not in path.parts
        name = _module_of(str(path.with_suffix(""))) if inside else path.stem
        fix = f"pass {_typed(option)}{name}:{attribute}, without .py"
        fix += "" if inside else f", in the folder {path.parent}"
        there = "which is a file" if path.exists() else "but there is no such file"
        return OptionError(message(expected, f"{module_name}, {there}", fix))
    return OptionError(
        message(
            expected,
            f"{module_name}, but there is no {missing} here nor installed",
            "run normkit in the folder that contains it",
        )
    )


def _choices(value: object, wanted: str) -> str:
    """Name what ``value`` has, what is like ``wanted`` first; imported modules are not meant."""
    names = [
        name
        for name, each in vars(value).items()
        if not name.startswith("_") and not isinstance(each, ModuleType)
    ] if hasattr(value, "__dict__") else []  # fmt: skip
    if not names:
        return "define it there"
    lower = difflib.get_close_matches(wanted.lower(), map(str.lower, names), n=_SHOWN, cutoff=0.7)
    close = [name for name in names if name.lower() in lower]
    shown = close or names[:_SHOWN]
    more = f" and {len(names) - _SHOWN} more" if not close and len(names) > _SHOWN else ""
    return f"choose one of: {', '.join(shown)}{more}"


@contextlib.contextmanager
def _user_code(doing: str, name: str) -> Iterator[None]:
    """Let errors pass, with a note on what was being done; but a script must not end normkit.

    Raises:
        OptionError: the code ends the program.
    """
    try:
        yield
    except SystemExit as error:
        raise OptionError(
            message(
                f"{name} to return when it is used from another program",
                f"sys.exit({error.code!r}) while {doing}",
                'put what only a script does under if __name__ == "__main__":',
            )
        ) from error
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(f"normkit: raised while {doing}.")
        raise


def call_or_return(value: Any, is_one: Callable[[Any], bool], what: str, option: str) -> Any:
    """Return ``value`` if it satisfies ``is_one``, else the result of calling it.

    Raises:
        OptionError: neither ``value`` nor its result satisfies ``is_one``, it needs arguments, or
            it ends the program. Other errors inside it pass through.
    """
    expected = f"{what} for {option}, or a function without arguments that returns one"
    if is_one(value):
        return value
    if not callable(value):
        raise OptionError(message(expected, describe(value), "write such a function"))
    name = getattr(value, "__name__", type(value).__name__)
    needed = _needed(value)
    if needed:
        raise OptionError(
            message(
                expected,
                f"{name}({', '.join(needed)}), which needs arguments",
                f"write a function without arguments: def make(): return {name}(...)",
            )
        )
    with _user_code(f"calling {name}() for {option}", f"{name}()"):
        result = value()
    if not is_one(result):
        raise OptionError(
            message(expected, f"{name}(), which returns {describe(result)}", "return one")
        )
    return result


def _needed(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a function cannot be called without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in function
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
