"""Contexts that choose the statistics a model's layers normalize with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.errors import StatisticsError, message
from normkit.handle import Skipped, list_skipped, warn_skipped
from normkit.nn.domainbatchnorm import Domains, check_domain
from normkit.nn.freezing import FrozenMixin, is_constant
from normkit.nn.stats_spec import stats_spec, why_unknown
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    overwrite,
    restore_values,
    tensor_version,
)
from normkit.statistics.layers.train_overrides import kept_in_evaluation

__all__ = ["batch_statistics", "use_domain"]


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` with the statistics of each batch, changing nothing else.

    Within the block the model is in evaluation mode: dropout is off, and no running statistic or
    counter is updated. Only its layers with running statistics, as
    :func:`normkit.nn.stats_spec.stats_spec` knows them, normalize as they do in training: by the
    batch (without renormalization's correction towards the running statistics), by ghost batches,
    across processes; also after ``model.eval()``, with which many evaluation functions begin.
    Frozen layers stay frozen, and those that the model's own ``train()`` keeps in evaluation mode.
    A subclass that overrides ``forward`` and is not registered stays in evaluation mode, and a
    warning names it. On exit everything is restored, after an exception too.

    Args:
        model: any module with a layer that keeps running statistics and is not frozen.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted.
        StatisticsError: it has no such layer, or a lazy one that has had no input.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 4.2 (mini-batch statistics at inference).

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
    >>> with batch_statistics(model):
    ...     model(torch.tensor([[1.0], [3.0]])).detach().round(decimals=3)
    tensor([[-1.],
            [ 1.]])
    >>> model.training, model[0].running_mean
    (True, tensor([0.]))
    """
    check_model(model, "batch_statistics")
    layers = [m for m in model.modules() if stats_spec(m) is not None]
    skipped = [
        Skipped(name, type(m), why)
        for name, m in model.named_modules()
        if (why := why_unknown(m)) is not None and not is_constant(m)
    ]
    if any(isinstance(m, LazyModuleMixin) for m in layers):
        raise StatisticsError(
            message(
                "lazy layers to be initialized by a first input",
                "one that has had none",
                "run the model once on any batch",
            )
        )
    in_evaluation = kept_in_evaluation(model)
    trainable = [m for m in layers if not isinstance(m, FrozenMixin) and id(m) not in in_evaluation]
    if not trainable:
        raise StatisticsError(
            message(
                "a batch or instance normalization with running statistics that is not frozen",
                f"a {type(model).__name__} with {len(layers)} frozen and no other"
                + (f"; {list_skipped(skipped)}" if skipped else ""),
                "evaluate it as it is, or normkit.unfreeze(model) first",
            )
        )
    warn_skipped("batch_statistics", skipped, stacklevel=3)  # through contextlib's own frames
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for layer in trainable:
            stack.enter_context(_as_in_training(layer))
            # The flag itself: a layer's train() may do more, which would not be undone.
            layer.training = True
        yield


@contextlib.contextmanager
def use_domain(model: nn.Module, domain: int) -> Iterator[None]:
    """Select the domain of the batches in all layers of ``model`` that keep one bank per domain.

    On exit the domains selected before are restored, after an exception too. Blocks may be
    nested. In a subclass that overrides ``forward`` the domain is selected too: what it does with
    it is its own affair.

    Args:
        model: a module with layers such as :class:`normkit.DomainBatchNorm2d`.
        domain: an integer from 0 to one less than the layers' ``domains``, for the whole batch.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted.
        StatisticsError: it has no such layer.
        OptionError: ``domain`` is not one integer (several, a truth value, a text), or a layer
            has no such domain. No layer has been changed then.

    Source: Wu & Johnson 2021, arXiv 2105.07576, section 5.

    >>> import torch
    >>> from normkit.nn import DomainBatchNorm1d
    >>> model = nn.Sequential(nn.Linear(2, 3), DomainBatchNorm1d(3, domains=2))
    >>> with use_domain(model, 1):
    ...     y = model(torch.randn(8, 2))
    >>> model[1].num_batches_tracked
    tensor([0, 1])
    """
    check_model(model, "use_domain", domain)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, Domains)]
    if not layers:
        raise StatisticsError(
            message(
                "a layer that keeps statistics by domain",
                f"a {type(model).__name__} without one",
                "build it with normkit.DomainBatchNorm2d(channels, domains)",
            )
        )
    chosen = [
        check_domain(domain, layer.domains, f"layer {name}" if name else "the model")
        for name, layer in layers
    ]
    before = [(layer, layer.domain) for _, layer in layers]
    try:
        for (_, layer), index in zip(layers, chosen, strict=True):
            layer.domain = index
        yield
    finally:
        for layer, previous in before:
            layer.domain = previous


@contextlib.contextmanager
def _as_in_training(layer: nn.Module) -> Iterator[None]:
    """Let ``layer``, once in training mode, normalize by its input without updating statistics."""
    attributes: dict[str, Any] = vars(layer)
    # Evaluation functions begin with model.eval(), which must not change the layer's mode.
    changes: dict[str, Any] = {"track_running_stats": False, "train": partial(_keep_mode, layer)}
    if isinstance(layer, _InstanceNorm):
        # PyTorch's updates any buffers it finds. An attribute hides the buffer from it, which
        # stays where state_dict and others look.
        changes |= {"running_mean": None, "running_var": None}
    before = {name: attributes[name] for name in changes if name in attributes}
    # Layers of third parties may update their buffers regardless.
    buffers = {
        name: (buffer, buffer.clone(), tensor_version(buffer))
        for name, buffer in layer._buffers.items()
        if buffer is not None
    }
    try:
        attributes.update(changes)
        yield
    finally:
        for name in changes:
            attributes.pop(name, None)
        attributes.update(before)
        for name, (buffer, copy, version) in buffers.items():
            current = layer._buffers.get(name)
            if current is not None and current.device != buffer.device:  # moved with its model
                overwrite(current, copy)
                continue
            layer._buffers[name] = buffer
            restore_values(buffer, copy, version)


def _keep_mode(layer: nn.Module, mode: bool = True) -> nn.Module:
    for child in layer.children():
        child.train(mode)
    return layer
