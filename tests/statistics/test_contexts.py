"""batch_statistics: evaluation by the batch's own statistics, and nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn import DomainBatchNorm1d
from normkit.statistics import StatsSpec, batch_statistics, recalibrate, stats_spec, use_domain
from normkit.surgery import accelerate, freeze
from tests.few import few
from tests.surgery.models import WILD, made


class Stubborn(nn.BatchNorm2d):
    """As inplace_abn and others: moves its statistics in training, asked or not; makes new ones."""

    def forward(self, input: Tensor) -> Tensor:
        y = nn.functional.batch_norm(input, None, None, self.weight, self.bias, True)
        if self.training:
            self.running_mean.add_(input.mean((0, 2, 3)))
            self.running_var = self.running_var + 1
        return y


stats_spec.register(Stubborn)(lambda layer: StatsSpec())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nn.BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "nn.InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "BatchNorm2d": lambda: nk.BatchNorm2d(3, act="silu", average="cumulative"),
    "InstanceNorm2d": lambda: nk.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "GhostBatchNorm2d": lambda: nk.GhostBatchNorm2d(3, 2),
    "SyncBatchNorm": lambda: nk.SyncBatchNorm(3),
    "Stubborn": lambda: Stubborn(3),
}


def everything(model: nn.Module) -> list[Any]:
    """State, modes and own attributes of all modules; buffers by identity and by value."""
    found: list[Any] = []
    for module in model.modules():
        found.append({k: v for k, v in vars(module).items() if not k.startswith("_")})
        found += [(k, id(b)) for k, b in module._buffers.items()]
    return found


def values(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_batch_statistics_match_training_without_updates(name: str, training: bool) -> None:
    layer = LAYERS[name]()
    x = torch.randn(6, 3, 4, 4) * 3 + 1
    layer(x + 1)
    model = nn.Sequential(nn.Dropout(0.9), layer, nn.Dropout(0.9)).train(training)
    expected = copy.deepcopy(layer).train()(x)
    assert name == "Stubborn" or not torch.equal(copy.deepcopy(layer).eval()(x), expected)
    before, kept = everything(model), values(model)
    with batch_statistics(model):
        assert torch.equal(model(x), expected)
        assert name == "Stubborn" or list(model.state_dict()) == list(kept)
        if name != "Stubborn":
            assert_equal(values(model), kept)
    assert_equal(values(model), kept)
    assert everything(model) == before


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", [n for n in WILD if n in {"vgg", "mobile", "residual", "twice"}])
def test_batch_statistics_in_whole_networks(name: str, accelerated: bool) -> None:
    model, x = made(name)
    if accelerated:
        accelerate(model)
    expected = copy.deepcopy(model).train()(x)  # none of them has dropout
    before, kept = everything(model), values(model)
    with batch_statistics(model):
        torch.testing.assert_close(model(x), expected)
        model(2 * x)
    assert everything(model) == before
    assert_equal(values(model), kept)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_restored_after_exception(kind: type[BaseException]) -> None:
    model, x = made("vgg")
    model[0].eval()
    model[0][1].train()
    before, kept = everything(model), values(model)

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise kind("midway")

    failing = nn.Sequential(model, Failing())
    with pytest.raises(kind, match="midway"), batch_statistics(failing):
        failing(x)
    assert everything(model) == before
    assert_equal(values(model), kept)


def test_nested_contexts() -> None:
    model, x = made("vgg")
    model.eval()
    before, outside = everything(model), model(x)
    with batch_statistics(model):
        y = model(x)
        middle = everything(model)
        with batch_statistics(model[0]):
            assert torch.equal(model(x), y)
        assert everything(model) == middle
        with batch_statistics(model), pytest.raises(ZeroDivisionError), batch_statistics(model):
            raise ZeroDivisionError
        assert torch.equal(model(x), y)
    assert everything(model) == before and torch.equal(model(x), outside)
    assert not torch.equal(y, outside)


@pytest.mark.parametrize("training", [True, False])
def test_model_eval_inside_context(training: bool) -> None:
    """Most of them call eval() first, and train() in the end."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train(training)
    x = torch.randn(8, 3) + 5
    before, kept = everything(model), values(model)

    def evaluate(net: nn.Module) -> Tensor:
        y: Tensor = net.eval()(x)
        net.train()
        return y

    with batch_statistics(model):
        y = evaluate(model)
        assert model[1].training and torch.equal(evaluate(copy.deepcopy(model)), y)
        assert model[0].eval() is model[0] and torch.equal(model[0](x), y)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    assert everything(model) == before
    assert_equal(values(model), kept)
    assert model.eval()(x).mean() > 1


