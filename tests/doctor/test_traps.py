"""Data and models on which a doctor is easily wrong: nothing false is said, nothing is changed."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.doctor.flow import traced_flow, watched_flow
from normkit.doctor.order import between_batches, labels_between_batches

Batches = list[tuple[Tensor, Tensor]]


def data(count: int = 20, size: int = 32, features: int = 8, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        x = torch.randn(size, features, generator=generator)
        out.append((x, (x[:, 0] > 0).long()))
    return out


def net(features: int = 8, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(features, 16, bias=False), nn.BatchNorm1d(16, **options), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip


def fit(model: nn.Module, batches: Any, epochs: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def rules(*args: Any, **options: Any) -> dict[str, str]:
    return {one.rule: one.severity for one in nk.diagnose(*args, **options).findings}


class Counting(nn.Module):
    """Writes to itself in each forward, and so in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.log = net(), []  # type: ignore[var-annotated]
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.log.append(x)
        if x.sum() > 1e9:  # no trace goes on from here
            raise ValueError
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_trace_leaves_the_model_alone() -> None:
    model = Counting()
    nk.diagnose(model)
    assert model.log == []
    assert int(model.steps) == 0
    pickle.dumps(model)


class Language(nn.Module):
    """Predicts the next token, and shifts the labels itself, as causal language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = 20 * F.one_hot((input_ids + 1) % 10, 10).float()
        logits = self.norm(logits.flatten(0, 1)).view_as(logits) + logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def test_a_model_that_shifts_its_labels_is_scored_by_its_own_loss() -> None:
    ids = (torch.arange(8) + torch.randint(10, (16, 1))) % 10
    batches = [{"input_ids": ids, "labels": ids}] * 4
    result = nk.diagnose(Language(), batches, batches)
    assert result.unit == "loss"
    assert result.score is not None
    assert result.score < 0.01


def test_what_is_not_tried_has_no_gain_and_no_mend() -> None:
    model, train = fit(net(), data()), data()
    odd = [*train, (train[0][0][:3], train[0][1][:3])]
    (last,) = nk.diagnose(model, odd, data(seed=1)).of("NK204")
    assert last.gain is None
    assert not last.can_mend
    # Statistics of two evaluation batches are not surely better; what helps is the other scale.
    test = data(2, seed=1)
    scaled = [(1.6 * x, y) for x, y in test]
    (found,) = nk.diagnose(model, train, scaled).of("NK301")
    assert found.severity == "warning"
    assert found.gain is not None
    assert found.gain.after == pytest.approx(nk.diagnose(model, train, test).score, abs=2)
    with pytest.raises(nk.OptionError, match="prepare both alike"):
        found.mend()
    assert not model._forward_pre_hooks


def test_a_last_batch_that_is_none() -> None:
    model = fit(net(), data())
    x, y = data(1, size=20)[0]
    whole = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64)
    assert "NK204" not in rules(model, whole)
    odd = [*data(), (x[:3], y[:3])]
    model.train()
    model[1].eval()  # type: ignore[index, operator]
    assert "NK204" not in rules(model, odd)


def test_columns_that_never_vary() -> None:
    def flat(seed: int, scale: float = 1.0) -> Batches:
        return [
            (scale * torch.cat([torch.zeros(len(x), 100), x.abs()], 1), y)
            for x, y in data(seed=seed)
        ]

    model = fit(net(108), flat(0))
    assert set(rules(model, flat(0), flat(1)).values()) <= {"note"}
    assert rules(fit(net(108), flat(0)), flat(0, 60))["NK207"] == "warning"


class Prepared(nn.Module):
    """Divides the pixels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float() / 255)  # type: ignore[no-any-return]


