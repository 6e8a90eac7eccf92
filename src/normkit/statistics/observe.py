"""A model whose layers are watched while it runs, and run on statistics of our choice.

Each layer runs in evaluation mode and normalizes with what stands in its buffers. In their place
lie buffers of ours for the time, and what a call normalizes with is written into them right
before it: the moments of its own input (as in training), or given ones. So nothing that a layer
does in training can move anything: no average, no count of batches, whatever its momentum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.moments import Moments
from normkit.core.pools import PER_CHANNEL, Pool
from normkit.errors import StatisticsError, explain
from normkit.kernels.moments import moments
from normkit.statistics.batches import Forward, feed, samples_in
from normkit.statistics.estimate import Estimate, LayerStatistics
from normkit.statistics.preserve import (
    buffers_kept,
    in_evaluation,
    random_state_kept,
    uncompiled,
)
from normkit.statistics.stats_layers import Place

__all__ = ["Watch", "watched"]


_WATCHED: set[int] = set()
"""Layers, by identity, that are watched just now."""


class _Enough(BaseException):
    """Every layer has been seen; not an Exception, so that no model takes it for one."""


class Watch:
    """What the layers of a model are given, batch after batch. Made by :func:`watched`."""

    def __init__(self, model: nn.Module, places: Sequence[Place]) -> None:
        self.model = model
        self.places = places
        self.given: Mapping[str, LayerStatistics] = {}
        self.estimates: dict[str, Estimate] = {}
        self._batch: dict[str, list[Moments]] = {}
        self._names = [{row: name for name, row in place.banks} for place in places]
        self._calls: list[int] = []
        self._sequences: list[list[int]] = []  # of the last two batches that went to their end
        self._number = 0
        self._may_stop = self._stopped = False
        # Not where something waits for the end, as what loads weights before a call and lets them
        # go after it.
        self._to_the_end = any(
            module._forward_hooks or "forward" in vars(module) for module in model.modules()
        )
        self.output: Any = None  # of the last batch that was run to the end
        self._first = 0  # samples that the first layer saw

    def start(
        self, given: Mapping[str, LayerStatistics], estimates: dict[str, Estimate] | None = None
    ) -> None:
        """Normalize from now on with ``given``, and what it lacks by its own input's moments.

        What is seen goes into ``estimates``, or into new ones.
        """
        self.given = given
        self.estimates = {} if estimates is None else estimates
        for place, names in zip(self.places, self._names, strict=True):
            # Instance normalization takes its own moments sample by sample, which only it can do;
            # in training mode it does, and remembers them in the buffers that are not its own.
            place.layer.training = place.memory.per == "sample" and not any(
                name in given for name in names.values()
            )

    def run(self, batch: Any, forward: Forward | None, whole: bool = False) -> int:
        """Run the model on a batch; the number of samples in it.

        ``whole``: to its end, for the sake of ``output``; else to the last layer that is watched,
        once it is known which that is.
        """
        self._batch, self._calls, self._first = {}, [], 0
        samples = samples_in(batch)
        if samples == 0:
            return 0
        self._number += 1
        # Who passes a function of their own may want its end to be reached. And batches 1, 2, 4,
        # 8, … tell whether there is more to be seen by now.
        look = forward is not None or whole or self._number & (self._number - 1) == 0
        self._may_stop = not (look or self._to_the_end) and self._repeats()
        try:
            self.output = feed(self.model, batch, forward)
        except _Enough:
            self._stopped = True
        else:
            self._to_the_end |= self._stopped and self._calls != self._sequences[-1]
            self._sequences = [*self._sequences[-1:], self._calls]
        for name, calls in self._batch.items():
            self.estimates[name].add(*calls)
        return self._first if samples is None else samples

    def _repeats(self) -> bool:
        """Whether the last two batches called the same layers in the same order, and all."""
        same = len(self._sequences) == 2 and self._sequences[0] == self._sequences[1]
        return same and len(set(self._sequences[0])) == len(self.places)

    def see(self, index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A layer is about to be called."""
        place = self.places[index]
        layer, memory = place.layer, place.memory
        # By keyword a residual may come first; a third party's layer may call its input otherwise.
        first = args[0] if args else kwargs.get("input")
        others = (v for v in kwargs.values() if isinstance(v, Tensor))
        x = next(others, None) if first is None else first
        if not isinstance(x, Tensor):
            return
        values = memory.values(layer, x.detach())
        bank = memory.bank(layer)
        name = self._names[index][bank]
        own = _per_sample(values) if memory.per == "sample" else moments(values, PER_CHANNEL)
        self._first = self._first or len(values)
        if values.numel():
            if name not in self.estimates:
                self.estimates[name] = Estimate(len(own.mean), memory.per == "sample")
            self._batch.setdefault(name, []).append(own)
        self._put(place, bank, own, self.given.get(name))
        self._calls.append(index)
        if self._may_stop and self._calls == self._sequences[-1]:
            raise _Enough

    def _put(
        self, place: Place, bank: int | None, own: Moments, given: LayerStatistics | None
    ) -> None:
        """Write what this call is to be normalized with."""
        if given is None and place.layer.training:
            return
        memory = place.memory
        # Biased to normalize the batch it comes from, as in training.
        variance = own.variance.nan_to_num(1.0) if given is None else given.variance
        names = (memory.mean, memory.var)
        values = (own.mean if given is None else given.mean, variance)
        for name, buffer, value in zip(names, place.tensors, values, strict=True):
            # A new one for each call: a gradient taken within the model may need the former.
            new = buffer.clone()
            (new if bank is None else new[bank]).copy_(value)
            _put_in(place.layer, name, new)


