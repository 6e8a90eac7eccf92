"""Running statistics that do not fit the type they are stored in: refused, or kept wider."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

import normkit as nk
from normkit.errors import NonFiniteError, ShapeError
from normkit.kernels import cpu, dispatch
from normkit.kernels.aten import Portable
from normkit.nn.layer import Layer
from normkit.statistics import consistency, recalibrate
from tests.nn.every_layer import EVERY

AVERAGES: dict[str, dict[str, Any]] = {
    "exponential": {"average": "exponential"},
    "cumulative": {"average": "cumulative"},
    "debiased": {"average": "debiased"},
    "momentum=None": {"momentum": None},
}


TRACKING = {
    name: sample
    for name, sample in EVERY.items()
    if issubclass(sample.cls, _NormBase)
    and not issubclass(sample.cls, LazyModuleMixin)
    and not name.endswith(("1d", "3d"))  # the same code
}
# Type of the input, type of the buffers, standard deviation: what no share of 0.01 makes fit.
BEYOND: dict[str, tuple[torch.dtype, torch.dtype, float]] = {
    "float32": (torch.float32, torch.float32, 1e21),
    "bfloat16": (torch.bfloat16, torch.float32, 1e21),
    "bfloat16 throughout": (torch.bfloat16, torch.bfloat16, 1e21),
    "float32 in float16": (torch.float32, torch.float16, 1e4),
    "float16 throughout": (torch.float16, torch.float16, 8e3),
    "float64 in float32": (torch.float64, torch.float32, 1e21),
    "float64": (torch.float64, torch.float64, 1e200),
}


def _make(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    options = {"track_running_stats": True} if "Instance" in name else options
    return TRACKING[name].make(**options).to(dtype)


def _of_every_average(name: str, dtype: torch.dtype) -> list[Any]:
    averages: Iterable[str] = AVERAGES if "Instance" not in name else ["exponential"]
    return [_make(name, dtype, **AVERAGES[average]) for average in averages]


def _input(name: str, dtype: torch.dtype, scale: float) -> Tensor:
    g = torch.Generator().manual_seed(5)
    x = torch.rand(TRACKING[name].shape, generator=g, dtype=torch.float64) * 4 - 2
    return (x * scale).to(dtype)


def _state(layer: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(layer.state_dict())


@pytest.fixture(params=["fused", "native", "portable"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name != "fused":
        monkeypatch.setattr(cpu, "fused", None)
    if name == "portable":
        monkeypatch.setattr(dispatch, "WAYS", (Portable(),))
    return name


def test_all_layers_with_running_statistics_are_here() -> None:
    assert TRACKING.keys() == {
        "BatchNorm2d", "GhostBatchNorm2d", "BatchRenorm2d", "DomainBatchNorm2d", "SyncBatchNorm",
        "InstanceNorm2d", "MaskedBatchNorm2d", "MaskedInstanceNorm2d",
    }  # fmt: skip


@pytest.mark.parametrize("values", BEYOND)
@pytest.mark.parametrize("name", TRACKING)
def test_refused_with_nothing_changed(way: str, name: str, values: str) -> None:
    of_input, of_buffers, scale = BEYOND[values]
    usual, beyond = _input(name, of_input, 1.0), _input(name, of_input, scale)
    for layer in _of_every_average(name, of_buffers):
        layer(usual)
        before = _state(layer)
        with pytest.raises(
            NonFiniteError, match=f"^Expected running_var of {name} within {of_buffers}"
        ):
            layer(beyond)
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
        layer(usual)
        assert all(t.isfinite().all() for t in layer.state_dict().values())


@pytest.mark.parametrize(
    ("dtype", "wider", "scale"),
    [
        (torch.float32, torch.float64, 1e21),
        (torch.bfloat16, torch.float64, 1e21),
        (torch.float16, torch.float32, 8e3),
    ],
    ids=["float32", "bfloat16", "float16"],
)
@pytest.mark.parametrize("name", TRACKING)
def test_the_way_out_is_right(
    way: str, name: str, dtype: torch.dtype, wider: torch.dtype, scale: float
) -> None:
    """Wider buffers, with the same inputs; evaluation then goes by them in full."""
    x = _input(name, dtype, scale)
    for layer in _of_every_average(name, wider):
        layer(x)
        y = layer.eval()(x)
        mean, var = layer.running_mean.double(), layer.running_var.double()
        mean, var = (t[0] if t.dim() == 2 else t for t in (mean, var))
        exact = nn.functional.batch_norm(x.double(), mean, var, eps=layer.eps)
        assert float(exact.std()) > 0.5
        rtol = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", TRACKING)
def test_the_largest_that_fit_are_kept(way: str, name: str) -> None:
    """Also where the variance itself does not, and only its share in the average does."""
    for dtype in (torch.float32, torch.float16):
        layer = _make(name, dtype=dtype)
        share = layer.momentum
        x = _input(name, dtype, (0.5 * torch.finfo(dtype).max / share) ** 0.5)
        layer(x)
        got = layer.running_var.double().reshape(-1, layer.running_var.shape[-1])[0]
        axes = tuple(d for d in range(x.dim()) if d != 1)
        exact = x.double().var(axes)
        if "Instance" in name:
            exact = x.double().var(axes[1:]).mean(0)
        torch.testing.assert_close(got, (1 - share) + share * exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", TRACKING)
def test_inputs_that_are_not_finite_pass(way: str, name: str, dtype: torch.dtype) -> None:
    """As in torch.nn, whose loss scaling skips such steps: in their channel, and no other."""
    x = _input(name, dtype, 1.0)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[0, 1] = bad
        for layer in _of_every_average(name, dtype):
            y = layer(x)
            assert y[:, 1].isnan().any() and y[:, 0].isfinite().all()
            for buffer in (layer.running_mean, layer.running_var):
                assert buffer.reshape(-1, 4)[0].isfinite().tolist() == [True, False, True, True]


def test_mixed_precision_survives_an_overflow() -> None:
    """A step whose activations are infinite: the loss scale falls and no weight moves."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for layers in (nn, nk):
        model = nn.Sequential(nn.Linear(3, 4), layers.BatchNorm1d(4, affine=False))
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model[0].weight.detach().clone()
        with torch.autocast("cpu", torch.float16):
            loss = model(x * 1e6)[:, 0].square().sum()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        assert scaler.get_scale() < scale
        assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("name", [*TRACKING, "FrozenBatchNorm2d"])
