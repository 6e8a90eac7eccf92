"""Rules about the optimizer: each finds its fault, and is silent on a look-alike."""

from __future__ import annotations

import torch
from torch import nn

from tests.doctor.nets import find, net, one, trained


def test_nk122_weight_decay() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    found = one(model, "NK122", "note", "1", "4", optimizer=optimizer)
    assert found.value == 0.05
    assert "AdamW decays 4 of 4" in found.says
    assert "decoupled" in found.says
    norms = [*model[1].parameters(), *model[4].parameters()]
    others = [p for p in model.parameters() if not any(p is norm for norm in norms)]
    groups = [{"params": others}, {"params": norms, "weight_decay": 0}]
    assert not find(model, "NK122", optimizer=torch.optim.AdamW(groups, weight_decay=0.05))


def test_nk123_parameters_outside_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not find(model, "NK123", optimizer=optimizer)
    model[4] = trained(nn.BatchNorm2d(8))
    found = one(model, "NK123", "warning", "4", optimizer=optimizer)
    assert "2 tensors that are not in the model" in found.says
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    one(model, "NK123", "error", "", optimizer=other)
    head = torch.optim.SGD(model[8].parameters(), lr=0.1)
    one(model, "NK123", "note", "1", "4", optimizer=head)
    model[:8].requires_grad_(False)
    assert not find(model, "NK123", optimizer=head)
    # The average of a model's weights has parameters of its own.
    average = torch.optim.swa_utils.AveragedModel(model)
    assert not find(average, "NK123", optimizer=head)


def test_nk124_rates() -> None:
    model = net()
    first = list(model[1].parameters())
    others = [p for p in model.parameters() if not any(p is norm for norm in first)]

    def rates(norms: float, rest: float = 0.1) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": first, "lr": norms}, {"params": others, "lr": rest}])

    one(model, "NK124", "warning", "1", optimizer=rates(0))
    one(model, "NK124", "note", "1", optimizer=rates(1.0))
    one(model, "NK124", "note", "1", optimizer=rates(0.01))
    assert not find(model, "NK124", optimizer=rates(0.05))
    assert not find(model, "NK124", optimizer=rates(0, 0))  # a schedule's first step
    at_its_end = rates(0)
    torch.optim.lr_scheduler.LambdaLR(at_its_end, lambda step: 0.0)
    one(model, "NK124", "warning", "1", optimizer=at_its_end)