def _put_in(layer: nn.Module, name: str, value: Tensor) -> None:
    """Set a tensor of a layer, a buffer or a parameter."""
    kept = name in layer._parameters and not isinstance(value, nn.Parameter)
    setattr(layer, name, nn.Parameter(value, requires_grad=False) if kept else value)


def _per_sample(values: Tensor) -> Moments:
    """Averages over samples of each sample's mean and unbiased variance, a sample a value."""
    n, c = values.shape[:2]
    found = moments(values, Pool("group", max(c, 1)))
    each = float(values.numel() // max(n * c, 1))
    variance = found.m2.reshape(n, c) / (each - 1)
    count = torch.full((), float(n), dtype=torch.float64, device=found.mean.device)
    return Moments(count, found.mean.reshape(n, c).mean(0), variance.sum(0))


@contextlib.contextmanager
def watched(model: nn.Module, places: Sequence[Place]) -> Iterator[Watch]:
    """Watch these layers of ``model`` until the end, then leave everything as it was.

    Modes, buffers (the very tensors), hooks, the random state; gradients are off meanwhile and
    dropout with them. Also after an exception, or an interruption.

    Raises:
        StatisticsError: one of the layers is watched already.
    """
    watch = Watch(model, places)
    layers = {id(place.layer) for place in places}
    if layers & _WATCHED:
        raise StatisticsError(
            explain(
                "a model is measured by one at a time",
                f"another measurement of this {type(model).__name__}, from its batches or its "
                "forward",
                "finish the one before the other begins",
            )
        )
    with contextlib.ExitStack() as stack:
        stack.callback(_WATCHED.difference_update, layers)
        _WATCHED.update(layers)
        stack.enter_context(random_state_kept())
        stack.enter_context(uncompiled())
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_evaluation(model))
        stack.enter_context(buffers_kept(model))
        for index, place in enumerate(places):
            for name, usual in ((place.memory.mean, 0.0), (place.memory.var, 1.0)):
                own = getattr(place.layer, name)
                stack.callback(_put_in, place.layer, name, own)
                # What stands there, for a model that reads it and does not call the layer; but
                # finite, as a step away from NaN is NaN.
                stand_in = torch.where(own.isfinite(), own, torch.full_like(own, usual))
                _put_in(place.layer, name, stand_in.detach())

            def see(_: nn.Module, args: Any, kwargs: Any, index: int = index) -> None:
                watch.see(index, args, kwargs)

            # Last, so that what other hooks make of the input is seen.
            hook = place.layer.register_forward_pre_hook(see, with_kwargs=True)
            stack.callback(hook.remove)
        yield watch
