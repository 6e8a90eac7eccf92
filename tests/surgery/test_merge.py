"""``nk.merge``: parts merged equal the whole, and what cannot be merged is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import NormkitError
from normkit.lab import data, models
from normkit.statistics import StatsSpec, stats_spec
from tests.tolerances import error


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 13 * 13, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10),
    )  # fmt: skip


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return models.build("lenet5", norm="torch-batch", in_channels=1, classes=10)


def images_of(number: int) -> tuple[Tensor, Tensor]:
    split = data.load("fashion-mnist", offline=True).train
    return next(iter(data.batches(split, number, seed=0)))


def worst(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(
        error(a[name].double(), b[name].double())
        for name in a
        if name.endswith(("running_mean", "running_var"))
    )


@pytest.mark.parametrize("make", [network, lenet])
def test_uneven_clients_equal_the_pooled_data(make: Callable[[], nn.Module]) -> None:
    """A federated round: one set of weights, five clients with other classes and sizes."""
    images, labels = images_of(1500)
    by_class = images[labels.argsort()]  # clients see different classes
    clients = by_class.split([60, 90, 150, 400, 800])
    batches = [list(client.split(50)) for client in clients]
    states, results = [], []
    for mine in batches:
        model = make()
        results.append(nk.recalibrate(model, mine, samples=None, layerwise=False))
        states.append(model.state_dict())
    whole = make()
    nk.recalibrate(
        whole, [batch for mine in batches for batch in mine], samples=None, layerwise=False
    )
    merged = nk.merge(states, results)
    assert worst(merged, whole.state_dict()) < 1e-6
    # By numbers alone the parts' own n − 1 are unknown: close, and stated.
    by_samples = nk.merge(states, [len(client) for client in clients])
    assert worst(by_samples, whole.state_dict()) < 5 / 1500
    # An average of the statistics, as FedAvg of the whole state dict makes it, is off by far.
    average = {name: torch.stack([s[name].double() for s in states]).mean(0) for name in states[0]}
    assert worst(average, whole.state_dict()) > 0.05
    # Loaded, it computes what the pooled network computes.
    loaded = make()
    loaded.load_state_dict(merged)
    x = images[:64]
    torch.testing.assert_close(loaded.eval()(x), whole.eval()(x), rtol=1e-4, atol=1e-5)


def batch_norm(mean: float, var: float, batches: int, **options: Any) -> dict[str, Any]:
    layer = nn.BatchNorm1d(2, **options)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(var)
    layer.num_batches_tracked.fill_(batches)
    with torch.no_grad():
        layer.weight.fill_(mean)
    return layer.state_dict()


def test_by_hand() -> None:
    merged = nk.merge([batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)], [3, 1])
    assert merged["running_mean"].tolist() == [1.0, 1.0]
    # 3/4 · (1.5 + 1) + 1/4 · (0.5 + 9)
    assert merged["running_var"].tolist() == [4.25, 4.25]
    assert merged["num_batches_tracked"].item() == 10
    assert merged["weight"].tolist() == [1.0, 1.0]
    assert list(merged) == list(nn.BatchNorm1d(2).state_dict())
    fresh = nn.BatchNorm1d(2)
    fresh.load_state_dict(merged)
    assert merged._metadata == fresh.state_dict()._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "weights", [[0.1, 0.1], [1e-3, 1e-3], [1, 1], [1e308, 1e308], [1e-308] * 2]
)
def test_the_size_of_weights_is_nothing(weights: list[float]) -> None:
    merged = nk.merge([batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)], weights)
    assert merged["running_mean"].tolist() == [2.0, 2.0]
    assert merged["running_var"].tolist() == [5.0, 5.0]
    new = batch_norm(0.0, 1.0, 0)
    states = [new, batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)]
    merged = nk.merge(states, [weights[0], *weights])
    assert merged["running_mean"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, iter])
def test_weights_of_every_kind_of_list(make: Callable[[list[float]], Any]) -> None:
    merged = nk.merge([batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)], make([3.0, 1.0]))
    assert merged["running_mean"].tolist() == [1.0, 1.0]


def test_far_means_cost_no_digits() -> None:
    states = [
        {name: value.double() for name, value in batch_norm(0.0, 1.0, 1).items()} for _ in range(2)
    ]
    for state, mean in zip(states, (1e8, 1e8 + 0.5), strict=True):
        state["running_mean"].fill_(mean)
    assert nk.merge(states)["running_var"].tolist() == [1.0625, 1.0625]


def test_batches_are_counted_once() -> None:
    """Rounds of federated learning: all clients begin from the server's count."""
    server = batch_norm(0.0, 1.0, 0)
    for _ in range(30):
        clients = [copy.deepcopy(server) for _ in range(8)]
        for client in clients:
            client["num_batches_tracked"] += 10
        server = nk.merge(clients, start=server)
    assert server["num_batches_tracked"].item() == 30 * 80
    with pytest.raises(nk.StatisticsError, match="num_batches_tracked"):
        for _ in range(30):
            server = nk.merge([copy.deepcopy(server) for _ in range(8)])
    with pytest.raises(nk.OptionError, match="in start, beside the first: missing"):
        nk.merge([server, copy.deepcopy(server)], start={})


