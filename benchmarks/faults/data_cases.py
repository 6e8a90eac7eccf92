"""Faults in the batches, of training and of evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from faults.data import (
    by_class,
    dark,
    evaluation_batches,
    in_turn,
    inverted,
    mixed_domains,
    standardized,
    train_batches,
)
from faults.model_cases import ALEXNET, BF16, LENET, RESNET
from faults.plan import Case, Plan

__all__ = ["CASES"]


def _bytes(pixels: Tensor) -> Tensor:
    return (255 * pixels).round()


def _as_it_is(pixels: Tensor) -> Tensor:
    return pixels


def _kelvin(pixels: Tensor) -> Tensor:
    return 280 + 15 * pixels


def _with_nan(pixels: Tensor) -> Tensor:
    pixels = standardized(pixels)
    pixels[1_234, 0, 5:9, 5:9] = torch.nan
    return pixels


def _noisy(pixels: Tensor) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2))
    return standardized((pixels + 0.35 * noise).clamp(0, 1))


def _across(labels: Tensor, batch_size: int) -> list[list[int]]:
    """Return batches of images that are far apart."""
    step = len(labels) // batch_size
    return [list(range(first, step * batch_size, step)) for first in range(step)]


def _inputs(plan: Plan, change: Callable[[Tensor], Tensor]) -> dict[str, Callable[..., Any]]:
    """Give both loaders their images in another form."""
    return {
        "train_batches": partial(plan.train_batches, change=change),
        "evaluation_batches": partial(plan.evaluation_batches, change=change),
    }


MIXED = dataclasses.replace(
    RESNET,
    train_batches=partial(RESNET.train_batches, change=mixed_domains),
    evaluation_batches=partial(RESNET.evaluation_batches, change=mixed_domains, order=_across),
)
ODD = partial(train_batches, count=4_996, batch_size=128)
LEAKING = dataclasses.replace(
    LENET, evaluation_batches=partial(evaluation_batches, order=by_class, batch_size=50)
)

CASES = (
    Case(
        "incomplete-last-batch",
        "4,996 images in batches of 128: the last has 4, and takes a tenth of the average.",
        ("NK204",),
        dataclasses.replace(LENET, train_batches=ODD),
        {"train_batches": partial(ODD, drop_last=False)},
        torch_audit=("TA304",),
    ),
    Case(
        "batches-by-class",
        "Each batch has images of one class, as a folder does.",
        ("NK205",),
        ALEXNET,
        {"train_batches": partial(ALEXNET.train_batches, order=partial(by_class, classes=1))},
    ),
    Case(
        "domains-in-turn",
        "Two domains come in batches of their own.",
        ("NK205",),
        MIXED,
        {"train_batches": partial(MIXED.train_batches, order=in_turn)},
    ),
    Case(
        "batches-of-two",
        "Batches of two images: the statistics are noise.",
        ("NK206",),
        dataclasses.replace(LENET, train_batches=partial(train_batches, count=2_000)),
        {"train_batches": partial(train_batches, count=2_000, batch_size=2)},
        torch_audit=("TA304",),
    ),
    Case(
        "inputs-to-255",
        "Inputs between 0 and 255, never standardized.",
        ("NK207",),
        LENET,
        _inputs(LENET, _bytes),
        torch_audit=("TA301",),
    ),
    Case(
        "far-from-zero-in-bfloat16",
        "Temperatures in kelvin, in bfloat16, which has steps of 2 there.",
        ("NK208", "NK207"),
        BF16,
        _inputs(BF16, _kelvin),
        torch_audit=("TA301",),
    ),
    Case(
        "nan-in-the-data",
        "One training image holds NaN.",
        ("NK209",),
        LENET,
        {"train_batches": partial(train_batches, change=_with_nan)},
        torch_audit=("TA100",),
    ),
    Case(
        "evaluation-not-standardized",
        "Evaluation images are between 0 and 1, training images were standardized.",
        ("NK301",),
        RESNET,
        {"evaluation_batches": partial(RESNET.evaluation_batches, change=_as_it_is)},
    ),
    Case(
        "inverted-at-test-time",
        "Evaluation images are negatives.",
        ("NK302", "NK301"),
        ALEXNET,
        {"evaluation_batches": partial(evaluation_batches, change=inverted)},
    ),
    Case(
        "dark-at-test-time",
        "Evaluation images are three times darker.",
        ("NK302", "NK301"),
        RESNET,
        {"evaluation_batches": partial(RESNET.evaluation_batches, change=dark)},
    ),
    Case(
        "noisy-at-test-time",
        "Evaluation images come from a noisy sensor.",
        ("NK302",),
        LENET,
        {"evaluation_batches": partial(evaluation_batches, change=_noisy)},
    ),
    Case(
        "leak-through-the-batch",
        "Batches of two classes each: a batch's statistics give its classes away.",
        ("NK303", "NK205"),
        LEAKING,
        {"train_batches": partial(train_batches, order=by_class)},
    ),
)
