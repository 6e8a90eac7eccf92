"""What PyTorch's own tools would drop without a word is refused; what they can do, they do."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import normkit as nk

to_sync = nn.SyncBatchNorm.convert_sync_batchnorm


def frozen(layer: nn.Module) -> nn.Module:
    nk.freeze(layer)
    return layer


LOSES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "act": (lambda: nk.BatchNorm2d(3, act="gelu"), "activation"),
    "average": (lambda: nk.BatchNorm2d(3, average="debiased"), "average"),
    "both": (
        lambda: nk.BatchNorm2d(3, act="gelu", average="cumulative"),
        "activation and the average",
    ),
    "ghost": (lambda: nk.GhostBatchNorm2d(3, 2), "ghost size"),
    "renorm": (lambda: nk.BatchRenorm2d(3), "correction"),
    "domains": (lambda: nk.nn.DomainBatchNorm2d(3, 2), "statistics for each domain"),
    "frozen": (lambda: frozen(nk.BatchNorm2d(3)), "frozen state"),
    "frozen, of torch.nn": (lambda: frozen(nn.BatchNorm2d(3)), "frozen state"),
}


@pytest.mark.parametrize("name", LOSES)
def test_conversion_to_torchs_sync_refuses_what_it_would_drop(name: str) -> None:
    make, what = LOSES[name]
    layer = make()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    with pytest.raises(nk.TypeMismatchError, match=f"would drop the {what}"):
        to_sync(model)
    assert model[1] is layer


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nk.BatchNorm2d])
def test_refused_conversion_says_that_earlier_layers_may_be_replaced(make: Any) -> None:
    model = nn.Sequential(make(3), nk.BatchNorm2d(3, act="relu"))
    with pytest.raises(
        nk.TypeMismatchError, match=r"already; or convert a copy\.deepcopy\(model\)"
    ):
        to_sync(model)
    # What the message offers first converts those too.
    expected = copy.deepcopy(model)(x := torch.randn(2, 3, 4, 4))
    nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert all(type(layer) is nk.SyncBatchNorm for layer in model)
    torch.testing.assert_close(model(x), expected)


def test_conversion_to_torchs_sync_of_what_it_can_keep() -> None:
    layers = [nk.BatchNorm2d(3), nk.BatchNorm2d(3, momentum=None, affine=False), nn.BatchNorm2d(3)]
    nk.accelerate(layers[2])
    for layer in layers:
        converted = to_sync(layer)
        assert type(converted) is nn.SyncBatchNorm
        assert converted.running_var is layer.running_var


@pytest.mark.parametrize("make", [nk.BatchNorm2d, nk.FrozenBatchNorm2d, nk.SyncBatchNorm])
def test_folding_refuses_to_drop_an_activation(make: Any) -> None:
    conv, layer = nn.Conv2d(3, 3, 1).eval(), make(3).eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fuse_conv_bn_eval(conv, layer)(x), layer(conv(x)))
    with pytest.raises(nk.TypeMismatchError, match="activation would be dropped"):
        fuse_conv_bn_eval(conv, make(3, act="silu").eval())


def test_folding_into_a_linear_layer() -> None:
    linear, x = nn.Linear(4, 3).eval(), torch.randn(5, 4)
    layer = frozen(nn.BatchNorm1d(3)).eval()
    torch.testing.assert_close(fuse_linear_bn_eval(linear, layer)(x), layer(linear(x)))
    with pytest.raises(nk.TypeMismatchError, match="activation would be dropped"):
        fuse_linear_bn_eval(linear, nk.BatchNorm1d(3, act="silu").eval())


@pytest.mark.parametrize("make", [lambda: nk.BatchNorm2d(3), lambda: frozen(nn.BatchNorm2d(3))])
def test_guarded_buffer_is_an_ordinary_buffer(make: Callable[[], nn.Module]) -> None:
    layer: Any = make()
    assert layer.running_var is layer._buffers["running_var"]
    layer.running_var = torch.full((3,), 2.0)
    assert bool((layer.state_dict()["running_var"] == 2).all())
    layer.register_buffer("running_var", torch.ones(3))
    del layer.running_var
    assert not hasattr(layer, "running_var")
    with pytest.raises(AttributeError, match="no attribute 'running_var'"):
        _ = layer.running_var
    layer.register_buffer("running_var", torch.ones(3))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_conversion_for_mkldnn_refuses_to_drop_an_activation() -> None:
    from torch.utils.mkldnn import to_mkldnn

    x = torch.randn(2, 3, 4, 4)
    for make in (nk.BatchNorm2d, lambda c: frozen(nk.BatchNorm2d(c))):
        layer = make(3).eval()
        layer.running_mean.normal_()
        converted = to_mkldnn(nn.Sequential(layer))
        torch.testing.assert_close(converted(x.to_mkldnn()).to_dense(), layer(x))
    with pytest.raises(nk.TypeMismatchError, match="activation would be dropped"):
        to_mkldnn(nn.Sequential(nk.BatchNorm2d(3, act="relu").eval()))


def test_opacus_judges_layers_as_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for exact classes, after it has looked for parameters."""

    judged = (nn.BatchNorm2d, nn.SyncBatchNorm)
    validators: dict[type, Any] = {cls: lambda _: ["forbidden"] for cls in judged}
    fixers: dict[type, Any] = {cls: lambda m: nn.GroupNorm(1, m.num_features) for cls in judged}
    tables = SimpleNamespace(VALIDATORS=validators, FIXERS=fixers)
    name = "opacus.validators.module_validator"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(ModuleValidator=tables))
    forbidden = (nk.BatchNorm2d(3), nk.GhostBatchNorm2d(3, 2), nk.BatchRenorm2d(3),
                 nk.nn.DomainBatchNorm2d(3, 2), nk.SyncBatchNorm(3))  # fmt: skip
    for layer in (*forbidden, nk.GroupNorm(1, 3), nk.LayerNorm(3)):
        assert any(p.requires_grad for p in layer.parameters(recurse=False))
        assert (type(layer) in validators) is (layer in forbidden)
    fix = fixers[nk.BatchNorm2d]
    assert type(fix(forbidden[0])) is nn.GroupNorm
    with pytest.raises(nk.TypeMismatchError, match="GroupNorm with act='relu'"):
        fix(nk.BatchNorm2d(3, act="relu"))
