"""Passes of a model on an example, and what they may differ by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import StatisticsError, message
from normkit.statistics.batches.run_model import Forward, run_model
from normkit.statistics.layers.preserve import preserve_buffers, preserve_rng, run_eagerly
from normkit.surgery.fold.attributes import preserve_attributes
from normkit.surgery.fold.checks import distance, in_float64, rounding, to_float64
from normkit.surgery.fold.values import output_tensors

__all__ = ["Passes"]

# Units in the last place by which the whole model may differ where nothing tells its own rounding.
_WHOLE = 128
# Times the rounding of the model itself.
_FACTOR = 4.0


class Passes:
    """Passes of a model on the example, which leave nothing behind, in two precisions.

    Attributes:
        wide: whether the model runs in float64; not where its code demands another type.
        exact: its outputs in float64, or in its own types where ``wide`` is False.
        types: the floating-point types that occur in such a pass, once it was recorded.
    """

    def __init__(self, model: nn.Module, example: Any, forward: Forward | None) -> None:
        self._model, self._forward = model, forward
        self._example, self._wide_example = example, to_float64(example)
        self.wide, self._inside = True, False
        self.types: set[torch.dtype] = set()
        outputs = self.run()  # an error of the model's own is raised here
        self._own_types = [tensor.dtype for tensor in outputs]
        try:
            with self.precision():
                self.exact = self.run()
        except Exception:
            self.wide, self.exact = False, outputs
        with self.precision():
            self._others = [(other, self._try(other)) for other in other_sizes(self._input())]
        if not self.exact:
            raise StatisticsError(
                message("a model whose output holds a tensor", "one without",
                        "pass forward=, a function that returns the tensors to compare")
            )  # fmt: skip

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Run passes in float64 inside, where the model allows it."""
        with in_float64(self._model) if self.wide else contextlib.nullcontext():
            self._inside = self.wide
            try:
                yield
            finally:
                self._inside = False

    @contextlib.contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """Restore what a pass changes: random state, buffers and other attributes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserve_rng())
            stack.enter_context(preserve_attributes(self._model))
            stack.enter_context(preserve_buffers(self._model))
            stack.enter_context(run_eagerly())
            stack.enter_context(torch.no_grad())
            yield

    def _input(self) -> Any:
        return self._wide_example if self._inside else self._example

    def output(self) -> Any:
        """Run the model and return what it returns."""
        return run_model(self._model, self._input(), self._forward)

    def _try(self, example: Any) -> list[Tensor]:
        """Run the model on another example; return nothing where it takes none such."""
        try:
            with self.leaving_nothing():
                output = run_model(self._model, example, self._forward)
        except Exception:  # whatever a model says of sizes that it was not made for
            return []
        return [t.detach().clone() for t in output_tensors(output)]

    def run(self) -> list[Tensor]:
        """Run the model and return copies of the tensors in its output."""
        with self.leaving_nothing():
            output = self.output()
        return [t.detach().clone() for t in output_tensors(output)]

    def check(self, rounded: bool = False) -> float:
        """Compare the outputs of the model as it is now with those at first, in float64.

        Args:
            rounded: whether weights were rounded to their own type since.

        Raises:
            StatisticsError: they are further apart than rounding explains.
        """
        tensors = (*self._model.parameters(), *self._model.buffers()) if rounded else ()
        types = self.types | {t.dtype for t in tensors if t.is_floating_point()}
        allowed = max((rounding(dtype, _WHOLE) for dtype in types), default=0.0)
        with self.precision():
            apart = distance(self.exact, self._run_folded())
            _raise_if_apart(apart, allowed)
            for other, before in self._others:
                if before and not distance(before, self._try(other)) <= allowed:
                    raise StatisticsError(
                        message("a model that takes the same path for inputs of every size",
                                "one that does not: folded, it is right on the example alone",
                                "fold those parts that do, nk.fold(model.part, an input of it)")
                    )  # fmt: skip
        return apart

    def _run_folded(self) -> list[Tensor]:
        """Run the model with folds made.

        Raises:
            StatisticsError: it does not run.
        """
        try:
            return self.run()
        except Exception as error:
            raise StatisticsError(
                message("a folded model that runs", f"{type(error).__name__}: {error}",
                        "its code may ask a folded layer for something: the model is as it was, "
                        "fold its other parts, nk.fold(model.part, an input of it)")
            ) from error  # fmt: skip

    def check_own(self, before: list[Tensor]) -> str:
        """Compare the outputs of the model in its own types with those before; return the result.

        Raises:
            StatisticsError: they are further apart than rounding explains.
        """
        if [tensor.dtype for tensor in before] != self._own_types:
            raise StatisticsError(
                message("a model that keeps nothing of a pass in float64",
                        "one whose outputs have another type since: a cache outside its modules",
                        "empty that cache, or keep it in an attribute of a module")
            )  # fmt: skip
        # Whole numbers may be those of classes, which rounding changes.
        exact, first, second = (
            [t for t in tensors if t.is_floating_point()]
            for tensors in (self.exact, before, self._run_folded())
        )
        allowed = max((rounding(t.dtype, _WHOLE) for t in first), default=0.0)
        if self.wide:
            allowed = max(allowed, _FACTOR * distance(exact, first))
        apart = distance(exact if self.wide else first, second)
        types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in second}))
        _raise_if_apart(apart, allowed)
        return f"outputs on the example differ by {apart:.0e} in {types}"


def _raise_if_apart(apart: float, allowed: float) -> None:
    """Raise if the outputs of the folded model are too far from what they were.

    Raises:
        StatisticsError: they are.
    """
    if not apart <= allowed:
        raise StatisticsError(
            message(f"a folded model that computes what the model did, to {allowed:.0e}",
                    f"outputs that differ by {apart:.0e} of the largest",
                    "the model is as it was; fold its parts one by one, nk.fold(model.part, "
                    "an input of it)")
        )  # fmt: skip


def other_sizes(example: Any) -> list[Any]:
    """Return examples of other sizes: twice the samples, and axes behind the channels longer by 1.

    >>> [tuple(each.shape) for each in other_sizes(torch.ones(1, 3, 8, 8))]
    [(2, 3, 8, 8), (1, 3, 9, 9)]
    """
    if isinstance(example, (list, tuple)) and example and isinstance(example[0], Tensor):
        return [type(example)([one, *example[1:]]) for one in other_sizes(example[0])
                if not hasattr(example, "_fields")]  # fmt: skip
    if not isinstance(example, Tensor) or example.dim() == 0:
        return []
    longer = example
    for axis in range(2 if example.is_floating_point() else 1, example.dim()):
        longer = torch.cat([longer, longer.narrow(axis, 0, 1)], axis)
    return [torch.cat([example, example]), *([longer] if longer is not example else [])]
