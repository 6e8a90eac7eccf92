"""Subclasses of known layers: with a forward of their own they are left and named by every tool."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.stats_spec import StatsSpec, has_own_forward, stats_spec, why_unknown

X1D = torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
X2D = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1


class LastAxis(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class OurLastAxis(nk.BatchNorm1d):
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(x.movedim(-1, 1), residual).movedim(1, -1)


class Masked(nn.BatchNorm2d):
    """Normalizes the samples whose first value is positive."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[x[:, 0, 0, 0] > 0] = super().forward(x[x[:, 0, 0, 0] > 0])
        return y


class Deeper(Masked):
    """Its own forward is that of a base in between."""


class Logarithmic(nk.BatchNorm2d):
    """Keeps the logarithm of the variance: a step of ours that decides what is remembered."""

    def _update_running_stats(self, result: Any, tensors: Any) -> None:
        self.running_var.copy_(result.var.log())


class Absolute(nn.InstanceNorm2d):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return super()._apply_instance_norm(input.abs())


class Domains(nk.DomainBatchNorm2d):
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(input.abs(), residual)


def patched() -> nn.Module:
    layer = nn.BatchNorm2d(3)
    layer.forward = lambda x: nn.BatchNorm2d.forward(layer, x.abs())  # type: ignore[method-assign]
    return layer


class Buffers(nn.Module):
    """No batch normalization by descent, only by the names of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 2, 3), keepdim=True)


OWN = "a subclass with its own forward"
UNKNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LastAxis": (lambda: LastAxis(4), OWN),
    "OurLastAxis": (lambda: OurLastAxis(4), OWN),
    "Masked": (lambda: Masked(3), OWN),
    "Deeper": (lambda: Deeper(3), OWN),
    "Logarithmic": (lambda: Logarithmic(3), OWN),
    "Absolute": (lambda: Absolute(3, track_running_stats=True), OWN),
    "patched": (patched, "its forward was replaced"),
    "Buffers": (Buffers, "unknown"),
}
TOOLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "recalibrate": lambda m, x: nk.recalibrate(m, [x, x + 1], progress=False),
    "consistency": lambda m, x: nk.consistency(m, [x, x + 1], progress=False),
    "average_buffers": lambda m, _: nk.average_buffers(m),
    "freeze": lambda m, _: nk.freeze(m),
    "unfreeze": lambda m, _: nk.unfreeze(m),
    "scale_momentum": lambda m, _: nk.scale_momentum(m, 4),
    "convert": lambda m, _: nk.convert(m, "renorm"),
    "accelerate": lambda m, _: nk.accelerate(m),
}


def state(layer: nn.Module) -> tuple[Any, ...]:
    flags = [p.requires_grad for p in layer.parameters()]
    return type(layer), flags, getattr(layer, "momentum", 0), copy.deepcopy(layer.state_dict())


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layer_is_left_and_named(name: str, tool: str) -> None:
    make, why = UNKNOWN[name]
    x = X1D if "LastAxis" in name else X2D
    known = nk.BatchNorm2d(3) if x.dim() == 4 else nk.BatchNorm1d(x.shape[1])
    model = nn.ModuleDict({"theirs": make(), "known": known})
    model.forward = lambda x: model["theirs"](model["known"](x))  # type: ignore[method-assign]
    before = state(model["theirs"])
    result = TOOLS[tool](model, x)
    after = state(model["theirs"])
    assert after[:3] == before[:3]
    torch.testing.assert_close(after[3], before[3], rtol=0, atol=0)
    # Those that replace classes look at batch normalizations, accelerate at those of torch.nn.
    norm = isinstance(model["theirs"], nn.modules.batchnorm._NormBase)
    if not {
        "convert": isinstance(model["theirs"], nn.modules.instancenorm._InstanceNorm) or not norm,
        "accelerate": hasattr(model["theirs"], "act") or not norm,
    }.get(tool, False):
        (row,) = [row for row in result.skipped if row.name == "theirs"]
        assert row.why.startswith(why)


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layer_alone_is_refused_by_what_measures(name: str) -> None:
    make, why = UNKNOWN[name]
    for tool in ("recalibrate", "consistency", "average_buffers"):
        with pytest.raises(nk.StatisticsError, match=why):
            TOOLS[tool](make(), X2D)


@pytest.mark.parametrize("name", [n for n in UNKNOWN if n != "Buffers"])
def test_batch_statistics_warns_of_an_unknown_layer(name: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), UNKNOWN[name][0]())
    with (
        pytest.warns(UserWarning, match=rf"batch_statistics skipped 1 .*{UNKNOWN[name][1]}") as w,
        nk.batch_statistics(model),
    ):
        assert model[0].training and not model[1].training
    assert w[0].filename == __file__
    with pytest.raises(nk.StatisticsError, match=UNKNOWN[name][1]), nk.batch_statistics(model[1]):
        pass


@pytest.mark.parametrize("name", ["LastAxis", "OurLastAxis", "Deeper", "Logarithmic", "patched"])
def test_convert_sync_batchnorm_leaves_an_unknown_layer(name: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), UNKNOWN[name][0]())
    layer = model[1]
    with pytest.warns(UserWarning, match=r"convert_sync_batchnorm skipped 1 \(") as w:
        nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert w[0].filename == __file__
    assert model[1] is layer and isinstance(model[0], nk.SyncBatchNorm)


def test_use_domain_selects_it_in_a_subclass_with_its_own_forward() -> None:
    layer = Domains(3, 2)
    assert stats_spec(layer) is None and why_unknown(layer)
    with nk.use_domain(layer, 1):
        layer(X2D)
    assert layer.num_batches_tracked.tolist() == [0, 1]


class Trivial(nn.BatchNorm2d):
    """Subclasses that only construct, print, validate or load otherwise are known."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.03)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "trivial"


