"""Programs: a model, what was done to it, and its batches, as lines that are printed and run."""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from collections import Counter
from typing import Any

import normkit
from tests.sweep import pieces
from tests.sweep.trial import PACKAGE, SkipTrial

__all__ = ["COUNTS", "Built", "Program"]

COUNTS: Counter[str] = Counter()
"""Models built so far."""


@dataclasses.dataclass(frozen=True)
class Built:
    """The objects that a program defines."""

    model: Any
    inputs: list[Any]
    batches: Any


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A model, what was done to it, and batches for it, as lines of Python."""

    definitions: tuple[str, ...]
    model: str
    changes: tuple[str, ...]
    inputs: str
    batches: str

    @property
    def dtype(self) -> str:
        """The type of the inputs."""
        return self.inputs.rpartition("torch.")[2].rstrip(")")

    @property
    def precision(self) -> str:
        """The type that limits how exact results are."""
        narrow = self.dtype == "float64" and "half_norm" in str(self)
        return "float32" if narrow else self.dtype

    @property
    def clean(self) -> bool:
        """True if nothing is odd: to refuse it would be wrong."""
        return (
            len(self.changes) == 1
            and self.inputs.startswith(("data((6, 6, 6)", "data((16,"))
            and any(value in self.inputs for value in ("'normal'", "'unlike'"))
            and self.dtype in ("float64", "float32")
            and not any(word in self.model for word in ("Domain", "Holds", "Lazy"))
        )

    def call(self, model: Any, x: Any) -> Any:
        """Run the model on one batch's input."""
        if "TwoInputs(" in self.model:
            return model(x, pieces.scales(x))
        return model(x=x) if "Variadic(" in self.model else model(x)

    def __str__(self) -> str:
        return "\n".join(
            [
                "from tests.sweep.pieces import *",
                "torch.manual_seed(0)",
                *self.definitions,
                f"model = {self.model}",
                *self.changes,
                f"inputs = {self.inputs}",
                f"batches = {self.batches}",
            ]
        )

    def __repr__(self) -> str:
        return f"\n{self}\n"

    def build(self) -> Built:
        """Run the lines.

        Raises:
            SkipTrial: normkit refuses what the program asks for.
        """
        COUNTS["built"] += 1
        names: dict[str, Any] = {name: getattr(pieces, name) for name in pieces.__all__}
        text = str(self).partition("\n")[2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                exec(compile(text, "<program>", "exec"), names)
            except normkit.NormkitError as error:
                raise SkipTrial(f"refused when built: {type(error).__name__}") from error
            except Exception as error:
                if any(
                    f.filename.startswith(PACKAGE)
                    for f in traceback.extract_tb(error.__traceback__)
                ):
                    raise
                raise SkipTrial(f"torch refuses it when built: {type(error).__name__}") from error
        return Built(names["model"], list(names["inputs"]), names["batches"])
