"""adapt: evaluation on statistics of the data mixed with remembered ones, and nothing else changed.

The formula is computed again here by hand, in float64, from the layer's input.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import OptionError, StatisticsError, TypeMismatchError
from normkit.statistics import StatsSpec, stats_spec
from tests.adaptation.snapshot import state
from tests.surgery.models import WILD, made


class ChannelsLast(nn.Module):
    """Third-party layer with its channels last and names of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("v", torch.ones(channels))
        self.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mu) / (self.v + self.eps).sqrt()


@stats_spec.register(ChannelsLast)
def _(layer: ChannelsLast) -> StatsSpec:
    return StatsSpec("mu", "v", values=lambda layer, x: x.movedim(-1, 1))


def domain_layer(channels: int) -> nn.Module:
    layer = nk.DomainBatchNorm2d(channels, 2)
    layer.domain = 1
    return layer


IMAGES = (6, 3, 4, 5)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "nn.BatchNorm1d": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "nn.BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(3), (6, 3, 7)),
    "nn.BatchNorm2d": (lambda: nn.BatchNorm2d(3, eps=0.1), IMAGES),
    "nn.BatchNorm3d": (lambda: nn.BatchNorm3d(3, affine=False), (6, 3, 2, 3, 2)),
    "nn.SyncBatchNorm": (lambda: nn.SyncBatchNorm(3), IMAGES),
    "momentum 0": (lambda: nn.BatchNorm2d(3, momentum=0.0), IMAGES),
    "BatchNorm1d": (lambda: nk.BatchNorm1d(3), (6, 3)),
    "BatchNorm2d": (lambda: nk.BatchNorm2d(3, average="debiased"), IMAGES),
    "BatchNorm3d": (lambda: nk.BatchNorm3d(3), (6, 3, 2, 3, 2)),
    "GhostBatchNorm2d": (lambda: nk.GhostBatchNorm2d(3, 2), IMAGES),
    "BatchRenorm2d": (lambda: nk.BatchRenorm2d(3), IMAGES),
    "SyncBatchNorm": (lambda: nk.SyncBatchNorm(3), IMAGES),
    "DomainBatchNorm2d": (lambda: domain_layer(3), IMAGES),
    "nn.InstanceNorm2d": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), IMAGES,
    ),
    "InstanceNorm2d": (
        lambda: nk.InstanceNorm2d(3, affine=True, track_running_stats=True), IMAGES,
    ),
    "third party": (lambda: ChannelsLast(3), (6, 4, 3)),
}  # fmt: skip


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    """A layer with statistics and γ, β unlike those it starts with, and another domain's input."""
    make, shape = LAYERS[name]
    layer, generator = make(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(values + (0.5 if "var" in key or key == "v" else 0))
    return layer.eval(), 2 * torch.randn(shape, generator=generator) + 3


def by_hand(layer: Any, x: Tensor, prior: float) -> Tensor:
    """(Nμ_s + nμ_t) / (N + n) and so the variance; normalize; γ and β."""
    layer, x = copy.deepcopy(layer).double(), x.double()
    spec = stats_spec(layer)
    assert spec is not None
    values = spec.values(layer, x)
    mean, var = getattr(layer, spec.mean), getattr(layer, spec.var)
    if mean.dim() == 2:
        mean, var = mean[1], var[1]
    per_sample = isinstance(layer, (nn.InstanceNorm2d, nk.InstanceNorm2d))
    dims = [d for d in range(values.dim()) if d > 1 or (d == 0 and not per_sample)]
    n = 1 if per_sample else len(x)
    shape = [1, -1, *[1] * (values.dim() - 2)]
    t_mean = values.mean(dims, keepdim=True)
    t_var = (values - t_mean).square().mean(dims, keepdim=True)
    mu = (prior * mean.view(shape) + n * t_mean) / (prior + n)
    sigma2 = (prior * var.view(shape) + n * t_var) / (prior + n)
    y = (values - mu) / (sigma2 + layer.eps).sqrt()
    if getattr(layer, "weight", None) is not None:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y if values is x else y.movedim(1, -1)


def near(y: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(y.double(), expected.double(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("prior", [0, 0.5, 16, 1000])
@pytest.mark.parametrize("name", LAYERS)
def test_mixed_moments_as_by_hand(name: str, prior: float) -> None:
    layer, x = layer_and_input(name)
    before = state(layer)
    with nk.adapt(layer, prior):
        near(layer(x), by_hand(layer_and_input(name)[0], x, prior))
        with torch.no_grad():
            y = layer(x)
        near(y, by_hand(layer_and_input(name)[0], x, prior))
    assert state(layer) == before


@pytest.mark.parametrize("name", [n for n in LAYERS if "Ghost" not in n and "third" not in n])
def test_no_prior_is_batch_statistics(name: str) -> None:
    layer, x = layer_and_input(name)
    if "Sync" in name:  # torch.nn's refuses the CPU in training; ours does not
        layer = nk.SyncBatchNorm.convert_sync_batchnorm(layer).eval()
    with nk.batch_statistics(layer):
        expected = layer(x)
    with nk.adapt(layer, 0):
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", [n for n in WILD if n in {"vgg", "mobile", "residual", "twice"}])
def test_whole_networks(name: str, accelerated: bool) -> None:
    model, x = made(name)
    if accelerated:
        nk.accelerate(model)
    model.eval()
    before, alone = state(model), model(x)
    with nk.batch_statistics(model):
        expected = model(x)
    with nk.adapt(model, 0):
        torch.testing.assert_close(model(x), expected)
    with nk.adapt(model, 1e9):
        torch.testing.assert_close(model(x), alone, atol=1e-4, rtol=1e-4)
    assert state(model) == before
    assert torch.equal(model(x), alone)


def test_activation_and_residual_stay() -> None:
    layer, x = nk.BatchNorm2d(3, act="relu").eval(), torch.randn(IMAGES)
    plain, residual = nk.BatchNorm2d(3).eval(), torch.randn(IMAGES)
    with nk.adapt(layer, 4), nk.adapt(plain, 4):
        torch.testing.assert_close(layer(x, residual), (plain(x) + residual).relu())


def test_gradients_pass_through_the_moments() -> None:
    layer, x = layer_and_input("nn.BatchNorm2d")
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    weights = torch.randn(IMAGES)
    with nk.adapt(layer, 3):
        (layer(a) * weights).sum().backward()
    (by_hand(layer, b, 3) * weights).sum().backward()
    assert a.grad is not None and b.grad is not None
    near(a.grad, b.grad)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_restored_after_exceptions(kind: type[BaseException]) -> None:
    class Failing(nn.BatchNorm2d):
        def _check_input_dim(self, input: Tensor) -> None:
            raise kind("midway")

    model = nn.Sequential(nn.BatchNorm2d(3), Failing(3), nn.Dropout()).train()
    model[0].eval()
    before = state(model)
    with pytest.raises(kind, match="midway"), nk.adapt(model):
        model(torch.randn(IMAGES))
    assert state(model) == before


def test_a_model_in_training_mode_evaluates_and_returns_to_it() -> None:
    model, x = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)), torch.randn(IMAGES)
    expected = by_hand(model[1], x, 16)
    before = state(model)
    handle = nk.adapt(model)
    for mode in (model.eval, model.train):
        mode()
        near(model(x), expected)
    handle.undo()
    assert state(model) == before


def test_one_sample_and_none() -> None:
    layer, x = layer_and_input("nn.BatchNorm1d")
    with nk.adapt(layer, 16):
        y = layer(x[:1])
        near(y, by_hand(layer, x[:1], 16))
        assert layer(x[:0]).shape == (0, 3)
    with nk.adapt(layer, 0):
        with pytest.raises(StatisticsError, match=r"one value.*prior=16"):
            layer(x[:1])
        assert layer(x[:0]).shape == (0, 3)
        near(layer(x), by_hand(layer, x, 0))


def test_memory_holds_the_stream_exactly_and_then_forgets() -> None:
    layer, x = layer_and_input("nn.BatchNorm1d")
    stream = torch.cat([x, x * 3 - 1, x + 9])
    with nk.adapt(layer, 5, memory=math.inf) as handle, torch.no_grad():
        for part in stream.split((4, 1, 7, 6)):
            y = layer(part)
        expected = by_hand(layer, stream, 5)[-6:]
        near(y, expected)
        handle.reset()
        near(layer(x), by_hand(layer, x, 5))
    with nk.adapt(layer, 0, memory=12), torch.no_grad():
        layer(stream[:12])
        y = layer(stream[12:])
        first, last = stream[:12].double(), stream[12:].double()
        mean = (first.mean(0) + last.mean(0)) / 2  # 6 of 12 replaced
        var = (first.var(0, correction=0) + last.var(0, correction=0)) / 2
        var = var + (first.mean(0) - last.mean(0)).square() / 4
        z = (last - mean) / (var + 1e-5).sqrt()
        weight, bias = layer.weight.double(), layer.bias.double()
        near(y, z * weight + bias)


def test_a_batch_that_is_not_finite_leaves_the_stream() -> None:
    layer, x = layer_and_input("nn.BatchNorm2d")
    with nk.adapt(layer, 1, memory=100), torch.no_grad():
        expected = layer(x)
        assert not layer(x * math.inf).isfinite().any()
        torch.testing.assert_close(layer(x[:0]), expected[:0])
        assert layer(x).isfinite().all()


def test_gradients_with_a_memory() -> None:
    layer, x = layer_and_input("nn.BatchNorm2d")
    a = x.clone().requires_grad_()
    with nk.adapt(layer, 0, memory=1000):
        layer(a).square().sum().backward()
    b = x.clone().requires_grad_()
    with nk.adapt(layer, 0):
        layer(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prior", [0, 16])
def test_recalibrated_once(prior: float) -> None:
    model, x = made("vgg")
    model.train()
    batches = [x, x + 1, 2 * x]
    before, expected = state(model), copy.deepcopy(model).eval()
    source = copy.deepcopy(dict(expected.named_buffers()))
    nk.recalibrate(expected, batches, samples=None, progress=False)
    n = sum(map(len, batches))
    for key, buffer in expected.named_buffers():
        if "num_batches" not in key:
            buffer.copy_((prior * source[key] + n * buffer) / (prior + n))
    with nk.adapt(model, prior, batches=batches) as handle:
        torch.testing.assert_close(model(x), expected(x))
        assert f"{n} samples" in repr(handle)
    assert state(model) == before


def test_recalibrated_with_momentum_zero() -> None:
    layer, x = layer_and_input("momentum 0")
    before = state(layer)
    with nk.adapt(layer, 0, batches=[x]):
        torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    assert state(layer) == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("memory", [0, 100])
def test_contexts_of_evaluation(context: Callable[[], Any], memory: float) -> None:
    model, x = made("vgg")
    model.eval()
    with nk.adapt(model, 2, memory=memory):
        expected = model(x)
    with nk.adapt(model, 2, memory=memory):
        with context():
            torch.testing.assert_close(model(x), expected)
        model(x).sum().backward()  # a stream begun in inference mode goes on with gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    layer, x = layer_and_input("nn.BatchNorm2d")
    x = x + 50
    low = x.to(dtype)
    expected = by_hand(layer, low, 4)
    tolerance = {"atol": 8 * torch.finfo(dtype).eps, "rtol": 8 * torch.finfo(dtype).eps}
    with nk.adapt(layer, 4), torch.autocast("cpu", dtype):
        torch.testing.assert_close(layer(low).double(), expected, **tolerance)
    layer.to(dtype)
    expected = by_hand(layer, low, 4)
    with nk.adapt(layer, 4):
        y = layer(low)
    assert y.dtype is dtype
    torch.testing.assert_close(y.double(), expected, **tolerance)


def test_channels_last_stays() -> None:
    model, x = nn.BatchNorm2d(3).eval(), torch.randn(IMAGES).to(memory_format=torch.channels_last)
    with nk.adapt(model):
        assert model(x).is_contiguous(memory_format=torch.channels_last)


def test_compiled_models_are_adapted_and_come_back() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), torch.randn(IMAGES)
    model.eval()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        alone = compiled(x)
        with nk.adapt(compiled, 2):
            torch.testing.assert_close(compiled(x), model(x))
            assert not torch.allclose(compiled(x), alone)
        assert torch.equal(compiled(x), alone)
        with nk.adapt(compiled, 2, memory=20):
            for factor in (1, 2, 3):
                y = compiled(factor * x)
        with nk.adapt(model, 2, memory=20):
            for factor in (1, 2, 3):
                z = model(factor * x)
        torch.testing.assert_close(y, z)


def test_wrappers_shared_layers_and_several_calls() -> None:
    shared = nn.BatchNorm2d(3)
    model = nn.DataParallel(nn.Sequential(shared, nn.ReLU(), shared)).eval()
    x = torch.randn(IMAGES) + 1
    expected = by_hand(shared, by_hand(shared, x, 16).relu(), 16)
    with nk.adapt(model) as handle:
        near(model(x), expected)
        assert [row.name for row in handle.changed] == ["0"]


def test_copies_and_pickles_are_of_the_layer_without_adaptation() -> None:
    model, x = made("vgg")
    model.eval()
    alone = model(x)
    with nk.adapt(model, 0):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), alone)
            assert [type(m) for m in other.modules()] != [type(m) for m in model.modules()]
        assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict())


