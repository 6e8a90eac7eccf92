"""Try folds in float64, each by itself and all together, before anything is changed for good."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from normkit.handle import Skipped, Step
from normkit.nn.foreign import ForeignMixin
from normkit.nn.freezing import base_class
from normkit.nn.layer import Layer
from normkit.statistics.layers.preserve import preserve_buffers
from normkit.surgery.fold.checks import distance, replay, rounding
from normkit.surgery.fold.hosts import Merged, is_host, tensor_table
from normkit.surgery.fold.norms import is_candidate, why_not_affine
from normkit.surgery.fold.operations import NotExactError
from normkit.surgery.fold.passes import Passes
from normkit.surgery.fold.plan import Context, Merge, find_merge, tensor_owners
from normkit.surgery.fold.recording import record
from normkit.surgery.fold.steps import merge_step, remains, what_remains
from normkit.surgery.fold.values import Recording
from normkit.surgery.modules import walk

__all__ = ["Fold", "try_folds"]


class Fold(NamedTuple):
    """One fold that passed its check: what is merged, the layer's class, and what is left of it."""

    merge: Merge
    cls: type[nn.Module]
    rest: nn.Module

    def step(self) -> Step:
        """Return the step that makes it."""
        return merge_step(self.merge.name, self.merge.module, self.rest, self.merge.hosts)


def try_folds(model: nn.Module, passes: Passes) -> tuple[list[Fold], list[Skipped], Recording]:
    """Return the folds that are exact, the layers left and why, and the pass they were found in.

    The model is as it was at the end.

    Raises:
        StatisticsError: each fold is right and all together are not.
    """
    dtypes = {id(tensor): tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    steps: list[Step] = []
    with passes.precision(), preserve_buffers(model):
        with passes.leaving_nothing():
            recording = record(model, passes.output, _is_recorded)
        passes.types = recording.dtypes
        context = Context(recording, tensor_owners(model), {})
        try:
            folds, skipped = _try_each(model, context, dtypes, steps)
            if folds:
                passes.check()
        finally:
            for step in reversed(steps):
                step.undo()
    return folds, skipped, recording


def _is_recorded(module: nn.Module) -> bool:
    # What this package computes by kernels, a recording may not see.
    return is_host(module) or isinstance(module, (Layer, ForeignMixin, nn.RMSNorm))


def _allowed(recording: Recording) -> float:
    """Return what may be rounding, by the narrowest type that occurs."""
    return max((rounding(dtype) for dtype in recording.dtypes), default=0.0)


def _try_each(
    model: nn.Module, context: Context, dtypes: dict[int, torch.dtype], steps: list[Step]
) -> tuple[list[Fold], list[Skipped]]:
    order = {identity: i for i, identity in enumerate(context.recording.calls)}
    waiting = [(name, module) for name, module in walk(model) if is_candidate(module)]
    waiting.sort(key=lambda each: order.get(id(each[1]), len(order)))
    folds: list[Fold] = []
    while True:
        skipped: list[Skipped] = []
        again: list[tuple[str, nn.Module]] = []
        for name, module in waiting:
            cls = base_class(type(module))
            try:
                fold = _find(name, module, context)
                _make(fold, context, dtypes, steps)
            except NotExactError as error:
                skipped.append(Skipped(name, cls, str(error)))
                again.append((name, module))
            else:
                folds.append(fold)
                context.folded[id(module)] = what_remains(fold.rest)
        # A fold may open the way for another, such as for the second of two in a row.
        if len(again) == len(waiting):
            return folds, skipped
        waiting = again


def _find(name: str, module: nn.Module, context: Context) -> Fold:
    """Find where a layer can be folded.

    Raises:
        NotExactError: nowhere.
    """
    if (why := why_not_affine(module)) is not None:
        raise NotExactError(why)
    rest = remains(module, context.recording.calls.get(id(module), [])).eval()
    merge = find_merge(name, module, what_remains(rest), context)
    return Fold(merge, base_class(type(module)), rest)


def _make(fold: Fold, context: Context, dtypes: dict[int, torch.dtype], steps: list[Step]) -> None:
    """Make a fold and check it, with the weights in float64 and rounded to their type.

    Raises:
        NotExactError: it is wrong, and was reverted.
    """
    merge = fold.merge
    before = replay(merge.targets, merge.sources)
    rounded = {
        name: (host, _rounded(host, merged, merge.module, dtypes))
        for name, (host, merged) in merge.hosts.items()
    }
    layers = [merge.module, *(host for host, _ in rounded.values())]
    types = {dtypes.get(id(t), t.dtype) for layer in layers for t in _tensors(layer)}
    allowed = _allowed(context.recording)
    units = max((rounding(dtype) for dtype in types if dtype.is_floating_point), default=allowed)
    for hosts, limit in ((rounded, max(units, allowed)), (merge.hosts, allowed)):
        step = merge_step(merge.name, merge.module, fold.rest, hosts)
        step.do()
        try:
            apart = distance(before, replay(merge.targets, merge.sources))
        except Exception as error:
            step.undo()
            raise NotExactError(f"folded, it raises {type(error).__name__}") from error
        if not apart <= limit:
            step.undo()
            raise NotExactError(f"folded, it differs by {apart:.0e} of the largest value")
        if hosts is rounded:
            step.undo()
    steps.append(step)


def _tensors(host: nn.Module) -> list[Tensor]:
    return [*host.parameters(recurse=False), *host.buffers(recurse=False)]


def _rounded(
    host: nn.Module, merged: Merged, module: nn.Module, dtypes: dict[int, torch.dtype]
) -> Merged:
    """Return merged weights as they are in the type of the layer, or of the one that is folded.

    Raises:
        NotExactError: they are too large for it.
    """
    types = [dtypes[id(t)] for t in (*_tensors(host), *_tensors(module)) if id(t) in dtypes]
    dtype = next((each for each in types if each.is_floating_point), torch.float64)
    result: list[Tensor | None] = []
    for name, value in zip(merged._fields, merged, strict=True):
        tensor = tensor_table(host, name).get(name)
        own_type = dtype if tensor is None else dtypes.get(id(tensor), dtype)
        narrow = None if value is None else value.to(own_type).double()
        if narrow is not None and not bool(narrow.isfinite().all()):
            raise NotExactError(f"the {name} that it would need is too large for {own_type}")
        result.append(narrow)
    return Merged(*result)  # type: ignore[arg-type]