def two_clients(make: Callable[[], nn.Module]) -> tuple[list[dict[str, Any]], list[Any], nn.Module]:
    """Clients whose images differ in size, so that samples and values are not the same shares."""
    parts = [torch.randn(8, 3, 4, 4), torch.randn(8, 3, 32, 32) + 1]
    states, results = [], []
    for part in parts:
        model = make()
        results.append(nk.recalibrate(model, [part], layerwise=False))
        states.append(copy.deepcopy(model.state_dict()))
    whole = make()
    nk.recalibrate(whole, parts, layerwise=False)
    return states, results, whole


def shared() -> nn.Module:
    layer = nn.BatchNorm2d(3)
    model = nn.Sequential()
    model.register_module("a", layer)
    model.register_module("b", layer)
    model.forward = lambda x: layer(x)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.BatchNorm2d(3)),
        lambda: nn.DataParallel(nn.Sequential(nn.BatchNorm2d(3))),
        lambda: torch.compile(nn.Sequential(nn.BatchNorm2d(3)), backend="eager"),
        lambda: torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.BatchNorm2d(3))),
        lambda: nn.Sequential(nn.BatchNorm2d(3).half().float()),
        shared,
    ],
    ids=["plain", "parallel", "compiled", "averaged", "types", "shared"],
)
def test_counts_of_values_reach_every_layer(make: Callable[[], nn.Module]) -> None:
    states, results, whole = two_clients(make)
    merged = nk.merge(states, results)
    assert worst(merged, whole.state_dict()) < 1e-6
    with pytest.raises(nk.OptionError, match="state dict 1 to hold the statistics"):
        nk.merge(states, results[::-1])
    stranger = nk.recalibrate(nn.BatchNorm1d(2), [torch.randn(9, 2)])
    with pytest.raises(nk.OptionError, match="state dict 2 to hold the statistics"):
        nk.merge(states, [results[0], stranger])


def test_recalibrations_know_instance_normalization() -> None:
    make = lambda: nn.InstanceNorm2d(3, track_running_stats=True)  # noqa: E731
    states, results, _ = two_clients(make)
    whole = make()
    parts = [state["running_var"].double() for state in states]
    merged = nk.merge(states, results)
    torch.testing.assert_close(merged["running_var"].double(), (parts[0] + parts[1]) / 2)
    assert worst(merged, nk.merge(states, results, model=whole)) == 0