def test_other_tools_know_an_adapted_layer() -> None:
    model, x = made("vgg")
    with nk.adapt(model):
        for call in (nk.recalibrate, nk.consistency):
            with pytest.raises(StatisticsError, match="adapted to its input"):
                call(model, [x], progress=False) if call is nk.recalibrate else call(model, [x])
        with pytest.raises(StatisticsError, match="adapted"), nk.batch_statistics(model):
            pass
        for tool in (nk.freeze, nk.accelerate, lambda m: nk.convert(m, "batch")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert not tool(model).changed
        with pytest.raises(OptionError, match=r"not adapted yet.*undo\(\)"):
            nk.adapt(model)


def test_frozen_and_constant_layers_are_skipped_and_listed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nk.FrozenBatchNorm2d(3)).eval()
    nk.freeze(model[0])
    x = torch.randn(IMAGES)
    with nk.adapt(model, 0) as handle:
        assert [(row.name, row.why) for row in handle.skipped] == [
            ("0", "frozen"),
            ("2", "constant by construction"),
        ]
        assert torch.equal(model[0](x), copy.deepcopy(model[0])(x))
    with pytest.raises(StatisticsError, match=r"0: frozen.*unfreeze"):
        nk.adapt(nn.Sequential(model[0]))


class _Hidden(nn.Sequential):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self[0].eval()
        return self


