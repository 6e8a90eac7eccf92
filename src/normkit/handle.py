"""What a function that changes a model returns: what it did, what it left, and the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["SHOWN", "Changed", "Handle", "Left", "Step", "kind", "place_name", "run"]

# Rows of each part of the printed table; all of them stand in the attributes.
SHOWN = 20


class Changed(NamedTuple):
    """One layer that was changed.

    ``name`` is its first place in the model (empty for the model itself), ``before`` and
    ``after`` are its classes, ``fused`` names the activation modules computed with it, and
    ``note`` says what else was done.
    """

    name: str
    before: type
    after: type
    fused: tuple[str, ...] = ()
    note: str = ""


class Left(NamedTuple):
    """One module that was left as it is: its first place, its class, and why."""

    name: str
    type: type
    why: str


class Step(NamedTuple):
    """One change and its reverse, which says why it could not be made, if so."""

    do: Callable[[], None]
    undo: Callable[[], Left | None]


class Handle:
    """What was done to a model: printed as a table, taken back by :meth:`undo`.

    Attributes:
        changed: one row for each layer changed.
        left: one row for each module that was left although it might have been expected.
    """

    def __init__(
        self, verb: str, changed: Sequence[Changed], left: Sequence[Left], steps: Sequence[Step]
    ) -> None:
        self.changed = tuple(changed)
        self.left = tuple(left)
        self._verb = verb
        self._steps = tuple(steps)

    def undo(self) -> None:
        """Put back what was. Weights, buffers and hooks stay as they are by now.

        What has been changed by others since is left, with a warning that names it. A second
        call does nothing.
        """
        steps, self._steps = self._steps, ()
        kept = [found for step in reversed(steps) if (found := step.undo()) is not None]
        if kept:
            names = "; ".join(f"{place_name(k.name)} ({kind(k.type)}): {k.why}" for k in kept)
            warnings.warn(f"undo left what is no longer as {self._verb} made it: {names}",
                          stacklevel=2)  # fmt: skip

    def __repr__(self) -> str:
        fused = sum(len(row.fused) for row in self.changed)
        head = f"{self._verb}: {len(self.changed)} changed" + (f", {fused} fused" if fused else "")
        done = [(place_name(row.name), _told(row)) for row in self.changed]
        left = [(place_name(k.name), f"{kind(k.type)} left: {k.why}") for k in self.left]
        return "\n".join([f"{head}, {len(self.left)} left", *_table(done), *_table(left)])


def run(steps: Sequence[Step]) -> None:
    """Make all changes, or none if one of them raises."""
    made: list[Step] = []
    try:
        for step in steps:
            made.append(step)
            step.do()
    except BaseException:
        for step in reversed(made):
            step.undo()
        raise


def kind(cls: type) -> str:
    """A class as people name it: ``nn.ReLU``, ``normkit.BatchNorm2d``, ``package.module.Name``."""
    module = cls.__module__
    for package, short in (("torch.nn.modules", "nn"), ("normkit.nn", "normkit")):
        if module.startswith(package + "."):
            return f"{short}.{cls.__qualname__}"
    return f"{module}.{cls.__qualname__}"


def place_name(name: str) -> str:
    """A place in a model as people read it."""
    return name or "(the model)"


def _told(row: Changed) -> str:
    told = " → ".join(dict.fromkeys((kind(row.before), kind(row.after))))
    return told + "".join(f" + {name}" for name in row.fused) + (row.note and f": {row.note}")


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows[:SHOWN]), default=0)
    lines = [f"  {name:{width}}  {text}" for name, text in rows[:SHOWN]]
    return lines if len(rows) <= SHOWN else [*lines, f"  … and {len(rows) - SHOWN} more"]
