"""Models that look like the faults of the NK1xx rules, and are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.doctor.norms import find_norms
from normkit.doctor.rules.nk122_weight_decay import DECOUPLED, IN_GRADIENT
from normkit.doctor.states import drawn_at_random
from tests.doctor.nets import batches, find, net, one, trained

Batches = list[tuple[Tensor, Tensor]]


def data(count: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x = 4 + 3 * torch.randn(64 * count, 8, generator=generator)
    return list(zip(x.split(64), (x[:, 0] * x[:, 1] > 16).long().split(64), strict=True))


def fitted(mode: Callable[[nn.Module], Any], **options: Any) -> nn.Sequential:
    """Train a layer whose statistics never move, in one mode or the other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16, **options), nn.ReLU(), nn.Linear(16, 2)
    )
    mode(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for x, y in 20 * data():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    if not options:
        model[1].reset_running_stats()
    return model.train()


def accuracy(model: nn.Module) -> float:
    training = model.training
    right = [(model.eval()(x).argmax(1) == y).float().mean() for x, y in data()]
    model.train(training)
    return float(torch.stack(right).mean())


@pytest.mark.parametrize("labels", ["none", "training", "evaluation"])
def test_nk101_tells_what_was_trained_in_evaluation_mode(labels: str) -> None:
    options = {
        "none": {},
        "training": {"train": data()},
        "evaluation": {"train": [x for x, _ in data()], "evaluation": data()},
    }[labels]
    lost, never = fitted(nn.Module.train), fitted(nn.Module.eval)
    if labels == "none":
        says = {one(each, "NK101", "warning", "1").says for each in (lost, never)}
        assert len(says) == 1
        assert "If that was in training mode" in says.pop()
        return
    before = accuracy(lost)
    one(lost, "NK101", "error", "1", **options).mend()
    assert accuracy(lost) > before + 0.2
    found = one(never, "NK101", "warning", "1", **options)
    assert ("worse (loss 0." if labels == "training" else "worse (−") in found.says
    assert not found.can_mend
    before = accuracy(never)
    nk.recalibrate(never, data(), progress=False)
    assert accuracy(never) < before - 0.2  # why it cannot


def test_nk103_and_nk108_are_errors_only_where_a_mend_helps() -> None:
    for mode, severity in ((nn.Module.train, "error"), (nn.Module.eval, "warning")):
        one(fitted(mode, momentum=0.0), "NK103", severity, "1", train=data())
        off = fitted(mode)
        off[1].track_running_stats = False
        one(off, "NK108", severity, "1", train=data())


def test_nk103_of_a_model_that_only_serves_is_a_note() -> None:
    model = net(momentum=0.0)
    one(model.eval(), "NK103", "note", "1", "4")
    model[1].num_batches_tracked += 1  # trained so
    one(model, "NK103", "warning", "1", "4")


def test_nk101_of_a_fresh_head_without_gamma_and_beta_is_a_note() -> None:
    head = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False))
    model = nn.Sequential(nn.Linear(8, 8), trained(nn.BatchNorm1d(8)), nn.ReLU(), head)
    one(model, "NK101", "note", "3.1")


