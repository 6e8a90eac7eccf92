"""Healthy and unusual networks: nothing above a note, and no rule that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import normkit as nk
from normkit.lab import models
from tests.doctor.nets import net


def test_a_trained_net_has_no_finding() -> None:
    assert nk.diagnose(net()).findings == ()


def every(name: str) -> Any:
    options = {"width": 8} if name.startswith("resnet") else {}
    norm = "layer" if name == "vit" else "batch"
    return lambda: models.build(name, norm=norm, size=32, **options)


def small_transformer() -> nn.Module:
    return nn.Transformer(16, 2, 2, 2, 32, batch_first=True)


@pytest.mark.parametrize(
    "build",
    [*map(every, models.MODELS), small_transformer],
    ids=[*models.MODELS, "nn.Transformer"],
)
def test_a_fresh_network_has_no_finding_above_a_note(build: Any) -> None:
    found = nk.diagnose(build()).findings
    assert [(x.rule, x.places, x.says) for x in found if x.severity != "note"] == []
    assert not [x for x in found if "could not be checked" in x.says]


@pytest.mark.parametrize("norm", models.NORMS)
def test_a_fresh_network_of_any_normalizer_has_no_finding_above_a_note(norm: str) -> None:
    options = {"ghost": {"ghost_size": 8}, "domain": {"domains": 2}}.get(norm, {})
    model = models.build("lenet5", norm=norm, norm_options=options)
    found = nk.diagnose(model).findings
    assert [(x.rule, x.places, x.says) for x in found if x.severity != "note"] == []
    assert not [x for x in found if "could not be checked" in x.says]


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model[1], "weight", amount=1)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lazy, pruned, lambda: nn.BatchNorm2d(4), lambda: nn.LayerNorm(0), nn.Sequential,
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), torch.jit.script(nn.BatchNorm2d(4))),
        lambda: torch.compile(net()), lambda: nn.DataParallel(net()),
        lambda: nn.Sequential(nk.DomainBatchNorm2d(4, 2), nn.ReLU(), nk.BatchRenorm2d(4)),
    ],
    ids=["lazy", "pruned", "alone", "empty", "none", "scripted", "compiled", "parallel", "own"],
)  # fmt: skip
def test_unusual_models_break_no_rule(build: Any) -> None:
    found = nk.diagnose(build()).findings
    assert [(x.rule, x.severity, x.says) for x in found if x.severity != "note"] == []
    assert not [x.says for x in found if "could not be checked" in x.says]
