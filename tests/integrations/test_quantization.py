"""``torch.ao.quantization`` ends with our layers as with torch.nn's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    QuantWrapper,
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare,
    prepare_qat,
    quantize_fx,
)

import normkit as nk

ENGINE = torch.backends.quantized.engine
pytestmark = [
    pytest.mark.skipif(ENGINE == "none", reason="needs a library of quantized kernels"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
X = torch.randn(4, 3, 8, 8)


def of_types(model: nn.Module, *types: type) -> list[str]:
    return [type(m).__name__ for m in model.modules() if isinstance(m, types)]


def models(name: str) -> tuple[nn.Module, nn.Module]:
    """A model of torch.nn's layers, and the same with ours."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.LayerNorm(6))
    ours = copy.deepcopy(plain)
    if name == "accelerated":
        nk.accelerate(ours)
    else:
        ours[1], ours[2] = nk.BatchNorm2d(4, act="relu"), nn.Identity()
    return plain, ours


@pytest.mark.parametrize("aware", [False, True], ids=["static", "aware"])
@pytest.mark.parametrize("name", ["accelerated", "with relu"])
def test_quantized_in_graph_mode(name: str, aware: bool) -> None:
    outputs = []
    for model in models(name):
        twin = copy.deepcopy(model).train(aware)
        if aware:
            mapping = get_default_qat_qconfig_mapping(ENGINE)
            prepared = quantize_fx.prepare_qat_fx(twin, mapping, (X,))
        else:
            prepared = quantize_fx.prepare_fx(twin, get_default_qconfig_mapping(ENGINE), (X,))
        prepared(X)
        quantized = quantize_fx.convert_fx(prepared.eval())
        assert of_types(quantized, nn.modules.batchnorm._BatchNorm) == []
        outputs.append(quantized(X))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("aware", [False, True], ids=["static", "aware"])
@pytest.mark.parametrize("name", ["accelerated", "with relu"])
def test_quantized_in_eager_mode(name: str, aware: bool) -> None:
    outputs = []
    for model in models(name):
        fused = [["0", "1", "2"] if type(model[2]) is nn.ReLU else ["0", "1"]]
        if aware:
            prepared = QuantWrapper(fuse_modules_qat(model.train(), fused))
            prepared.qconfig = get_default_qat_qconfig(ENGINE)
            prepare_qat(prepared, inplace=True)
        else:
            prepared = QuantWrapper(fuse_modules(model.eval(), fused))
            prepared.qconfig = get_default_qconfig(ENGINE)
            prepare(prepared, inplace=True)
        prepared(X)
        quantized = convert(prepared.eval())
        assert of_types(quantized, nn.modules.batchnorm._BatchNorm) == []
        outputs.append(quantized(X))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm"])
def test_quantized_layer(name: str) -> None:
    arguments = {"GroupNorm": (2, 4), "LayerNorm": ((8, 8),)}.get(name, (4,))
    x, outputs = torch.randn(4, 4, 8, 8), []
    for make in (getattr(nn, name), getattr(nk, name)):
        prepared = QuantWrapper(make(*arguments).eval())
        prepared.qconfig = get_default_qconfig(ENGINE)
        prepare(prepared, inplace=True)
        prepared(x)
        converted = convert(prepared)
        assert "Quantized" in repr(converted.module)
        outputs.append(converted(x))
    torch.testing.assert_close(*outputs)


def test_layer_with_an_activation_stays_in_floating_point() -> None:
    model = nn.Sequential(nk.GroupNorm(2, 4, act="silu")).eval()
    model.qconfig = get_default_qconfig(ENGINE)
    x = torch.randn(4, 4, 8, 8)
    prepare(model, inplace=True)
    expected = model(x)
    with pytest.warns(UserWarning, match="stays in floating point"):
        converted = convert(model)
    assert type(converted[0]) is nk.GroupNorm
    torch.testing.assert_close(converted(x), expected)


def test_training_aware_of_quantization_refuses_what_it_would_drop() -> None:
    average = nn.Sequential(nn.Conv2d(3, 4, 3), nk.BatchNorm2d(4, average="debiased"))
    with pytest.raises(nk.TypeMismatchError, match="would drop the average"):
        fuse_modules_qat(average.train(), [["0", "1"]])
    frozen_layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nk.freeze(frozen_layer)
    with pytest.raises(nk.TypeMismatchError, match="would drop the frozen state"):
        fuse_modules_qat(frozen_layer.train(), [["0", "1"]])


def test_graph_for_training_keeps_frozen_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    nk.freeze(model)
    nk.accelerate(model.train())
    prepared = quantize_fx.prepare_qat_fx(model, get_default_qat_qconfig_mapping(ENGINE), (X,))
    assert of_types(prepared, nk.BatchNorm2d) == ["BatchNorm2d"]
