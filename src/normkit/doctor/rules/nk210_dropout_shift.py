"""Dropout changes the variance that a layer remembers.

What it checks
    How much larger the variance of a layer's input is with dropout on, as in training, than with it
    off, as in evaluation, where dropout comes before the layer; a tenth is the threshold.

Why it is bad
    The running variance is one of inputs with holes in them. Evaluation has none, divides by a
    deviation that is too large, and everything behind the layer gets numbers that it was not
    trained on: the variance shift of Li et al. 2018 (arXiv 1801.05134).

Example
    nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.5), nn.Linear(512, 512), nn.BatchNorm1d(512))

Use instead
    Dropout behind the last normalization; or nk.recalibrate(model, train), which measures with
    dropout off, for a model that is trained already.

When it is right
    Where it is recalibrated before each evaluation.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.nn.kinds import kind_of
from normkit.nn.stats_spec import keeps_stats
from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.run_model import run_model
from normkit.statistics.batches.tensors import tensors_in
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    run_eagerly,
)

FACTOR = 1.1
BATCHES = 4


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose input has another variance with dropout on."""
    training = exam.training
    if training is None or training.consistency is None:
        return
    gaps = training.consistency.layers
    off_now = [one for one in exam.norms if (gap := gaps.get(one.name)) and gap.matters]
    # Dropout as a function goes by the mode of the module that calls it.
    others = [
        module
        for module in exam.model.modules()
        if kind_of(module) is None and not keeps_stats(module)
    ]
    if not off_now or not others:
        return
    without, within = (_variances(exam, off_now, on) for on in ([], others))
    factors = {
        name: float((within[name] / without[name].clamp_min(1e-12)).log().mean().exp())
        for name in without
        if name in within
    }
    off = {name: value for name, value in factors.items() if value > FACTOR}
    if not off:
        return
    worst = max(off.values())
    yield Finding(
        "warning",
        tuple(off),
        f"With dropout on, the variance of its input is {worst:.2f} times that with dropout off "
        f"(threshold {FACTOR}): the running variance is one that evaluation never has.",
        "nk.recalibrate(model, train); for the next training, dropout behind the normalization",
        worst,
        exam.recalibrate(),
    )


def _variances(
    exam: Examination, norms: Sequence[Norm], on: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """Return by layer the variances of its input's channels, with these modules training."""
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str, args: Any, kwargs: Any) -> None:
        x = tensors_in([*args, *kwargs.values()])[0].detach().double()
        inputs.setdefault(name, []).append(x.transpose(0, 1).flatten(1))

    assert exam.training is not None
    with contextlib.ExitStack() as stack:
        for context in (preserve_rng(), run_eagerly(), torch.no_grad()):
            stack.enter_context(context)
        stack.enter_context(evaluation_mode(exam.model))
        stack.enter_context(preserve_buffers(exam.model))
        for module in on:
            module.training = True
        for one in norms:
            hook = one.layer.register_forward_pre_hook(
                lambda _, args, kwargs, name=one.name: keep(name, args, kwargs), with_kwargs=True
            )
            stack.callback(hook.remove)
        for batch in itertools.islice(DetachedLoader(exam.training.batches), BATCHES):
            run_model(exam.model, batch, exam.options.forward)
    return {name: torch.cat(parts, 1).var(1) for name, parts in inputs.items()}
