"""convert on layers of other libraries: by what they compute, with what they call afterwards."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.nn.foreign import original_class
from normkit.nn.freezing import base_class, is_constant, is_frozen
from normkit.nn.stats_spec import keeps_stats
from tests.integrations.stand_ins import CASES, Case, build
from tests.surgery.test_convert_pairs import same_states, snapshot

TO: list[Any] = ["batch", ("ghost", 2), "frozen", "group", "layer", "instance", "torch"]
EVERY = [
    pytest.param(case, to, id=f"{case.name}-{case.shape}-{to}")
    for case, to in itertools.product(CASES, TO)
]


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize(("case", "to"), EVERY)
def test_every_known_layer(case: Case, to: Any) -> None:
    for first in ("solved", "accelerated", "frozen"):
        accelerated, frozen = first == "accelerated", first == "frozen"
        layer, x = build(case)
        if frozen and (not keeps_stats(layer) or is_constant(layer)):
            continue
        model = nn.Sequential(nn.Identity(), layer).train()
        expected = copy.deepcopy(model).eval()(x)
        if accelerated:
            nk.accelerate(model)
        if frozen:
            nk.freeze(layer, affine=False)
        before, state = snapshot(model), copy.deepcopy(model.state_dict())
        handle = nk.convert(model, to, batches=[x] if first == "solved" else None)
        assert handle.changed or snapshot(model) == before
        y = model.eval()(x)
        if "train the network again" not in repr(handle):
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        if handle.changed and to == "torch":
            assert type(layer) is case.cls is original_class(base_class(case.cls))
        elif handle.changed:
            assert base_class(type(layer)).__module__.startswith("normkit.nn.")
            assert is_frozen(layer) is (frozen and (to in ("batch", ("ghost", 2), "frozen")))
        model.train()
        handle.undo()
        if not frozen:
            assert snapshot(model) == before
        assert same_states(model.state_dict(), state)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_with_activation_in_place_and_afterwards() -> None:
    cases = [case for case in CASES if case.name == "timm.layers.norm_act.BatchNormAct2d"]
    relu, hardswish, _ = (build(case)[0] for case in cases)
    model, x = nn.Sequential(relu, hardswish), build(cases[0])[1]
    expected = copy.deepcopy(model).eval()(x)
    handle = nk.convert(model, ("ghost", 2))
    assert model[0] is relu and relu.act == "relu" and not list(relu.children())
    assert model[1][0] is hardswish and type(model[1][1]) is nn.Hardswish
    assert "Hardswish in a module after it; its own keys begin with '1.0'" in repr(handle)
    assert next(iter(model.state_dict())) == "0.weight"
    torch.testing.assert_close(model.eval()(x), expected)
    relu.register_forward_hook(lambda *_: None)  # of a layer that keeps its place
    assert nk.convert(model, "group").changed


@pytest.mark.filterwarnings("ignore:convert changed nothing")
def test_known_layers_are_converted() -> None:
    """All of images whose formula a kind has: by name, so that none is lost to a skipped row."""
    changed = set()
    for case in CASES:
        layer, _ = build(case)
        if nk.convert(nn.Sequential(layer), "group").changed:
            changed.add(case.cls.__name__)
    assert changed >= {
        "BatchNormAct2d", "GroupNormAct", "LayerNormAct2d", "GroupNorm", "LayerNorm2d",
    }, changed  # fmt: skip
