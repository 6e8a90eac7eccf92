"""adapt_domains: a bank for each loader, measured with the others of its domain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import OptionError, StatisticsError, TypeMismatchError
from tests.adaptation.snapshot import state


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3),
                          nk.BatchNorm2d(3, act="relu"), nn.Dropout(0.5))  # fmt: skip
    model(torch.randn(8, 1, 8, 8))
    return model


def loaders(count: int = 3) -> list[list[Tensor]]:
    x = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return [list(((k + 1) * x[: 20 * (k + 1)] + k).split(20)) for k in range(count)]


@pytest.mark.parametrize("prior", [0, 16])
@pytest.mark.parametrize("training", [True, False])
def test_each_bank_is_as_adapted_to_its_domain_alone(prior: float, training: bool) -> None:
    model, data = net().train(training), loaders()
    before = state(model)
    expected = []
    for batches in data:
        one = copy.deepcopy(model)
        with nk.adapt(one, prior, batches=batches), torch.no_grad():
            expected.append(one(batches[0]))
    with nk.adapt_domains(model, data, prior) as handle:
        assert [m.training for m in model.modules()] == [training] * 7
        model.eval()
        for k, batches in enumerate(data):
            with nk.use_domain(model, k), torch.no_grad():
                torch.testing.assert_close(model(batches[0]), expected[k])
        with pytest.raises(StatisticsError, match="chosen domain"):
            model(data[0][0])
        assert "3 banks, of 20, 40, 60 samples" in repr(handle)
        model.train(training)
    assert state(model) == before


def test_layers_without_banks_keep_their_statistics_and_are_listed() -> None:
    tracked = nn.InstanceNorm2d(4, track_running_stats=True)
    model = nn.Sequential(tracked, *net(), nn.BatchNorm2d(3)).eval()
    model[0] = nn.Identity()
    model.insert(2, tracked)
    nk.freeze(model[-1])
    before = tracked.running_mean.clone()
    with nk.adapt_domains(model, loaders()) as handle:
        assert {row.name: row.why for row in handle.skipped} == {
            "8": "frozen",
            "2": "has no form with banks: keeps its statistics",
        }
        assert torch.equal(tracked.running_mean, before)
        assert not tracked.training
        assert type(tracked) is nn.InstanceNorm2d


def test_an_error_in_a_later_loader_restores_all() -> None:
    model = net()
    values, before = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]

    def broken() -> Any:
        yield torch.randn(20, 1, 8, 8)
        raise KeyError("disk")

    with pytest.raises(KeyError, match="disk"):
        nk.adapt_domains(model, [loaders()[0], broken()])
    assert [type(m) for m in model.modules()] == before
    torch.testing.assert_close(dict(model.state_dict()), dict(values), rtol=0, atol=0)
    assert all(m.training for m in model.modules())


def converted() -> nn.Module:
    model = net()
    nk.convert(model, ("domain", 2))
    return model


BAD: list[tuple[Callable[[], nn.Module], Any, type[Exception], str]] = [
    (net, {"a": loaders()[0]}, TypeMismatchError, "list of loaders"),
    (net, iter(loaders()), TypeMismatchError, "list of loaders"),
    (net, [], OptionError, "at least one"),
    (net, [torch.randn(20, 1, 8, 8)], TypeMismatchError, "single batch"),
    (net, [[]], StatisticsError, "batch"),
    (converted, loaders(2), OptionError, "without banks"),
    (lambda: nn.Sequential(nn.LayerNorm(3)), loaders(), StatisticsError, "adapt_domains"),
]


@pytest.mark.parametrize(("make", "data", "error", "text"), BAD)
def test_bad_input(
    make: Callable[[], nn.Module], data: Any, error: type[Exception], text: str
) -> None:
    model = make()
    values, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    with pytest.raises(error, match=text):
        nk.adapt_domains(model, data)
    assert [type(m) for m in model.modules()] == classes
    torch.testing.assert_close(dict(model.state_dict()), dict(values), rtol=0, atol=0)


def test_a_model_whose_layers_have_no_banks() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True))
    with pytest.raises(StatisticsError, match="batches=loader"):
        nk.adapt_domains(model, [[torch.randn(4, 1, 3, 3)]])
    assert type(model[0]) is nn.InstanceNorm2d