def test_frozen_layers_stay_frozen() -> None:
    x = torch.randn(6, 3, 4, 4) + 1
    still = nn.Sequential(nk.FrozenBatchNorm2d(3), nn.BatchNorm2d(3))
    still[1](x)
    freeze(still[1])
    expected = still(x)
    model = nn.Sequential(still, nn.BatchNorm2d(3))
    assert torch.equal(still.train()(x), expected)
    with batch_statistics(model):
        assert torch.equal(still(x), expected)
        torch.testing.assert_close(model(x).mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    with pytest.raises(nk.StatisticsError, match=r"1 frozen and no other\. Fix: .*unfreeze"):
        batch_statistics(still).__enter__()


def test_nan_running_statistics_are_ignored() -> None:
    """What it is for: seeing what a model can do whose averages are broken."""
    for layer in (nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)):
        layer.running_mean.fill_(float("nan"))
        with batch_statistics(layer):
            assert layer(torch.randn(2, 3, 4, 4)).isfinite().all()
        assert layer.running_mean.isnan().all() and (layer.running_var == 1).all()


def test_gradients_match_training() -> None:
    model, x = made("residual")
    twin = copy.deepcopy(model)
    with batch_statistics(model):
        model(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], [p.grad for p in twin.parameters()]
    )


@pytest.mark.parametrize("instance", few([False, True], lambda instance: not instance))
def test_compiled_models(instance: bool) -> None:
    model, x = made("short")
    if instance:
        model.insert(0, nn.InstanceNorm2d(3, track_running_stats=True).double())
    model.eval()
    outside, expected = model(x), copy.deepcopy(model).train()(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kept = values(model)
    torch.testing.assert_close(compiled(x), outside)
    with batch_statistics(compiled):
        torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x), outside)
    assert_equal(values(model), kept)


def test_inference_mode() -> None:
    model, x = made("vgg")
    kept = values(model)
    with torch.inference_mode(), batch_statistics(model):
        model(x)
    assert_equal(values(model), kept)
    model(x)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ([nn.BatchNorm1d(2)], nk.TypeMismatchError, "a list"),
        (None, nk.TypeMismatchError, "received None"),
        (nn.Linear(2, 2), nk.StatisticsError, "a Linear with 0 frozen and no other"),
        (nn.GroupNorm(1, 2), nk.StatisticsError, "Fix: "),
        (nn.BatchNorm2d(2, track_running_stats=False), nk.StatisticsError, "Fix: "),
        (nn.LazyBatchNorm2d(), nk.StatisticsError, "has had none"),
    ],
    ids=str,
)
def test_unsupported_models(model: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        batch_statistics(model).__enter__()


def test_scripted_models_are_rejected() -> None:
    with pytest.raises(nk.TypeMismatchError, match=r"before torch\.jit\.script"):
        batch_statistics(torch.jit.script(nn.BatchNorm2d(3))).__enter__()


def test_population_statistics_by_domain() -> None:
    """Each bank gets those of its own domain; one whose domain does not come stays."""
    model = nn.Sequential(nn.Linear(4, 4), DomainBatchNorm1d(4, 3)).double()
    data = [
        (torch.randn(n, 4, dtype=torch.float64) + 10 * k, k) for n, k in ((5, 0), (9, 2), (6, 0))
    ]
    kept = values(model)

    def forward(net: nn.Module, batch: Any) -> Any:
        with use_domain(net, batch[1]):
            return net(batch[0])

    found = recalibrate(model, data, samples=None, forward=forward, progress=False)
    assert {name: row.count for name, row in found.layers.items()} == {"1[0]": 11, "1[2]": 9}
    for k in (0, 2):
        z = model[0](torch.cat([x for x, domain in data if domain == k]))
        torch.testing.assert_close(model[1].running_mean[k], z.mean(0))
        torch.testing.assert_close(model[1].running_var[k], z.var(0))
    assert torch.equal(model[1].running_mean[1], kept["1.running_mean"][1])
    assert model[1].domain is None
    found.undo()
    assert_equal(values(model), kept)
    with pytest.raises(nk.StatisticsError, match="use_domain"):
        recalibrate(model, [x for x, _ in data], progress=False)
    assert_equal(values(model), kept)