ODD: dict[str, Callable[[], nn.Module]] = {
    "kept in evaluation mode": lambda: _Hidden(nn.BatchNorm2d(3)),
    "parametrized": lambda: nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(3))
    ),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.BatchNorm2d(3))),
}


@pytest.mark.parametrize("why", ODD)
def test_odd_layers_are_left_and_told(why: str) -> None:
    odd = ODD[why]()
    with pytest.raises(StatisticsError, match=why):
        nk.adapt(odd)
    both = nn.Sequential(odd, nn.BatchNorm2d(3))
    with nk.adapt(both) as handle:
        assert [row.name for row in handle.changed] == ["1"]
        assert why in handle.skipped[0].why


NO_LAYER: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "normkit.tent"),
    (nn.BatchNorm2d(3, track_running_stats=False), "by each batch already"),
    (nn.LazyBatchNorm2d(), "run the model once"),
    (nn.BatchNorm2d(3, device="meta"), "to_empty"),
]


@pytest.mark.parametrize(("model", "fix"), NO_LAYER, ids=[fix for _, fix in NO_LAYER])
def test_models_without_a_layer_to_adapt(model: nn.Module, fix: str) -> None:
    before = repr(model), model.training
    with pytest.raises(StatisticsError, match=fix):
        nk.adapt(model)
    assert (repr(model), model.training) == before


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    *[({"prior": p}, OptionError, "prior as a number") for p in (-1, math.inf, math.nan, True,
                                                                "16", None, torch.ones(2))],
    *[({"memory": m}, OptionError, "memory as a number") for m in (-1, math.nan, None, "9")],
    ({"batches": torch.randn(IMAGES)}, TypeMismatchError, "put a single batch into a list"),
    ({"batches": [], "memory": 9}, OptionError, "memory only without batches"),
    ({"forward": len}, OptionError, "forward only with batches"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    before = state(model)
    with pytest.raises(error, match=text):
        nk.adapt(model, **options)
    with pytest.raises(TypeMismatchError, match="adapt"):
        nk.adapt(options, model)  # type: ignore[arg-type]
    assert state(model) == before


def test_remembered_statistics_that_are_not_finite() -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(3)), torch.randn(IMAGES)
    model[0].running_mean[1] = math.nan
    with pytest.raises(StatisticsError, match="finite"):
        nk.adapt(model)
    with nk.adapt(model, 0):  # which has no use for them
        assert model(x).isfinite().all()


def test_a_layer_changed_meanwhile_is_left_by_undo() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    handle = nk.adapt(model)
    model[0].__class__ = nn.BatchNorm1d
    with pytest.warns(UserWarning, match="its class was changed again"):
        handle.undo()
    assert type(model[1]) is nn.BatchNorm2d
    handle.undo()


def test_masked_and_switchable_layers_are_left_or_recalibrated() -> None:
    x = torch.randn(6, 3, 5)
    model = nn.Sequential(nk.MaskedBatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    with nk.adapt(model, 0) as handle:
        assert [(row.name, row.why) for row in handle.skipped] == [
            ("0", "normalizes by the positions of a mask")
        ]
    with nk.adapt(model, 0, batches=[x]) as handle:
        assert [row.name for row in handle.changed] == ["0", "1"]
        torch.testing.assert_close(model[0].running_mean, x.mean((0, 2)))
