"""Prepare a model for production: fold it, give other tools layers they know, check and time it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from normkit.handle import Changed, Handle, Skipped, Step
from normkit.statistics.batches.run_model import Forward
from normkit.surgery.convert import convert
from normkit.surgery.fold.attributes import preserve_attributes
from normkit.surgery.fold.fold import check_arguments, fold_model
from normkit.surgery.fold.passes import Passes
from normkit.surgery.fold.timing import Timing, compare_times

__all__ = ["Deployment", "deploy"]


class Deployment(Handle):
    """Handle of :func:`deploy`: prints the times too.

    Attributes:
        times: milliseconds of an evaluation before and after, of one sample and of the example.
    """

    def __init__(
        self,
        changed: Sequence[Changed],
        skipped: Sequence[Skipped],
        steps: Sequence[Step],
        notes: Sequence[str],
        times: Sequence[Timing],
    ) -> None:
        rows = [f"evaluation of {time}" for time in times]
        super().__init__("deploy", changed, skipped, steps, [*notes, *rows])
        self.times = tuple(times)


def deploy(
    model: nn.Module, example: Any, *, for_tools: bool = False, forward: Forward | None = None
) -> Deployment:
    """Prepare a model for evaluation in production, in place, and time what it brings.

    Folds batch normalization into neighbouring layers (:func:`normkit.fold`); with ``for_tools``,
    turns the layers of this package that are left into those of ``torch.nn``
    (``normkit.convert(model, "torch")``), which every exporter and compiler knows; compares the
    outputs on the example, in float64, with those at first; and times both versions in turn.

    Args:
        model: any module in evaluation mode, as :func:`normkit.fold` takes it.
        example: a batch, best of the size that is served.
        for_tools: leave no layer of this package.
        forward: function that runs the model on the example, ``forward(model, example)``.

    Returns:
        A handle: ``print`` shows what was changed and left, and the times; ``.times`` holds
        these. ``.undo()`` restores the model.

    Raises:
        TypeMismatchError, OptionError, StatisticsError, DataError: as :func:`normkit.fold`. The
            model is unchanged then.

    >>> import torch, normkit
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), normkit.BatchNorm2d(8, act="relu"),
    ...                       normkit.GroupNorm(2, 8)).eval()
    >>> handle = deploy(model, torch.randn(4, 3, 8, 8), for_tools=True)
    >>> print(handle)
    deploy: 2 changed, 0 skipped
      1  normkit.BatchNorm2d → nn.ReLU: into 0
      2  normkit.GroupNorm → nn.GroupNorm
      ...
      evaluation of 1 sample: ... ms (... ×)
      evaluation of 4 samples: ... ms (... ×)
    """
    check_arguments(model, "deploy", example, forward)
    passes = Passes(model, example, forward)
    try:
        before = copy.deepcopy(model)
    except Exception as error:
        before, why_not_timed = None, f"not timed, as the model cannot be copied: {error}"
    handles = [fold_model(model, passes)]
    times: list[Timing] = []
    try:
        if for_tools:
            with warnings.catch_warnings():  # the handle lists what stays
                warnings.simplefilter("ignore", UserWarning)
                # The example shows which layers are called with a residual.
                back = convert(model, "torch", batches=[example], forward=forward)
            handles.append(back)
        apart = passes.check(rounded=True)
        if before is not None:
            with preserve_attributes(model):
                times = compare_times(before, model, example, forward)
    except BaseException:
        for handle in reversed(handles):
            handle.undo()
        raise
    notes = [note for handle in handles for note in handle._notes]
    if passes.wide:
        notes.insert(0, f"outputs on the example differ by {apart:.0e} if computed in float64")
    if before is None:
        notes.append(why_not_timed)
    return Deployment(
        [row for handle in handles for row in handle.changed],
        [row for handle in handles for row in handle.skipped],
        [_undoing(handle) for handle in handles],
        notes,
        times,
    )


def _undoing(handle: Handle) -> Step:
    """Return a step that was made already and is undone by a handle."""
    return Step(lambda: None, lambda: handle.undo())
