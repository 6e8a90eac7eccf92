"""Handles: what a function changed in a model, what it skipped and why, and how to undo it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "SHOWN",
    "Changed",
    "Handle",
    "Skipped",
    "Step",
    "kind",
    "list_skipped",
    "place_name",
    "run",
    "table",
    "warn_skipped",
]

# Rows of each part of the printed table; the attributes hold all of them.
SHOWN = 20

# Rows within a sentence.
LISTED = 5

# Reasons in the first line, where nothing was changed.
REASONS = 3


class Changed(NamedTuple):
    """One layer that was changed.

    ``name`` is its first name in the model (empty for the model itself), ``before`` and
    ``after`` are its classes, ``fused`` names the activation modules computed with it, and
    ``note`` describes other changes.
    """

    name: str
    before: type
    after: type
    fused: tuple[str, ...] = ()
    note: str = ""


class Skipped(NamedTuple):
    """One module that was not changed: its first name in the model, its class, and why."""

    name: str
    type: type
    why: str


class Step(NamedTuple):
    """One change and its reverse, which returns a row if it cannot be made."""

    do: Callable[[], None]
    undo: Callable[[], Skipped | None]


class Handle:
    """Changes made to a model: prints as a table, and :meth:`undo` reverts them.

    Attributes:
        changed: one row for each changed layer.
        skipped: one row for each module that was not changed although a reader might expect it.
    """

    def __init__(
        self,
        verb: str,
        changed: Sequence[Changed],
        skipped: Sequence[Skipped],
        steps: Sequence[Step],
        notes: Sequence[str] = (),
    ) -> None:
        self.changed = tuple(changed)
        self.skipped = tuple(skipped)
        self._verb = verb
        self._steps = list(steps)
        self._notes = tuple(notes)
        self._undone = False

    @property
    def left(self) -> tuple[Skipped, ...]:
        """Former name of ``skipped``."""
        return self.skipped

    def undo(self) -> None:
        """Revert the changes. Weights, buffers and hooks keep their present values.

        A layer that other code has changed since is skipped, with a warning that names it. A
        second call does nothing, or continues after an error of other code within the first.
        """
        skipped: list[Skipped] = []
        while self._steps:
            if (row := self._steps.pop().undo()) is not None:
                skipped.append(row)
        self._undone = True
        warn_skipped(f"undo of {self._verb}", skipped)

    def __repr__(self) -> str:
        return "\n".join([self._head(), *self._rows()])

    def __rich__(self) -> Any:
        """Return the table for ``rich.print``, where a change that could not be made stands out."""
        from rich.text import Text

        head = Text(self._head(), style="" if self.changed else "yellow")
        return Text("\n").join([head, *map(Text, self._rows())])

    def _head(self) -> str:
        head = "undone: " if self._undone else ""
        if not self.changed:
            counts = Counter(row.why for row in self.skipped)
            reasons = [f"{n} × {why}" if n > 1 else why for why, n in counts.most_common(REASONS)]
            more = [f"{len(counts) - REASONS} more reasons"] if len(counts) > REASONS else []
            reason = "; ".join([*reasons, *more]) or "nothing to change"
            return f"{head}0 changed by {self._verb}: {reason}"
        fused = sum(len(row.fused) for row in self.changed)
        head += f"{self._verb}: {len(self.changed)} changed" + (f", {fused} fused" if fused else "")
        return f"{head}, {len(self.skipped)} skipped"

    def _rows(self) -> list[str]:
        changed = [(place_name(row.name), _describe(row)) for row in self.changed]
        skipped = [(place_name(k.name), f"{kind(k.type)} skipped: {k.why}") for k in self.skipped]
        return [*table(changed), *table(skipped), *(f"  {note}" for note in self._notes)]


def run(steps: Sequence[Step]) -> None:
    """Make all changes, or none if one of them raises."""
    begun: list[Step] = []
    try:
        for step in steps:
            begun.append(step)
            step.do()
    except BaseException:
        for step in reversed(begun):
            step.undo()
        raise


def list_skipped(skipped: Sequence[Skipped]) -> str:
    """List modules that were skipped, and why, within a sentence.

    >>> list_skipped([Skipped("", object, "frozen"), *[Skipped("1", object, "lazy")] * 6])
    '(the model): frozen; 1: lazy; 1: lazy; 1: lazy; 1: lazy; and 2 more'
    """
    rows = [f"{place_name(row.name)}: {row.why}" for row in skipped[:LISTED]]
    more = [f"and {len(skipped) - LISTED} more"] if len(skipped) > LISTED else []
    return "; ".join([*rows, *more])


def warn_skipped(verb: str, skipped: Sequence[Skipped], stacklevel: int = 2) -> None:
    """Warn of modules that were skipped, where no handle is returned that would list them."""
    if skipped:
        rows = [f"{place_name(k.name)} ({kind(k.type)}): {k.why}" for k in skipped[:SHOWN]]
        more = [f"and {len(skipped) - SHOWN} more"] if len(skipped) > SHOWN else []
        warnings.warn(f"{verb} skipped {'; '.join([*rows, *more])}", stacklevel=stacklevel + 1)


def kind(cls: type) -> str:
    """Return a class's usual name, such as ``nn.ReLU`` or ``package.module.Name``."""
    module = cls.__module__
    for package, short in (("torch.nn.modules", "nn"), ("normkit.nn", "normkit")):
        if module.startswith(package + "."):
            return f"{short}.{cls.__qualname__}"
    return f"{module}.{cls.__qualname__}"


def place_name(name: str) -> str:
    """Return a module's name in its model as tables show it."""
    return name or "(the model)"


def _describe(row: Changed) -> str:
    classes = " → ".join(dict.fromkeys((kind(row.before), kind(row.after))))
    fused = "".join(f", fused with {name}" for name in row.fused)
    return classes + fused + (row.note and f": {row.note}")


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of two aligned columns: names, and what happened there; the first few rows."""
    width = max((len(name) for name, _ in rows[:SHOWN]), default=0)
    lines = [f"  {name:{width}}  {text}" for name, text in rows[:SHOWN]]
    return lines if len(rows) <= SHOWN else [*lines, f"  … and {len(rows) - SHOWN} more"]
