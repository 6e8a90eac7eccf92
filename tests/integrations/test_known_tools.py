"""Other tools on layers of other libraries, as they are and accelerated."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.norms import find_norms
from normkit.nn.kinds import kind_of
from normkit.nn.norm_spec import norm_spec
from tests.integrations.stand_ins import CASES, C, Case, build

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.shape}")
STATISTICS = [case for case in CASES if case.name.endswith("BatchNormAct2d")][:2]
KINDS = {
    "BatchNorm2d": "batch", "FrozenBatchNorm2d": "batch", "GroupNorm": "group",
    "LayerNorm": "layer", "LayerNorm2d": "layer", "RMSNorm": "rms", "RMSNorm2d": "rms",
    "ZeroCenteredRMSNorm": "rms",
}  # fmt: skip


def both(case: Case) -> Iterator[tuple[nn.Module, Tensor]]:
    """The layer as it is, and accelerated."""
    for accelerated in (False, True):
        layer, x = build(case)
        if accelerated:
            assert nk.accelerate(layer).changed
        yield layer, x


@EVERY
def test_the_doctor_knows_its_kind(case: Case) -> None:
    for layer, _ in both(case):
        spec = norm_spec(layer)
        assert spec is not None and kind_of(layer) == KINDS[spec.layer.__name__]
        assert len(find_norms(nn.Sequential(nn.Conv2d(3, C, 1), layer))) == 1


@EVERY
def test_optimizers_do_not_decay_it(case: Case) -> None:
    for layer, _ in both(case):
        decayed, others = nk.parameter_groups(nn.Sequential(nn.Linear(2, 2), layer), 0.1)
        assert len(decayed["params"]) == 1
        assert len(others["params"]) == 1 + len([*layer.parameters()])


@pytest.mark.parametrize("name", ["LlamaRMSNorm", "GemmaRMSNorm"])
def test_decay_is_reported_where_it_draws_gamma_to_zero(name: str) -> None:
    case = next(case for case in CASES if case.name.endswith(name))
    for layer, _ in both(case):
        model = nn.Sequential(nn.Linear(C, C), layer, nn.Linear(C, C))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        rules = {finding.rule for finding in nk.diagnose(model, optimizer=optimizer).findings}
        assert ("NK122" in rules) is (name == "LlamaRMSNorm")


@pytest.mark.parametrize("case", STATISTICS, ids=lambda c: c.name)
def test_statistics(case: Case) -> None:
    results = []
    for layer, x in both(case):
        model = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), layer)
        nn.init.dirac_(model[0].weight)
        batches = [x, x + 1]
        result = nk.recalibrate(model, batches, samples=None, progress=False)
        assert not result.skipped
        torch.testing.assert_close(layer.running_mean, torch.cat(batches).mean((0, 2, 3)))
        assert nk.consistency(model, batches, samples=None, progress=False).layers
        frozen = copy.deepcopy(model)
        nk.freeze(frozen)
        before = [b.clone() for b in frozen.buffers()]
        frozen.train()(x)
        assert all(map(torch.equal, frozen.buffers(), before))
        with nk.batch_statistics(model):
            y = model.eval()(x)
        torch.testing.assert_close(y, model.train()(x))
        folded = copy.deepcopy(model).eval()
        expected = folded(x)
        assert len(nk.fold(folded, x).changed) == 1
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
        results.append(expected.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_subclasses_that_inherit_forward_stay_known_to_every_tool() -> None:
    class Theirs(nn.BatchNorm2d):
        """As many projects have it, for another default."""

        def __init__(self, channels: int) -> None:
            super().__init__(channels, eps=1e-3)

    model = nn.Sequential(nn.Conv2d(3, C, 1), Theirs(C), nn.ReLU())
    batches = [torch.randn(8, 3, 4, 4)]
    before = copy.deepcopy(model).train()(batches[0])
    handle = nk.accelerate(model)
    assert [row.name for row in handle.changed] == ["1"] and isinstance(model[1], Theirs)
    torch.testing.assert_close(model(batches[0]), before, rtol=1e-4, atol=1e-5)
    assert not nk.recalibrate(model, batches, samples=None, progress=False).skipped
    assert nk.freeze(model).changed and not nk.accelerate(model).changed
    with torch.device("meta"):
        assert nk.accelerate(nn.Sequential(Theirs(3))).changed


def test_parametrized_layers_keep_their_class() -> None:
    from torch.nn.utils import parametrize

    layer, x = build(CASES[0])
    nk.accelerate(layer)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    y, other = layer.eval()(x), copy.deepcopy(layer)
    assert torch.equal(other(x), y) and type(other) is type(layer)
    plain, _ = build(CASES[0])
    parametrize.register_parametrization(plain, "weight", nn.Softplus())
    torch.testing.assert_close(plain.eval()(x), y)
    (row,) = nk.accelerate(plain).skipped
    assert row.why == "parametrized"


CONSTANT = [case for case in CASES if "FrozenBatchNorm" in case.name]


@pytest.mark.parametrize("case", CONSTANT, ids=lambda c: c.name)
def test_constant_layers_learn_again_with_their_activation(case: Case) -> None:
    for layer, x in both(case):
        model = nn.Sequential(layer)
        classes, names = type(layer), vars(layer).keys()
        expected, state = model(x), layer.state_dict()
        handle = nk.unfreeze(model)
        assert [row.name for row in handle.changed] == ["0"] and not handle.skipped
        assert type(model[0]) is nk.BatchNorm2d and not [*layer.children()]
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)
        model.train()(x).sum().backward()
        assert layer.weight.grad is not None
        handle.undo()
        assert type(layer) is classes and vars(layer).keys() == names
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
        assert not nk.convert(nn.Sequential(copy.deepcopy(layer)), "batch").skipped


def test_a_constant_layer_whose_activation_would_be_lost_stays_constant() -> None:
    layer, _ = build(next(case for case in CONSTANT if "Act2d" in case.name))
    layer.act = nn.Hardswish()
    (row,) = nk.unfreeze(nn.Sequential(layer)).skipped
    assert row.why == "calls Hardswish after normalizing"
