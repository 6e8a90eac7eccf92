"""Faults in the training loop and in what is done to the model afterwards."""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import torch
from torch import nn

from faults.afterwards import averaged, extrapolated, loaded, pruned, reset, validated
from faults.data import inverted, train_batches
from faults.fitting import fit, sgd
from faults.model_cases import ALEXNET, LENET, RESNET
from faults.networks import resnet
from faults.plan import Case

__all__ = ["CASES"]


@functools.cache
def _pretrained() -> nn.Module:
    with torch.random.fork_rng():  # of a fault and its twin, only one comes here
        model = resnet()
        fit(model, sgd(model), train_batches(size=16, count=2_500), epochs=2)
    return model


def _for_another_domain(*, frozen: bool) -> nn.Module:
    """Make a pretrained network with a new last layer, the rest frozen or not."""
    model = resnet()
    model.load_state_dict(_pretrained().state_dict())
    model.requires_grad_(not frozen)
    model[-1] = nn.Linear(64, 10)
    return model


TUNED = dataclasses.replace(
    RESNET,
    network=partial(_for_another_domain, frozen=False),
    train_batches=partial(train_batches, size=16, count=2_500, change=inverted),
    evaluation_batches=partial(RESNET.evaluation_batches, change=inverted),
)

CASES = (
    Case(
        "trained-in-evaluation-mode",
        "The layers were in evaluation mode while γ and β were trained.",
        ("NK101",),
        LENET,
        {"fit": partial(fit, mode=nn.Module.eval)},
    ),
    Case(
        "statistics-reset",
        "The statistics were reset after training.",
        ("NK101",),
        RESNET,
        {"after": reset},
    ),
    Case(
        "loaded-without-buffers",
        "A checkpoint without buffers was loaded with strict=False.",
        ("NK101",),
        dataclasses.replace(ALEXNET, after=partial(loaded, buffers=True)),
        {"after": partial(loaded, buffers=False)},
    ),
    Case(
        "one-nan-batch",
        "One batch with NaN went through in training; its step was skipped, its statistics stay.",
        ("NK102",),
        RESNET,
        {"fit": partial(fit, corrupt=40)},
        torch_audit=("TA100",),
    ),
    Case(
        "frozen-but-moving",
        "γ and β are frozen, and the statistics under them move to another domain.",
        ("NK110",),
        TUNED,
        {"network": partial(_for_another_domain, frozen=True)},
    ),
    Case(
        "averaged-weights",
        "Weights were averaged, and their statistics never taken.",
        ("NK126", "NK290"),
        dataclasses.replace(LENET, after=partial(averaged, update=True)),
        {"after": partial(averaged, update=False)},
    ),
    Case(
        "extrapolated-statistics",
        "Running variances were extrapolated like weights and are negative.",
        ("NK102",),
        dataclasses.replace(LENET, after=partial(extrapolated, statistics=False)),
        {"after": partial(extrapolated, statistics=True)},
    ),
    Case(
        "pruned",
        "Weights were pruned, and the statistics are those of before.",
        ("NK290",),
        dataclasses.replace(RESNET, after=partial(pruned, update=True)),
        {"after": partial(pruned, update=False)},
    ),
    Case(
        "high-rate-to-the-end",
        "The learning rate stays high: the average describes weights that are gone.",
        ("NK203", "NK290"),
        dataclasses.replace(LENET, optimizer=partial(sgd, lr=0.4)),
        {"fit": partial(fit, decay=False)},
    ),
    Case(
        "validated-in-training-mode",
        "Validation images of another domain went through in training mode.",
        ("NK290",),
        dataclasses.replace(LENET, after=partial(validated, mode=False)),
        {"after": partial(validated, mode=True)},
    ),
    Case(
        "cumulative-average",
        "momentum=None averages over all of the training, the first weights as much as the last.",
        ("NK121",),
        ALEXNET,
        {"network": partial(ALEXNET.network, momentum=None)},
    ),
)
