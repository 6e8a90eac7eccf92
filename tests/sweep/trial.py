"""One call of a tool: its result, its refusal, or a fault."""

from __future__ import annotations

import dataclasses
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import normkit
from tests.sweep.fault import Fault

__all__ = ["CALLS", "Outcome", "SkipTrial", "attempt", "check_words", "compare", "skip"]

PACKAGE = str(Path(normkit.__file__).parent)
# What must not be printed; names of the user's own modules may be private.
ODD_WORDS = {
    "a NaN with a unit": r"\b(nan|inf) [%σ±×]",
    "an exponent with a unit": r"\d\.?\d*e[+-]\d+ [%σ]",
    "markup": r"\[/?(bold|dim|red|green|yellow|cyan)\]",
    "a private name": r"[ .]_(?!orig_mod)[a-z]\w+",
}


CALLS: Counter[str] = Counter()
"""Calls of each tool so far."""


class SkipTrial(Exception):  # noqa: N818
    """The program says nothing about the tool: its model cannot run."""


@dataclasses.dataclass
class Outcome:
    """What came of a call: a result, or the error by which it was refused."""

    result: Any = None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """The refusal, without names and numbers."""
        text = str(self.error).split(";")[0].removeprefix("Expected ")
        text = re.sub(r"\blayer \S*[\d.]\S*", "a layer", text)
        return f"refused: {type(self.error).__name__}: {re.sub(r'[0-9]+', 'n', text)[:70]}"


def skip(why: str) -> None:
    """End a trial that says nothing."""
    raise SkipTrial(why)


def attempt(
    tool: str, call: Callable[[], Any], plainly: Callable[[], Any] | None = None
) -> Outcome:
    """Call a tool; errors that are not the package's own are faults unless the model has them.

    ``plainly`` runs the model without the tool: what fails then is not the tool's fault.
    """
    CALLS[tool] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Outcome(call())
        except normkit.NormkitError as error:
            check_words(tool, str(error))
            return Outcome(None, error)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if f.filename.startswith(PACKAGE)]
            own = not ours or (ours[-1] is not frames[-1] and ours[-1].name == "_call")
            if not ours or (own if plainly is None else _fails(plainly)):
                return Outcome(None, error)
            where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "outside"
            kind = f"raised {type(error).__name__} in {where}"
            raise Fault(tool, kind, str(error)[:200]) from error


def _fails(plainly: Callable[[], Any]) -> bool:
    try:
        plainly()
    except Exception:
        return True
    return False


def check_words(tool: str, text: str) -> None:
    """Refuse what must not be printed: nan, inf, exponents, markup, private names."""
    for what, pattern in ODD_WORDS.items():
        if re.search(pattern, text):
            raise Fault(tool, f"prints {what}", text[:300])


def compare(
    program: Any, tool: str, what: str, value: Tensor, truth: Tensor, scale: Tensor, worse: float
) -> None:
    """Compare with the truth; ``worse``: the factor by which rounding errors grow."""
    eps = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-10}
    allowed = 1000 * eps[program.precision] * worse
    error = _error(value, truth, scale)
    if allowed < 0.1 and not error <= allowed:
        raise Fault(tool, f"wrong {what}", f"off by {error:.3g}, allowed {allowed:.3g}")


def _error(value: Tensor, truth: Tensor, scale: Tensor) -> float:
    if value.shape != truth.shape:
        return torch.inf
    if not value.numel():
        return 0.0
    difference = (value.double() - truth.double()).abs() / scale.double()
    # A model's own NaN, such as a variance of one value, stays one.
    difference = torch.where(value.isnan() & truth.isnan(), 0.0, difference)
    return float(difference.nan_to_num(torch.inf).max())