def test_domains_measured_by_some_parts() -> None:
    states, results = [], []
    for domain in (0, 1):
        layer = nk.DomainBatchNorm1d(3, 2)
        layer.running_mean.fill_(100)  # stale
        layer.num_batches_tracked.fill_(7)
        layer.domain = domain
        results.append(nk.recalibrate(layer, [torch.randn(50, 3)]))
        states.append(copy.deepcopy(layer.state_dict()))
    merged = nk.merge(states, results)
    for domain in (0, 1):
        assert torch.equal(merged["running_mean"][domain], states[domain]["running_mean"][domain])


class Own(nn.BatchNorm1d):
    """With its own forward, so that no tool knows it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def test_layers_that_no_tool_knows_are_merged_by_name() -> None:
    states = [batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)]
    for model in (Own(2), nn.BatchNorm1d(2)):
        assert nk.merge(states, model=model)["running_var"].tolist() == [5.0, 5.0]


def test_scalar_statistics() -> None:
    def state(mean: float, count: int) -> dict[str, Any]:
        return {"running_mean": torch.tensor(mean), "running_var": torch.tensor(1.0),
                "num_batches_tracked": torch.tensor(count)}  # fmt: skip

    assert nk.merge([state(0.0, 0), state(3.0, 5)])["running_mean"].item() == 3.0
    assert nk.merge([state(0.0, 1), state(2.0, 5)])["running_var"].item() == 2.0


def test_new_layers_count_for_nothing() -> None:
    trained = batch_norm(3.0, 2.0, 5)
    new = batch_norm(0.0, 1.0, 0)
    merged = nk.merge([new, trained, copy.deepcopy(new)])
    assert merged["running_mean"].tolist() == [3.0, 3.0]
    assert merged["running_var"].tolist() == [2.0, 2.0]
    # Converted networks have no count, and statistics all the same.
    converted = batch_norm(1.0, 2.0, 0)
    assert nk.merge([converted, trained])["running_mean"].tolist() == [2.0, 2.0]
    both = nk.merge([new, copy.deepcopy(new)])
    assert both["running_mean"].tolist() == [0.0, 0.0]
    assert both["running_var"].tolist() == [1.0, 1.0]


def test_banks_merge_one_by_one() -> None:
    layers = [nk.DomainBatchNorm1d(3, 2) for _ in range(2)]
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for layer, domain in zip(layers, (0, 1), strict=True):
        with nk.use_domain(layer, domain):
            layer(x + domain)
    merged = nk.merge([layer.state_dict() for layer in layers])
    for domain, layer in enumerate(layers):  # each bank has been seen by one of them
        assert torch.equal(merged["running_mean"][domain], layer.running_mean[domain])
        assert torch.equal(merged["running_var"][domain], layer.running_var[domain])
    assert merged["num_batches_tracked"].tolist() == [1, 1]


def test_instance_normalization_has_nothing_between() -> None:
    layers = [nn.InstanceNorm1d(2, track_running_stats=True) for _ in range(2)]
    x = (
        torch.randn(32, 2, 9, generator=torch.Generator().manual_seed(0))
        + torch.arange(32)[:, None, None]
    )
    parts = x.split([8, 24])
    results = [nk.recalibrate(m, [p]) for m, p in zip(layers, parts, strict=True)]
    whole = nn.InstanceNorm1d(2, track_running_stats=True)
    nk.recalibrate(whole, [x])
    states = [layer.state_dict() for layer in layers]
    for weights in (results, [8, 24]):
        merged = nk.merge(states, weights, model=whole)
        assert worst(merged, whole.state_dict()) < 1e-6


class Custom(nn.Module):
    """Statistics under names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.zeros(2))
        self.register_buffer("v", torch.ones(2))