def test_conversions_keep_what_would_become_infinite(way: str, name: str) -> None:
    layer = EVERY[name].make() if name == "FrozenBatchNorm2d" else _make(name)
    layer.running_var.fill_(1e6)
    layer.running_mean.fill_(3)
    with pytest.warns(
        UserWarning, match=rf"^Expected running statistics of {name} within torch.float"
    ):
        model = nn.Sequential(layer).half()
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32
    assert layer.weight is None or layer.weight.dtype == torch.float16
    x = torch.randn(EVERY[name].shape).half() * 1000
    y = model.eval()(x)
    assert y.dtype == torch.float16
    exact = (x.double() - 3) / 1e3
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=2e-3)
    if name != "FrozenBatchNorm2d":
        model.train()(x)  # the statistics go on where they are
        assert layer.running_var.isfinite().all()
    layer.running_var.fill_(2.0)
    model.half()
    assert layer.running_var.dtype == torch.float16


@pytest.mark.parametrize("name", [*TRACKING, "FrozenBatchNorm2d"])
def test_loading_what_does_not_fit_is_refused(name: str) -> None:
    sample = EVERY[name]
    source = sample.make() if name == "FrozenBatchNorm2d" else _make(name)
    source.running_var.fill_(1e6)
    layer = copy.deepcopy(source)
    layer.running_var.fill_(2.0)
    layer.half()
    before = layer.running_var.clone()
    with pytest.raises(
        RuntimeError, match=f"0.running_var of {name} within torch.float16, up to 6.55"
    ):
        nn.Sequential(layer).load_state_dict(nn.Sequential(source).state_dict())
    assert torch.equal(layer.running_var, before)
    nn.Sequential(layer).load_state_dict(nn.Sequential(source).state_dict(), assign=True)
    assert torch.equal(layer.running_var, source.running_var)