def test_inputs_that_no_layer_takes_as_they_come() -> None:
    pixels = [((60 * x).abs().clamp(0, 255), y) for x, y in data()]
    assert "NK207" in rules(net(), pixels)
    assert "NK207" not in rules(Prepared(), pixels)
    assert "NK207" not in rules(Prepared(), [(x.byte(), y) for x, y in pixels])
    tokens = nn.Sequential(nn.Embedding(256, 8), nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
    assert "NK207" not in rules(tokens, [(x.byte().int(), y) for x, y in pixels])


def test_batches_of_images_of_their_own_size() -> None:
    generator = torch.Generator().manual_seed(0)

    def image() -> Tensor:
        side = int(torch.randint(6, 12, (1,), generator=generator))
        return torch.rand(3, side, side, generator=generator) * torch.rand(1, generator=generator)

    batches = [([image(), image()], [{}, {}]) for _ in range(30)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    found = rules(model, batches, forward=lambda model, batch: [model(x[None]) for x in batch[0]])
    assert "NK205" not in found


def test_order_does_not_matter_without_batch_statistics() -> None:
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    order = y.argsort(stable=True)
    batches = list(zip(x[order].split(32), y[order].split(32), strict=True))
    model = fit(net(), data())
    assert "NK205" in rules(model, batches)
    nk.freeze(model)
    assert "NK205" not in rules(model, batches)


def test_ignored_labels_are_no_class() -> None:
    batches = data()
    for i, (_, y) in enumerate(batches):
        if i % 2:
            y[:30] = -100
    assert "NK205" not in rules(fit(net(), data()), batches)
    nothing = [(x, torch.full_like(y, -100)) for x, y in data()]
    result = nk.diagnose(fit(net(), data()), data(), nothing)
    assert result.score is None
    assert result.gain is None


def test_labels_by_counts_are_labels_by_indicators() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (640,), generator=generator)
    batch = torch.arange(640) // 32
    labels[batch < 4] = 0
    by_counts = labels_between_batches(labels, batch)
    by_indicators = between_batches(F.one_hot(labels).double(), batch)
    assert by_counts == (pytest.approx(by_indicators[0]), by_indicators[1])
    assert by_counts[1]


class InPlace(nn.Module):
    """Adds to what a normalization made before the next one takes it, as PyramidNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += x
        return self.second(y)  # type: ignore[no-any-return]


def test_in_place_functions_between_modules() -> None:
    model, batch = InPlace(), data(1)[0]
    assert traced_flow(model).makers == {}
    assert watched_flow(model, batch, None).makers == {}
    assert "NK114" not in rules(model, data())


def test_batches_that_are_domains_are_not_called_composed() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for x, y in data(60):
        scale = torch.rand(1, generator=generator) * 4 + 0.2
        batches.append((scale * x + 5 * torch.randn(1, 8, generator=generator), y))
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2))
    fit(model, batches)
    (found,) = nk.diagnose(model, batches, batches).of("NK303")
    assert "domain" in found.says
    assert "label" not in found.says


class Foreign(nn.InstanceNorm1d):
    """Normalizes the nodes of a graph, (nodes, C), as libraries of graphs do."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


def test_layers_that_normalize_other_axes() -> None:
    graph = nn.Sequential(nn.Linear(8, 8), Foreign(8), nn.Linear(8, 2))
    assert "NK211" not in rules(graph, data())
    unbatched = nn.Sequential(nn.InstanceNorm1d(32))
    assert "NK211" not in rules(unbatched, [x for x, _ in data()])


def test_empty_batches_and_loaders() -> None:
    model, empty = fit(net(), data()), (torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    result = nk.diagnose(model, [*data(), empty], [*data(seed=1), empty])
    assert result.score == nk.diagnose(model, data(), data(seed=1)).score
    for args in [([],), (data(), [])]:
        with pytest.raises(nk.DataError, match="batches; received none"):
            nk.diagnose(model, *args)


def test_lazy_layers_are_refused_with_data_and_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    with pytest.raises(nk.StatisticsError, match="lazy layers"):
        nk.diagnose(model, data())
    assert isinstance(model[0].weight, nn.UninitializedParameter)


class Functional(nn.Module):
    """Calls dropout as a function, and its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 64), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.second = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x)), 0.7, self.training)
        return self.last(self.norm(input=self.second(x)))  # type: ignore[no-any-return]


def test_dropout_as_a_function_is_found() -> None:
    assert rules(fit(Functional(), data()), data())["NK210"] == "warning"


def test_a_model_that_was_not_trained_is_not_stale() -> None:
    assert set(rules(net(), data()).values()) == {"note"}


def test_what_helps_most_comes_before_what_helps_little() -> None:
    model = fit(net(), data())
    model[1].running_var.mul_(1.5)  # type: ignore[index, operator, union-attr]
    raw = [(3 * x + 5, y) for x, y in data(seed=1)]
    found = [one for one in nk.diagnose(model, data(), raw).findings if one.severity == "warning"]
    assert found[0].rule == "NK301"
    assert len(found) > 1