def test_registered_layers_are_known_by_the_model() -> None:
    stats_spec.register(Custom, lambda layer: StatsSpec("mu", "v"))
    states = []
    for mean in (0.0, 2.0):
        layer = Custom()
        layer.mu.fill_(mean)
        states.append(layer.state_dict())
    assert nk.merge(states, model=Custom())["v"].tolist() == [2.0, 2.0]
    assert nk.merge(states)["v"].tolist() == [1.0, 1.0]  # without, they are tensors like others


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_and_inputs_stay(dtype: torch.dtype) -> None:
    models = [network().to(dtype) for _ in range(3)]
    for number, model in enumerate(models):
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(number)
    states = [model.state_dict() for model in models]
    before = copy.deepcopy(states)
    merged = nk.merge(states)
    for name, value in merged.items():
        assert value.dtype == states[0][name].dtype
        assert value.data_ptr() not in {state[name].data_ptr() for state in states}
    for state, old in zip(states, before, strict=True):
        assert all(torch.equal(state[name], old[name]) for name in old)
    # Means within one rounding of what float64 gives.
    exact = torch.stack([state["4.weight"].double() for state in states]).mean(0)
    limit = 1e-15 if dtype == torch.float64 else 0.0
    torch.testing.assert_close(merged["4.weight"], exact.to(dtype), rtol=limit, atol=limit)


def test_rules_for_other_entries() -> None:
    def state(step: int, flag: bool, name: str = "a") -> dict[str, Any]:
        return {"step": torch.tensor(step), "on": torch.tensor(flag), "extra": name}

    with pytest.raises(nk.OptionError, match=r"step, a tensor of torch.int64"):
        nk.merge([state(1, True), state(2, True)])
    merged = nk.merge([state(1, True), state(2, True)], rules={"st*": "max"})
    assert merged["step"].item() == 2
    assert merged["on"].item() is True
    assert merged["extra"] == "a"
    assert nk.merge([state(1, True), state(2, True)], rules={"step": "sum"})["step"].item() == 3
    with pytest.raises(nk.OptionError, match="extra, a str"):
        nk.merge([state(1, True), state(1, True, "b")])
    with pytest.raises(nk.OptionError, match="with the rule 'mean'"):
        nk.merge([state(1, True), state(2, True)], rules={"step": "mean"})
    with pytest.raises(nk.StatisticsError, match="more in step"):
        nk.merge([state(2**62, True), state(2**62, True)], rules={"step": "sum"})
    with pytest.raises(nk.OptionError, match=r"'no\.\*', which fits none"):
        nk.merge([state(1, True), state(1, True)], rules={"no.*": "sum"})


def test_rules_for_statistics() -> None:
    """FedBN keeps each client's own normalization."""
    states = [batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)]
    merged = nk.merge(states, rules={"running_*": "first", "weight": "first", "b*": "mean"})
    assert merged["running_mean"].tolist() == [0.0, 0.0]
    assert merged["running_var"].tolist() == [1.5, 1.5]
    for rule in ("mean", "max", "sum"):
        with pytest.raises(nk.OptionError, match="merged as moments"):
            nk.merge(states, rules={"running_*": rule})  # type: ignore[dict-item]
    with pytest.raises(nk.OptionError, match="one rule for a mean and its variance"):
        nk.merge(states, rules={"running_var": "first"})


def test_equal_entries_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(3000, dtype=torch.float64, generator=generator)
    mask = torch.full((3,), -torch.inf)
    states = [{"w": weight.clone(), "mask": mask.clone()} for _ in range(3)]
    merged = nk.merge(states, [1, 2, 4])
    assert torch.equal(merged["w"], weight)
    assert torch.equal(merged["mask"], mask)


A, B = batch_norm(0.0, 1.5, 4), batch_norm(4.0, 0.5, 6)