@pytest.mark.parametrize("module", [nn, nk.nn], ids=["torch.nn", "normkit"])
@pytest.mark.parametrize("tool", [recalibrate, consistency])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float16, 1e3), (torch.float32, 1e20)], ids=["float16", "float32"]
)
@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
def test_measured_statistics_are_refused(
    module: Any, tool: Callable[..., Any], dtype: torch.dtype, scale: float, name: str
) -> None:
    layer = getattr(module, name)(4, track_running_stats=True).to(dtype)
    model = nn.Sequential(layer, nn.ReLU())
    before = _state(model)
    batches = [_input("BatchNorm2d", dtype, scale)] * 3
    with pytest.raises(NonFiniteError, match="float"):
        tool(model, batches)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_batch_beyond_makes_nothing_constant_behind_it() -> None:
    """Although the variance of all batches together fits."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).half()
    for layers in (nn, nk):
        model = nn.Sequential(layers.BatchNorm1d(3), nn.Linear(3, 2), layers.BatchNorm1d(2)).half()
        with pytest.raises(NonFiniteError, match=r"for torch\.float16, at 0"):
            recalibrate(model, [x * 400, x, x, x, x], layerwise=False)


def test_update_bn_refuses_too() -> None:
    layer = nk.BatchNorm2d(4)
    with pytest.raises(NonFiniteError, match=r"of BatchNorm2d within torch\.float32"):
        torch.optim.swa_utils.update_bn([_input("BatchNorm2d", torch.float32, 1e20)], layer)
    assert layer.running_var.isfinite().all()


def test_compiled_graphs_are_as_with_torch() -> None:
    """They cannot look: the buffers become infinite, unless they are wider."""
    name = "BatchNorm2d"
    x = _input(name, torch.float32, 1e21)
    layer = _make(name)
    torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert layer.running_var.isinf().all()
    wider = _make(name).double()
    wider.running_var.fill_(1e42)
    y = torch.compile(wider.eval(), backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(y.double(), x.double() / 1e21, rtol=1e-6, atol=1e-6)


def test_what_underflows_does_no_harm() -> None:
    """A variance of 10⁻⁵⁰ becomes zero, which ε hides: evaluation is right all the same."""
    x = _input("BatchNorm2d", torch.float32, 1e-25)
    layer = nk.BatchNorm2d(4, momentum=1.0)
    layer(x)
    assert torch.equal(layer.running_var, torch.zeros(4))
    exact = (x.double() - layer.running_mean.double().reshape(1, 4, 1, 1)) / 1e-5**0.5
    y = layer.eval()(x).double()
    torch.testing.assert_close(y * 1e22, exact * 1e22, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [nn, nk.nn], ids=["torch.nn", "normkit"])
@pytest.mark.parametrize("tool", [recalibrate, consistency])
@pytest.mark.parametrize("channels", [1, 4])
def test_another_number_of_channels(module: Any, tool: Callable[..., Any], channels: int) -> None:
    model = nn.Sequential(module.BatchNorm2d(3))
    with pytest.raises(
        ShapeError, match=f"^Expected 3 channels at 0, a BatchNorm2d; received {channels}"
    ):
        tool(model, [torch.randn(8, channels, 5, 5)] * 3)


def test_every_layer_is_converted_as_before() -> None:
    """Layers without statistics, and values that fit, without a word."""
    for sample in EVERY.values():
        layer = sample.make()
        assert isinstance(layer.half().double().float(), Layer)
