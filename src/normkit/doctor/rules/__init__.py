"""Rules of the doctor, one file each, explained under the same five headings.

To add one, write ``nkNNN_name.py`` with a docstring of those five headings and a function ``check``
that yields findings; nothing else lists it. NK1xx look at the model and the optimizer, NK2xx at
training batches, NK3xx at evaluation batches; the last ten numbers of each hundred are for what
follows from other causes, and comes behind them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import NamedTuple

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

__all__ = ["RULES", "Rule"]


class Rule(NamedTuple):
    """A rule.

    Attributes:
        code: such as "NK104".
        title: the first line of its explanation.
        text: its explanation, with five headings.
        check: yields its findings.
        yields_to: codes of rules whose findings, at the same places, make its own superfluous.
    """

    code: str
    title: str
    text: str
    check: Callable[[Examination], Iterable[Finding]]
    yields_to: tuple[str, ...]


def _rule(module: ModuleType) -> Rule:
    code = module.__name__.rpartition(".")[2].partition("_")[0].upper()
    text = inspect.cleandoc(module.__doc__ or "")
    title = text.splitlines()[0].rstrip(".")
    return Rule(code, title, text, module.check, getattr(module, "YIELDS_TO", ()))


RULES: tuple[Rule, ...] = tuple(
    _rule(importlib.import_module(f"{__name__}.{each.name}"))
    for each in sorted(pkgutil.iter_modules(__path__), key=lambda each: each.name)
    if each.name.startswith("nk")
)