def changed(**values: Any) -> dict[str, Any]:
    return {**B, **values}


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ([A], {}, "two or more state dicts; received one"),
        ([], {}, "two or more state dicts; received none"),
        (A, {}, "two or more state dicts"),
        ([A, nn.BatchNorm1d(2)], {}, r"pass model.state_dict\(\)"),
        ([{"state_dict": A}, {"state_dict": B}], {}, r"pass checkpoint\['state_dict'\]"),
        ([A, B], {"weights": [1]}, "2 weights"),
        ([A, B], {"weights": [1, -1]}, "2 weights"),
        ([A, B], {"weights": [0, 0]}, "not all 0"),
        ([A, B], {"weights": [1, float("nan")]}, "2 weights"),
        ([A, B], {"weights": [True, False]}, "2 weights"),
        ([A, B], {"weights": {0: 1, 1: 2}}, "2 weights"),
        ([A, B], {"weights": {1.0, 2.0}}, "2 weights"),
        ([A, B], {"weights": 0.5}, "2 weights"),
        ([A, B], {"weights": [10**400, 1]}, "2 weights"),
        ([A, A], {}, "the same tensors in numbers 1 and 2"),
        ([A, {0: torch.ones(1)}], {}, r"pass model.state_dict\(\)"),
        ([A, changed(bias=np.zeros(2))], {}, "torch.from_numpy"),
        ([A, changed(running_var=torch.ones(3))], {}, "of another shape or type running_var"),
        ([A, B], {"rules": ["bias"]}, "rules of 'mean'"),
        ([A, B], {"rules": {"x": "median"}}, "rules of 'mean'"),
        (
            [A, {k: v for k, v in B.items() if k != "bias"}],
            {},
            "in number 2, beside the first: missing bias",
        ),
        ([A, changed(more=torch.zeros(1))], {}, "unexpected more"),
        ([A, changed(bias=torch.zeros(3))], {}, "of another shape or type bias"),
        ([A, changed(bias=torch.zeros(2).half())], {}, "of another shape or type bias"),
        ([A, changed(bias=torch.full((2,), torch.nan))], {}, "NaN or infinity in bias of number 2"),
        (
            [A, changed(running_var=torch.full((2,), torch.inf))],
            {},
            "infinity in running_var of number 2",
        ),
        (
            [A, changed(bias=torch.zeros(2, device="meta"))],
            {},
            "bias of number 2, which is on the meta",
        ),
        ([A, changed(bias=torch.zeros(2).to_sparse())], {}, "bias of number 2, which is sparse"),
        ([A, B], {"model": network()}, "a model with the names of the state dicts"),
        ([A, B], {"model": "lenet"}, "an nn.Module for merge"),
    ],
)
def test_bad_input_is_refused(arguments: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(NormkitError, match=says):
        nk.merge(arguments, **options)


def test_too_large_for_the_type_is_refused() -> None:
    states = []
    for mean in (-6e4, 6e4):
        layer = nn.BatchNorm1d(2).half()
        layer.running_mean.fill_(mean)
        layer.num_batches_tracked.fill_(1)
        states.append(layer.state_dict())
    with pytest.raises(nk.StatisticsError, match="float16"):
        nk.merge(states)


def test_layer_by_layer_is_said() -> None:
    states, results = [], []
    for _ in range(2):
        model = network()
        results.append(nk.recalibrate(model, [torch.randn(4, 1, 28, 28)] * 3, layerwise=True))
        states.append(model.state_dict())
    with pytest.warns(UserWarning, match="layerwise=False"):
        nk.merge(states, results)


def test_recalibrations_with_numbers_are_refused() -> None:
    layer = nn.BatchNorm1d(2)
    result = nk.recalibrate(layer, [torch.randn(8, 2), torch.randn(8, 2)])
    with pytest.raises(nk.OptionError, match="some of them what recalibrate returned"):
        nk.merge([A, B], [result, 1.0])


def test_soup_needs_recalibration() -> None:
    """Of networks with other weights the merged statistics are nobody's, as the docstring says."""
    images, labels = images_of(1200)
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = lenet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in zip(images.split(100), labels.split(100), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        states.append(model.state_dict())
    soup = lenet()
    soup.load_state_dict(nk.merge(states))
    shift = nk.recalibrate(soup, list(images.split(100))).shifts
    assert max(one.variance for one in shift.values()) > 1.5