def drawn() -> nn.Sequential:
    """γ and β at random, as timm makes those of RepVGG."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(width) for width in (48, 48, 96, 96, 192, 192, 192, 512)]
    for norm in norms:
        nn.init.normal_(norm.weight, 0.1, 0.1)
        nn.init.normal_(norm.bias, 0.0, 0.1)
    return nn.Sequential(*norms)


def test_nk101_tells_beta_drawn_at_random_from_trained_ones() -> None:
    model = drawn()
    one(model, "NK101", "note", *"01234567")
    with torch.no_grad():
        model[3].bias -= 0.1  # training moves the layers by different amounts
    assert find(model, "NK101")[0].severity == "warning"
    model = drawn()
    with torch.no_grad():
        model[3].bias *= 2
    assert not drawn_at_random(find_norms(model))
    counted = drawn()
    counted[0].num_batches_tracked += 1
    assert not drawn_at_random(find_norms(counted))


def test_nk102_gamma_or_beta_that_is_not_finite() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight[0] = float("nan")
        model[1].bias[1] = float("inf")
    for options in ({}, {"train": batches()}):
        found = one(model, "NK102", "error", "1", **options)
        assert found.value == 2
        assert not found.can_mend


@pytest.mark.parametrize(
    ("rule", "options"),
    [("NK103", {"momentum": 0.0}), ("NK104", {"momentum": 0.99}), ("NK120", {"momentum": 1e-4}),
     ("NK121", {"momentum": None})],
)  # fmt: skip
def test_momentum_of_layers_held_in_evaluation_mode_is_never_used(rule: str, options: Any) -> None:
    model = net(**options).train()
    assert find(model, rule)
    model[1].eval()
    assert find(model, rule)[0].places == ("4",)
    model[4].eval()
    assert not find(model, rule)


def test_nk105_of_a_model_that_serves_is_a_note() -> None:
    model = nn.Sequential(trained(nn.BatchNorm1d(16, momentum=0.01))).bfloat16()
    one(model, "NK105", "warning", "0")
    one(model.eval(), "NK105", "note", "0")


def test_nk106_leaves_layers_that_multiply_by_one_and_gamma() -> None:
    class LayerNorm1P(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)

    for layer in (LayerNorm1P(64), nn.LayerNorm(64)):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[:20] = 0.1
        assert bool(find(nn.Sequential(layer), "NK106")) is (type(layer) is nn.LayerNorm)


def test_nk107_says_at_what_scale_channels_come_out() -> None:
    layer = trained(nn.BatchNorm1d(8, eps=1e-3))
    layer.running_var.fill_(8e-4)
    found = one(nn.Sequential(layer), "NK107", "note", "0")
    assert "8 come out at 0.67 of unit scale" in found.says
    assert "constant" not in found.says + found.do
    x = layer.running_mean + 8e-4**0.5 * torch.randn(
        100_000, 8, generator=torch.Generator().manual_seed(0)
    )
    scale = (layer.eval()(x).std(0) / layer.weight.abs()).mean()
    assert float(scale.detach()) == pytest.approx(0.667, abs=0.01)


@pytest.mark.parametrize("eps", [0.99, 0.5, 1.0, 0.1])
@pytest.mark.parametrize("fresh", [True, False])
def test_nk109_mends_without_a_new_fault(eps: float, fresh: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, eps, 1e-3))
    if not fresh:
        trained(model[1])
    found = one(model, "NK109", "warning", "1")
    found.mend()
    assert model[1].momentum == pytest.approx(0.01 if eps == 0.99 else 0.1)
    assert f"momentum={model[1].momentum:g}" in found.do
    assert not find(model, "NK104")
    if fresh:
        assert model[1].eps == 1e-3
        assert not find(model, "NK109")
    else:
        assert "ε stays" in found.do
        assert "fit their ε" in one(model, "NK109", "warning", "1").do


def test_nk120_of_converted_statistics_is_a_note() -> None:
    converted = net(momentum=3e-4)
    one(converted, "NK120", "note", "1", "4")
    for layer in (converted[1], converted[4]):
        layer.num_batches_tracked.fill_(100)
    one(converted, "NK120", "warning", "1", "4")


def part() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 4))


def test_nk110_momentum_encoders_are_a_note() -> None:
    model = nn.ModuleDict({"online": part(), "head": part()[:1]})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)
    one(model, "NK110", "note", "target.1")
    model["target"] = nn.Sequential(*part(), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    one(model, "NK110", "warning", "target.1")
    # Another layer alone is none, nor is the next block of a backbone, of the same shapes.
    single = nn.ModuleDict({"first": nn.BatchNorm1d(8), "second": nn.BatchNorm1d(8)})
    single["first"].requires_grad_(False)
    one(single, "NK110", "warning", "first")
    blocks = nn.Sequential(part(), part())
    blocks[0].requires_grad_(False)
    one(blocks, "NK110", "warning", "0.1")


@pytest.mark.parametrize("cls", [*IN_GRADIENT, *DECOUPLED])
def test_nk122_says_of_decay_what_the_optimizer_does(cls: Any) -> None:
    def steps(decay: float, added: float) -> Tensor:
        p = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
        optimizer = cls([p], lr=0.05, weight_decay=decay)
        for _ in range(3):
            p.grad = 0.3 + added * p.detach()
            optimizer.step()
        return p.detach()

    same = torch.allclose(steps(0.2, 0.0), steps(0.0, 0.2))
    assert same is (cls in IN_GRADIENT)
    model = net()
    optimizer = cls(model.parameters(), lr=0.05, weight_decay=0.2)
    says = one(model, "NK122", "note", "1", "4", optimizer=optimizer).says
    assert ("added to the gradient" in says) is same

    class Mine(cls):  # type: ignore[misc]
        pass

    mine = Mine(model.parameters(), lr=0.05, weight_decay=0.2)
    assert "gradient" not in one(model, "NK122", "note", "1", "4", optimizer=mine).says
