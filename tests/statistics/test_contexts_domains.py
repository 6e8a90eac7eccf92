"""recalibrate by domain: each bank gets its own population, and the others stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import StatisticsError
from normkit.nn import DomainBatchNorm1d
from normkit.statistics.contexts import use_domain


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), DomainBatchNorm1d(4, domains=3), nn.Linear(4, 2))


def by_domain(model: nn.Module, batch: Any) -> Tensor:
    images, domain = batch
    with use_domain(model, domain):
        out: Tensor = model(images)
    return out


def test_each_domain_gets_its_own_statistics() -> None:
    model = net()
    data = [(torch.randn(50, 3) + 3 * (i % 2), i % 2) for i in range(20)]
    before = model[1].running_var[2].clone()
    found = nk.recalibrate(model, data, forward=by_domain)
    for domain in (0, 1):
        with torch.no_grad():
            x = model[0](torch.cat([images for images, d in data if d == domain]))
        one = found.layers[f"1[{domain}]"]
        torch.testing.assert_close(one.mean.float(), x.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model[1].running_var[domain], x.var(0), rtol=1e-5, atol=0)
        assert one.count == 500
    assert torch.equal(model[1].running_var[2], before)
    assert [(row.name, row.why) for row in found.skipped] == [("1[2]", "no batch of this domain")]
    assert model[1].domain is None
    found.undo()
    assert torch.equal(model[1].running_mean, torch.zeros(3, 4))


def test_one_domain_at_a_time() -> None:
    model = net()
    with use_domain(model, 1):
        nk.recalibrate(model, [torch.randn(50, 3) + 9])
    assert torch.equal(model[1].running_mean[0], torch.zeros(4))
    assert not torch.equal(model[1].running_mean[1], torch.zeros(4))


def test_missing_domain_is_an_error() -> None:
    model = net()
    with pytest.raises(StatisticsError, match="use_domain"):
        nk.recalibrate(model, [torch.randn(50, 3)])
    assert torch.equal(model[1].running_mean, torch.zeros(3, 4))
    assert not model[1]._forward_pre_hooks
