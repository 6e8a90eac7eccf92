"""Evaluate a model on statistics of the data that it meets: :func:`adapt`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from normkit.adaptation.check_arguments import check_memory, check_prior
from normkit.adaptation.handle import (
    Adaptation,
    OrderReport,
    adapt_layer,
    count_passes,
    set_evaluation,
)
from normkit.adaptation.layers import find_adaptable
from normkit.adaptation.normalizer import MixingNormalizer, PassCounter
from normkit.adaptation.once import recalibrate_once
from normkit.adaptation.order import LAYERS
from normkit.errors import OptionError, message
from normkit.handle import Changed, Step, run
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import check_batches, check_function, check_model
from normkit.statistics.layers.find import NormLayer, unwrap
from normkit.surgery.freezable import check_finite

__all__ = ["adapt", "adaptation_steps"]


def adapt(
    model: nn.Module,
    prior: float = 16,
    *,
    memory: float = 0,
    batches: Iterable[Any] | None = None,
    forward: Forward | None = None,
) -> Adaptation:
    r"""Evaluate ``model`` on statistics of the data that it meets, mixed with remembered ones.

    Each layer with running statistics normalizes by

    .. math::
        \mu = \frac{N \mu_s + n \mu_t}{N + n}, \qquad
        \sigma^2 = \frac{N \sigma_s^2 + n \sigma_t^2}{N + n},

    where s are the running statistics of training, which weigh as ``prior`` = N samples, and t
    those of n samples of the present data:

    =====================  ==============================================================
    ``adapt(model)``       of the present batch (biased variance, as training normalizes)
    ``memory=1000``        of the last samples of the stream, 1000 at most, merged as
                           moments; then each batch of n replaces the share n / 1000.
                           ``math.inf`` keeps all
    ``batches=stream``     of all of them, measured once by :func:`normkit.recalibrate`
    =====================  ==============================================================

    ``prior=0`` trusts the data alone, as :func:`normkit.batch_statistics` does; a large one
    changes little. Instance normalization takes its moments from each sample, which counts as one;
    ``memory`` has no part in it. Ghost batches and other processes have none either: n is the
    whole batch of this process.

    The model is in evaluation mode meanwhile, dropout is off, and its weights, buffers and
    counters are not written (with ``batches``, running statistics are, and restored by undo).
    It works after ``model.eval()`` or ``model.train()``, under ``no_grad``, ``inference_mode`` and
    ``autocast``; gradients, where recorded, pass through the batch's moments. Several threads may
    call it. A compiled model is compiled again, once or, with ``memory``, twice. ``memory`` is of
    plain batches: within ``torch.export``, ``torch.jit.trace`` and ``torch.func`` it is refused. A
    layer with banks has a stream for each; one called several times for a batch has one of all.

    A stream sorted by label is harmed by batch statistics. So the spread of batch means is compared
    with that of a shuffled stream, at 4, 8, 16, 32 and 64 batches (:mod:`normkit.adaptation.order`;
    false alarms at most 1 %); a warning tells the figure once, and ``.order`` has it. Compiled
    layers, layers called several times for a batch, and batches of one sample without memory are
    not compared.

    Skipped and listed: frozen and constant layers, those that the model's own ``train()`` keeps in
    evaluation mode, unknown, parametrized and scripted ones, those with a replaced forward, and
    registered ones that compute another formula than (x − μ)/√(σ² + ε), tried on a few samples.

    Args:
        model: any module with a layer that keeps running statistics, in any mode.
        prior: samples that the running statistics weigh, at least 0.
        memory: samples of the stream that are remembered, at least 0.
        batches: an iterable of batches, as for ``recalibrate``, to adapt to once.
        forward: called as ``forward(model, batch)`` on each of ``batches``.

    Returns:
        A handle, also a context manager: ``print`` shows the layers; ``.undo()``, or the end of the
        block, restores the model exactly, and each module's mode; ``.reset()`` forgets the stream.

    Warns:
        UserWarning: the stream looks ordered.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; ``batches`` no batches.
        OptionError: ``prior`` or ``memory`` outside its range; ``memory`` or ``forward`` that does
            not go with ``batches``; a model that is adapted already.
        StatisticsError: no layer to adapt, or running statistics that are not finite. The model is
            unchanged. Within a forward: one value per channel and ``prior=0``.

    Source: Schneider et al. 2020, arXiv 2006.16971, section 3; the memory as in Mirza et al. 2022,
    arXiv 2112.00463 (DUA), with a constant share.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1, affine=False)).eval()
    >>> x = torch.tensor([[3.0], [5.0]])
    >>> with adapt(model, prior=2):     # mean (2·0 + 2·4) / 4, variance (2·1 + 2·1) / 4
    ...     model(x).round(decimals=3)
    tensor([[1.],
            [3.]])
    >>> handle = adapt(model, prior=0)
    >>> print(handle)
    adapt: 1 changed, 0 skipped
      0  nn.BatchNorm1d: each batch
    >>> handle.undo()
    >>> model(x).round(decimals=3).flatten()
    tensor([3., 5.])
    """
    check_model(model, "adapt", batches)
    check_prior(prior)
    check_memory(memory)
    if batches is not None:
        check_batches(batches)
        check_function(forward, "forward", "forward(model, batch)")
        if memory:
            raise _apart("memory", memory, "the whole of batches is measured: omit memory")
        return recalibrate_once(model, float(prior), batches, forward)
    if forward is not None:
        raise _apart("forward", "a function", "call the model as usual within the block")
    inner = unwrap(model)
    layers, skipped = find_adaptable(inner, "adapt")
    if prior:
        check_finite([(one.name, one.layer) for one in layers])
    order = OrderReport()
    changed, steps, normalizers = adaptation_steps(inner, layers, prior, memory, order)
    everything = [set_evaluation(model), *steps]
    run(everything)
    return Adaptation(
        "adapt", changed, skipped, everything, order=order, resets=[n.reset for n in normalizers]
    )


def adaptation_steps(
    inner: nn.Module,
    layers: list[NormLayer],
    prior: float,
    memory: float,
    order: OrderReport,
    *,
    constant: bool = True,
) -> tuple[list[Changed], list[Step], list[MixingNormalizer]]:
    """Return rows, steps and normalizers of layers that are to adapt to what they are given.

    ``constant``: weights stay.
    """
    counter = PassCounter()
    normalizers = [
        MixingNormalizer(one, float(prior), float(memory), counter, order) for one in layers
    ]
    pooled = [each for one, each in zip(layers, normalizers, strict=True) if not one.per_sample]
    # Over a stream, and where γ and β change, what comes to later layers changes with time.
    spread = [round(i * (len(pooled) - 1) / (LAYERS - 1)) for i in range(LAYERS) if pooled]
    deep = set(spread if constant and not memory else ())
    for i, each in enumerate(pooled):
        each.test_order(len(deep) + 1, i in deep)
    changed = [
        Changed(one.name, type(one.layer), type(one.layer), note=_note(one, prior, memory))
        for one in layers
    ]
    steps = [adapt_layer(one, each) for one, each in zip(layers, normalizers, strict=True)]
    return changed, [count_passes(inner, counter), *steps], normalizers


def _note(one: NormLayer, prior: float, memory: float) -> str:
    if one.per_sample:
        data = "each sample"
    elif memory:
        data = "the stream" if math.isinf(memory) else f"the last {memory:g} samples"
    else:
        data = "each batch"
    return f"{data}, mixed with {prior:g} remembered samples" if prior else data


def _apart(name: str, value: object, fix: str) -> OptionError:
    with_ = "without batches" if name == "memory" else "with batches"
    return OptionError(message(f"{name} only {with_}", f"{name}={value}", fix))
