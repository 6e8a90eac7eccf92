"""Convolutions with standardized weights: the oracle, torch.nn's arguments, tools, deployment."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils import fusion, parametrize, prune

import normkit as nk
from normkit.core import reference

FORMS: dict[str, tuple[Any, Any, tuple[int, ...], dict[str, Any]]] = {
    "1d": (nk.WeightStandardizedConv1d, nn.Conv1d, (3, 4, 9), {"dilation": 2, "groups": 2}),
    "2d": (nk.WeightStandardizedConv2d, nn.Conv2d, (2, 4, 7, 8), {"padding": 1, "stride": 2}),
    "2d reflecting": (
        nk.WeightStandardizedConv2d,
        nn.Conv2d,
        (2, 4, 7, 8),
        {"padding": "same", "padding_mode": "reflect", "bias": False},
    ),
    "3d": (nk.WeightStandardizedConv3d, nn.Conv3d, (2, 4, 4, 5, 6), {"groups": 4}),
}
MODES = ["eager", "compiled", "exported", "traced"]


def _pair(name: str, **options: Any) -> tuple[Any, Any, Tensor]:
    """The layer, torch.nn's convolution with its keys, and an input."""
    ours, theirs, shape, arguments = FORMS[name]
    layer = ours(4, 8, 3, **arguments, **options)
    plain = theirs(4, 8, 3, **arguments)
    plain.load_state_dict(layer.state_dict())
    return layer, plain, torch.randn(shape)


