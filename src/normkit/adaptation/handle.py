"""Handle of an adapted model: a context manager, with what it saw of the stream."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from torch import nn

from normkit.adaptation.normalizer import MixingNormalizer, PassCounter
from normkit.adaptation.order import Order
from normkit.handle import Changed, Handle, Skipped, Step, place_name
from normkit.nn.adapting import AdaptedMixin, adapted_class
from normkit.statistics.layers.find import NormLayer

__all__ = ["Adaptation", "OrderReport", "adapt_layer", "count_passes", "set_evaluation"]


class OrderReport:
    """Result of the test of order with the smallest probability, and one warning."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the results; the warning stays the only one."""
        self.worst: Order | None = None
        self.layer = ""

    def __call__(self, layer: str, result: Order) -> None:
        """Take the result of one layer."""
        with self._lock:
            if self.worst is None or self.worst.ordered < result.ordered or (
                self.worst.ordered == result.ordered
                and (result.probability, -result.ratio)
                < (self.worst.probability, -self.worst.ratio)
            ):  # fmt: skip
                self.worst, self.layer = result, layer
            if not result.ordered or self._warned:
                return
            self._warned = True
        warnings.warn(
            f"the stream looks ordered: the variance between the means of {result.groups} batches "
            f"is {result.ratio:.1f} times that of a shuffled stream, and "
            f"{100 * result.share:.0f} % of the whole (at {place_name(layer)}; chance gives so "
            f"much with probability {max(result.probability, 1e-12):.0e} at most). Where batches "
            "are sorted by label, their statistics remove what tells the classes apart: shuffle "
            "them, use prior=256 and memory=math.inf, or evaluate without adapt. Where they are "
            "of several domains, each mixed, ignore this",
            stacklevel=_levels_to_user(),
        )


def _levels_to_user() -> int:
    """Return the ``stacklevel`` of the first frame that is neither this package's nor torch's."""
    frame, level = sys._getframe(1), 1
    while (outer := frame.f_back) is not None and (
        frame.f_globals.get("__name__", "").split(".")[0] in ("normkit", "torch", "contextlib")
    ):
        frame, level = outer, level + 1
    return level


class Adaptation(Handle):
    """Handle of :func:`normkit.adapt` and its relatives; as a context manager it undoes on exit.

    Attributes:
        changed: one row for each adapted layer.
        skipped: one row for each layer that was left, and why.
    """

    def __init__(
        self,
        verb: str,
        changed: Sequence[Changed],
        skipped: Sequence[Skipped],
        steps: Sequence[Step],
        notes: Sequence[str] = (),
        *,
        order: OrderReport | None = None,
        resets: Sequence[Callable[[], None]] = (),
    ) -> None:
        super().__init__(verb, changed, skipped, steps, notes)
        self._order = order or OrderReport()
        self._resets = tuple(resets)

    @property
    def order(self) -> Order | None:
        """Strongest evidence so far that the stream is ordered; None before four batches."""
        return self._order.worst

    def reset(self) -> None:
        """Return to the state right after the call: what was seen of the stream is forgotten."""
        self._order.reset()
        for each in self._resets:
            each()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _rows(self) -> list[str]:
        rows = super()._rows()
        if (result := self.order) is not None:
            rows.append(
                f"  order: batch means spread {result.ratio:.2f} times as far as shuffled "
                f"(p = {result.probability:.2g}, {result.groups} batches)"
            )
        return rows


def adapt_layer(one: NormLayer, normalizer: MixingNormalizer) -> Step:
    """Return the step that makes a layer normalize by ``normalizer``."""
    layer, before = one.layer, type(one.layer)

    def do() -> None:
        object.__setattr__(layer, "__class__", adapted_class(before))
        vars(layer)["_normalizer"] = normalizer

    def undo() -> Skipped | None:
        if vars(layer).get("_normalizer") is normalizer:
            del vars(layer)["_normalizer"]
        if not isinstance(layer, AdaptedMixin):
            same = type(layer) is before
            return None if same else Skipped(one.name, type(layer), "its class was changed again")
        if type(layer) is not adapted_class(before):
            return Skipped(one.name, type(layer), "its class was changed again")
        object.__setattr__(layer, "__class__", before)
        return None

    return Step(do, undo)


def count_passes(model: nn.Module, counter: PassCounter) -> Step:
    """Return the step that counts the passes of ``model``."""
    hooks: list[Any] = []

    def do() -> None:
        hooks.append(model.register_forward_pre_hook(counter))

    def undo() -> None:
        while hooks:
            hooks.pop().remove()

    return Step(do, undo)


def set_evaluation(model: nn.Module) -> Step:
    """Return the step that puts ``model`` into evaluation mode; its reverse restores each mode."""
    modes: list[tuple[nn.Module, bool]] = []

    def do() -> None:
        for module in model.modules():
            modes.append((module, module.training))
            # The flag itself: a train() may do more, which would not be undone.
            module.training = False

    def undo() -> None:
        while modes:
            module, training = modes.pop()
            module.training = training

    return Step(do, undo)
