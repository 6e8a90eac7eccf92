"""Which statistics a model's layers use, for as long as a ``with`` block lasts."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.errors import OptionError, StatisticsError, TypeMismatchError, explain
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.held import Held, remembers
from normkit.statistics.preserve import in_evaluation, version_of

__all__ = ["batch_statistics", "use_domain"]


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` with the statistics of each batch, and nothing else changed.

    Within the block the model is in evaluation mode: dropout is off, and no statistic and no
    counter moves. Only its batch and instance normalization layers, ``torch.nn``'s, ours and
    their subclasses, normalize as they do in training: by the batch, by ghost batches, across
    processes; also after ``model.eval()``, with which many functions that evaluate begin. Frozen
    layers go on as they are. Afterwards everything is as it was, after an exception too.

    Args:
        model: any module with a layer that remembers statistics and is not frozen.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        StatisticsError: it has no such layer, or a lazy one that has met no input.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 4.2 (mini-batch statistics at inference).

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
    >>> with batch_statistics(model):
    ...     model(torch.tensor([[1.0], [3.0]])).detach().round(decimals=3)
    tensor([[-1.],
            [ 1.]])
    >>> model.training, model[0].running_mean
    (True, tensor([0.]))
    """
    _check_module(model)
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and remembers(m)]
    if any(isinstance(m, LazyModuleMixin) for m in layers):
        raise StatisticsError(
            explain(
                "a lazy layer normalizes from its first input on",
                "one that has met none",
                "run the model once on any batch",
            )
        )
    moving = [layer for layer in layers if not isinstance(layer, Held)]
    if not moving:
        raise StatisticsError(
            explain(
                "batch_statistics needs a batch or instance normalization that remembers "
                "statistics and is not frozen",
                f"a {type(model).__name__} with {len(layers)} frozen and no other",
                "evaluate it as it is, or normkit.unfreeze(model) first",
            )
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_evaluation(model))
        for layer in moving:
            stack.enter_context(_as_in_training(layer))
            # The flag itself: train() of a layer may do more, and would not be undone by it.
            layer.training = True
        yield


@contextlib.contextmanager
def use_domain(model: nn.Module, domain: int) -> Iterator[None]:
    """Tell all layers of ``model`` that keep statistics by domain which one the batches are of.

    For as long as the block lasts; afterwards they are told what they were told before, after an
    exception too. Blocks may be nested.

    Args:
        model: a module with layers such as :class:`normkit.DomainBatchNorm2d`.
        domain: from 0 to one less than the layers' ``domains``.

    Raises:
        TypeMismatchError: ``model`` is no module, or scripted.
        StatisticsError: it has no such layer.
        OptionError: a layer has no such domain. No layer has been told anything then.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 5.

    >>> from normkit.nn import DomainBatchNorm1d
    >>> model = nn.Sequential(nn.Linear(2, 3), DomainBatchNorm1d(3, domains=2))
    >>> with use_domain(model, 1):
    ...     y = model(torch.randn(8, 2))
    >>> model[1].num_batches_tracked
    tensor([0, 1])
    """
    _check_module(model)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, Domains)]
    if not layers:
        raise StatisticsError(
            explain(
                "use_domain needs a layer that keeps statistics by domain",
                f"a {type(model).__name__} without one",
                "build it with normkit.DomainBatchNorm2d(channels, domains)",
            )
        )
    for name, layer in layers:
        if (
            isinstance(domain, bool)
            or not hasattr(domain, "__index__")
            or not (0 <= operator.index(domain) < layer.domains)
        ):
            raise OptionError(
                explain(
                    f"a domain is an integer, here from 0 to {layer.domains - 1}",
                    f"{domain!r} for {name or type(layer).__name__}",
                    "choose one of them, or make the layers with more domains",
                )
            )
    before = [(layer, layer.domain) for _, layer in layers]
    try:
        for _, layer in layers:
            layer.domain = operator.index(domain)
        yield
    finally:
        for layer, was in before:
            layer.domain = was


@contextlib.contextmanager
def _as_in_training(layer: _NormBase) -> Iterator[None]:
    """``layer``, once in training mode, normalizes by its input and remembers nothing of it."""
    own: dict[str, Any] = vars(layer)
    # Functions that evaluate begin with model.eval(); the layer keeps its mode through that.
    changes: dict[str, Any] = {"track_running_stats": False, "train": partial(_stay, layer)}
    if isinstance(layer, _InstanceNorm):
        # PyTorch's moves whatever it is given. An attribute hides the buffer from it, which
        # stays where state_dict and all others look.
        changes |= {"running_mean": None, "running_var": None}
    before = {name: own[name] for name in changes if name in own}
    # Layers of third parties may move their buffers all the same.
    kept = {
        name: (buffer, buffer.clone(), version_of(buffer))
        for name, buffer in layer._buffers.items()
        if buffer is not None
    }
    try:
        own.update(changes)
        yield
    finally:
        for name in changes:
            own.pop(name, None)
        own.update(before)
        with torch.no_grad():
            for name, (buffer, copy, version) in kept.items():
                now = layer._buffers.get(name)
                if now is not None and now.device != buffer.device:  # moved with its model
                    now.copy_(copy)
                    continue
                layer._buffers[name] = buffer
                if version is None or buffer._version != version:
                    buffer.copy_(copy)


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    for inside in layer.children():
        inside.train(mode)
    return layer


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeMismatchError(
            explain(
                "switching statistics is for a torch.nn.Module written in Python",
                f"a {type(model).__name__}",
                "give it the model itself, before it is scripted",
            )
        )