def _truth(plain: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.double()
    return plain._conv_forward(x.double(), reference.standardized_weight(weight), bias)


@pytest.mark.parametrize("name", FORMS)
def test_against_the_oracle(name: str) -> None:
    layer, plain, x = _pair(name)
    x.requires_grad_()
    leaves = [x, *layer.parameters()]
    y, truth = layer(x), _truth(plain, x, layer.weight, layer.bias)
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, truth.float(), rtol=1e-5, atol=1e-5)
    got, expected = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(truth, leaves, dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_their_moments_in_float32(dtype: torch.dtype) -> None:
    """Also far from zero, where E[w²] − E[w]² has no digit left."""
    layer = nk.WeightStandardizedConv2d(16, 4, 3, dtype=dtype)
    with torch.no_grad():
        layer.weight.add_(2)
    got, truth = layer.standardized_weight(), reference.standardized_weight(layer.weight)
    assert got.dtype == dtype
    # Values up to about 2, rounded once.
    assert float((got.double() - truth).detach().abs().max()) <= 2 * torch.finfo(dtype).eps
    wide = nk.WeightStandardizedConv2d(16, 4, 3)
    with torch.no_grad():
        wide.weight.add_(1e3)
    truth = reference.standardized_weight(wide.weight)
    torch.testing.assert_close(wide.standardized_weight(), truth.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode(name: str, mode: str) -> None:
    layer, _, x = _pair(name)
    expected = layer(x)
    if mode == "compiled":
        torch._dynamo.reset()
        other = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    elif mode == "exported":
        other = torch.export.export(layer, (x,)).module()
    elif mode == "traced":
        other = torch.jit.trace(layer, (x,))
    else:
        other = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(other(x), expected)


def test_arguments_keys_and_repr_are_those_of_torch() -> None:
    for name in FORMS:
        layer, plain, _ = _pair(name, eps=1e-4)
        assert isinstance(layer, type(plain))
        assert list(layer.state_dict()) == list(plain.state_dict())
        expected = f"{type(layer).__name__}({plain.extra_repr()}, eps=0.0001)"
        assert repr(layer) == expected
        assert copy.deepcopy(layer).eps == 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_deployed_as_a_plain_convolution(name: str) -> None:
    layer, plain, x = _pair(name)
    layer.weight.requires_grad_(False)
    found = layer.eval().to_conv()
    assert type(found) is type(plain) and not found.training
    assert not found.weight.requires_grad
    torch.testing.assert_close(found(x), layer(x))
    before = layer.weight.clone()
    with torch.no_grad():
        found.weight.zero_()
    assert torch.equal(layer.weight, before)
    assert found.extra_repr() == plain.extra_repr()


def test_double_backward_autocast_meta_vmap_and_parametrizations() -> None:
    layer = nk.WeightStandardizedConv1d(2, 3, 2).double()
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    tensors = [x, *layer.parameters()]

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional_call(layer, {"weight": w, "bias": b}, (x,))

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)
    batched = torch.stack([layer.weight, 2 * layer.weight])
    got = vmap(lambda w: call(x, w, layer.bias))(batched)
    torch.testing.assert_close(got[1], call(x, 2 * layer.weight, layer.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nk.WeightStandardizedConv2d(3, 4, 3)(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16
    meta = nk.WeightStandardizedConv2d(3, 4, 3, device="meta")
    assert meta(torch.empty(2, 3, 5, 5, device="meta")).shape == (2, 4, 3, 3)
    for change in (
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh()),
        nn.utils.parametrizations.weight_norm,
    ):
        changed = nk.WeightStandardizedConv2d(3, 4, 3, bias=False)
        change(changed)
        z = torch.randn(1, 3, 5, 5)
        truth = F.conv2d(z.double(), reference.standardized_weight(changed.weight))
        torch.testing.assert_close(changed(z), truth.float(), rtol=1e-4, atol=1e-4)


def test_no_samples_and_channels_last() -> None:
    layer = nk.WeightStandardizedConv2d(3, 4, 3)
    assert layer(torch.empty(0, 3, 5, 5)).shape == (0, 4, 3, 3)
    x = torch.randn(2, 3, 5, 5)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), layer(x))


def test_tools_that_take_any_convolution_by_its_weight_are_refused() -> None:
    """They would fold into the weight as it is learned, and standardize the result again."""
    from torch.utils.mkldnn import to_mkldnn  # which takes seconds

    conv, bn = nk.WeightStandardizedConv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval()
    with pytest.raises(nk.TypeMismatchError, match=r"to_conv\(\)"):
        fusion.fuse_conv_bn_eval(conv, bn)
    with pytest.raises(nk.TypeMismatchError, match=r"to_conv\(\)"):
        to_mkldnn(nn.Sequential(conv))
    with pytest.raises(nk.TypeMismatchError, match=r"torch\.jit\.script"):
        torch.jit.script(conv)
    bn.running_mean.normal_()
    x = torch.randn(2, 3, 5, 5)
    folded = fusion.fuse_conv_bn_eval(conv.to_conv(), bn)
    torch.testing.assert_close(folded(x), bn(conv(x)), rtol=1e-4, atol=1e-5)


def test_a_graph_has_one_node_of_it() -> None:
    model = nn.Sequential(nk.WeightStandardizedConv2d(3, 4, 3), nn.ReLU())
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1"]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(graph(x), model(x))


def test_bad_arguments() -> None:
    with pytest.raises(nk.ShapeError, match="more than 1 weight per filter"):
        nk.WeightStandardizedConv2d(4, 4, 1, groups=4)
    with pytest.raises(nk.TypeMismatchError, match="eps"):
        nk.WeightStandardizedConv2d(4, 4, 3, eps="small")
    layer = nk.WeightStandardizedConv2d(4, 4, 3)
    with pytest.raises(nk.OptionError, match="eps"):
        layer.eps = float("nan")
    layer.eps = -1.0
    with pytest.raises(nk.OptionError, match="eps must be positive"):
        layer(torch.randn(1, 4, 3, 3))


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_timm_is_the_same(name: str) -> None:
    """timm's StdConv2d, by its formula."""
    layer, plain, x = _pair(name)
    rows = layer.weight.reshape(1, 8, -1)
    weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
    expected = plain._conv_forward(x, weight.reshape_as(layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), expected)