class Norm(nn.BatchNorm1d):
    """A registered subclass; what derives from it is known by it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class Derived(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.fixture
def registered() -> Iterator[None]:
    stats_spec.register(Norm)(lambda layer: StatsSpec(values=lambda _, x: x.movedim(-1, 1)))
    yield
    stats_spec.register(Norm)(stats_spec.dispatch(nn.BatchNorm1d))


@pytest.mark.parametrize("make", [lambda: Norm(4), lambda: Derived(4)])
def test_registered_layer_is_measured_and_frozen(
    make: Callable[[], nn.Module], registered: None
) -> None:
    layer, x = make(), torch.randn(64, 5, 4) * 3 + 1
    result = nk.recalibrate(layer, [x], samples=None, progress=False)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 1)))
    torch.testing.assert_close(layer.running_var, x.var((0, 1)))
    assert not result.skipped
    handle = nk.freeze(layer)
    layer.train()(x + 5)
    assert handle.changed and torch.equal(layer.running_mean, result.layers[""].mean.float())


def test_trivial_subclass_is_known() -> None:
    model = nn.Sequential(Trivial(3))
    nk.recalibrate(model, [X2D], samples=None, progress=False)
    torch.testing.assert_close(model[0].running_mean, X2D.mean((0, 2, 3)))
    assert nk.scale_momentum(model, 2).changed and nk.freeze(model).changed
    with nk.batch_statistics(nk.unfreeze(model) and model):
        assert model[0].training
    converted = nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], nk.SyncBatchNorm) and converted[0].eps == 1e-3


def test_forward_that_wraps_the_class_s_own_is_known() -> None:
    # As tools that move weights in and out of memory around each call do it.
    layer = nn.BatchNorm2d(3)
    layer.forward = functools.wraps(layer.forward)(functools.partial(layer.forward))  # type: ignore[method-assign]
    assert not has_own_forward(layer) and stats_spec(layer) == StatsSpec()


def test_layers_that_normalize_by_their_input_say_so() -> None:
    layer = nn.InstanceNorm2d(3, track_running_stats=True)
    layer.track_running_stats = False
    assert why_unknown(layer) == "normalizes by its input, as its track_running_stats is off"
