"""Faults in the layers and in the optimizer, which show without data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from faults.data import evaluation_batches, train_batches
from faults.fitting import adamw, fit, is_norm, sgd
from faults.networks import Siamese, alexnet, lenet, resnet, vit
from faults.plan import Case, Plan

__all__ = ["ALEXNET", "CASES", "LENET", "RESNET", "VIT"]

LENET = Plan(lenet, train_batches, evaluation_batches)
RESNET = Plan(
    resnet, partial(train_batches, size=16, count=3_000), partial(evaluation_batches, size=16)
)
ALEXNET = Plan(alexnet, partial(train_batches, count=3_000), evaluation_batches)
VIT = Plan(vit, train_batches, evaluation_batches, adamw, partial(fit, epochs=4))

BF16 = Plan(
    lambda: _bfloat16(norms=False),
    partial(train_batches, dtype=torch.bfloat16, count=2_500),
    partial(evaluation_batches, dtype=torch.bfloat16),
)


def _bfloat16(*, norms: bool, **options: float) -> nn.Module:
    """Make a network in bfloat16, its normalizers too or in float32."""
    model = lenet(**options).bfloat16()
    for module in model.modules():
        if is_norm(module) and not norms:
            module.float()
    return model


def _not_tracking() -> nn.Module:
    """Switch tracking off in layers that have been made already, to normalize by the batch."""
    model = lenet()
    for module in model.modules():
        if is_norm(module):
            module.track_running_stats = False
    return model


def _layer_norms(*, sized: bool) -> nn.Module:
    sizes: Iterator[list[int]] = iter([[16, 28, 28], [16, 10, 10]])
    return lenet(
        norm=lambda channels: nn.LayerNorm(next(sizes)) if sized else nn.GroupNorm(1, channels),
        norm1d=nn.LayerNorm,
    )


def _instance_norm(channels: int, *, track: bool) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=track)


def _half(**options: float) -> nn.Module:
    return vit(**options).half()


def _logits(*, normalized: bool) -> nn.Module:
    model = lenet()
    model[-1].bias = None  # a normalizer behind it would make it superfluous
    return nn.Sequential(*model, nn.BatchNorm1d(10)) if normalized else model


def _converted(model: nn.Module, *, first: bool) -> torch.optim.Optimizer:
    """Replace BatchNorm by GroupNorm, before or after the optimizer is made."""
    optimizer = None if first else sgd(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(4, module.num_features))
    return optimizer or sgd(model)


CASES = (
    Case(
        "momentum-kept",
        "Momentum 0.99 was meant as the share that is kept.",
        ("NK104",),
        LENET,
        {"network": partial(lenet, momentum=0.99)},
    ),
    Case(
        "momentum-zero",
        "Momentum 0 lets the statistics never move.",
        ("NK103",),
        RESNET,
        {"network": partial(resnet, momentum=0.0)},
    ),
    Case(
        "eps-and-momentum-swapped",
        "The values of eps and momentum were swapped.",
        ("NK109",),
        RESNET,
        {"network": partial(resnet, eps=0.1, momentum=1e-5)},
    ),
    Case(
        "average-too-slow",
        "Momentum 0.0001 needs ten thousand batches, and training has 92.",
        ("NK120",),
        ALEXNET,
        {"network": partial(alexnet, momentum=1e-4)},
    ),
    Case(
        "bfloat16-buffers",
        "Running statistics in bfloat16 cannot move by the small share of a batch.",
        ("NK105",),
        Plan(
            partial(_bfloat16, norms=False, momentum=0.01),
            partial(BF16.train_batches, batch_size=16),
            BF16.evaluation_batches,
            fit=partial(fit, epochs=4),
        ),
        {"network": partial(_bfloat16, norms=True, momentum=0.01)},
    ),
    Case(
        "tracking-switched-off",
        "track_running_stats was set to False on layers that keep buffers: evaluation uses them.",
        ("NK108",),
        LENET,
        {"network": _not_tracking},
    ),
    Case(
        "instance-norm-tracks",
        "InstanceNorm tracks statistics: evaluation normalizes by averages over images.",
        ("NK119",),
        Plan(
            partial(resnet, norm=partial(_instance_norm, track=False)),
            RESNET.train_batches,
            RESNET.evaluation_batches,
        ),
        {"network": partial(resnet, norm=partial(_instance_norm, track=True))},
    ),
    Case(
        "one-norm-in-two-places",
        "One BatchNorm after two convolutions remembers the mixture of both.",
        ("NK113",),
        LENET,
        {"network": partial(lenet, shared=True)},
        torch_audit=("TA501",),
    ),
    Case(
        "siamese-shares-norms",
        "One BatchNorm for two views of different statistics remembers neither.",
        ("NK213",),
        Plan(partial(Siamese, False), LENET.train_batches, LENET.evaluation_batches),
        {"network": partial(Siamese, True)},
        torch_audit=("TA501",),
    ),
    Case(
        "normalized-twice",
        "BatchNorm directly after BatchNorm: the second one has nothing to do.",
        ("NK114",),
        ALEXNET,
        {"network": partial(alexnet, twice=True)},
    ),
    Case(
        "dropout-before-norm",
        "Dropout before BatchNorm: the variance in evaluation is not the one remembered.",
        ("NK210", "NK116"),
        Plan(partial(lenet, dropout=(0.0, 0.6)), LENET.train_batches, LENET.evaluation_batches),
        {"network": partial(lenet, dropout=(0.6, 0.0))},
    ),
    Case(
        "one-value-per-group",
        "GroupNorm with as many groups as channels on 1×1 maps returns its bias.",
        ("NK211", "NK117"),
        Plan(
            partial(resnet, gate=partial(nn.GroupNorm, 1)),
            RESNET.train_batches,
            RESNET.evaluation_batches,
        ),
        {"network": partial(resnet, gate=lambda channels: nn.GroupNorm(channels, channels))},
    ),
    Case(
        "layer-norm-of-one-size",
        "LayerNorm over the space ties the network to one image size.",
        ("NK118",),
        Plan(partial(_layer_norms, sized=False), LENET.train_batches, LENET.evaluation_batches),
        {"network": partial(_layer_norms, sized=True)},
        note=True,
    ),
    Case(
        "eps-below-float16",
        "An eps of 1e-12 is nothing in float16.",
        ("NK128",),
        Plan(
            partial(_half, layer_norm_eps=1e-5),
            partial(train_batches, dtype=torch.float16, count=2_500),
            partial(evaluation_batches, dtype=torch.float16),
        ),
        {"network": partial(_half, layer_norm_eps=1e-12)},
    ),
    Case(
        "logits-normalized",
        "BatchNorm on the logits makes all classes equally frequent in a batch.",
        ("NK127",),
        Plan(partial(_logits, normalized=False), LENET.train_batches, LENET.evaluation_batches),
        {"network": partial(_logits, normalized=True)},
        note=True,
    ),
    Case(
        "bias-before-norm",
        "Biases before BatchNorm are subtracted again.",
        ("NK115",),
        LENET,
        {"network": partial(lenet, bias=True)},
        note=True,
        torch_audit=("TA400",),
    ),
    Case(
        "norms-not-in-optimizer",
        "A filter left γ and β out of the optimizer.",
        ("NK123",),
        RESNET,
        {"optimizer": partial(sgd, matrices_only=True)},
    ),
    Case(
        "optimizer-before-conversion",
        "The optimizer holds the parameters of layers that were replaced after it was made.",
        ("NK123",),
        Plan(
            resnet,
            RESNET.train_batches,
            RESNET.evaluation_batches,
            partial(_converted, first=True),
        ),
        {"optimizer": partial(_converted, first=False)},
    ),
    Case(
        "norm-rate-zero",
        "The parameter group of the norms has a learning rate of 0.",
        ("NK124",),
        ALEXNET,
        {"optimizer": partial(sgd, norm_lr=0.0)},
    ),
    Case(
        "decay-on-norms",
        "Weight decay pulls γ and β towards zero.",
        ("NK122",),
        VIT,
        {"optimizer": partial(adamw, all_decay=True)},
        note=True,
        torch_audit=("TA402",),
    ),
)
