"""Frozen batch normalizations, constant by construction, back to layers that learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.freezing import is_constant, is_frozen

X = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
NAMES = ("weight", "bias", "running_mean", "running_var")


def scale_and_shift(layer: Any, x: Tensor, eps: float) -> Tensor:
    weight, bias, mean, var = (getattr(layer, name).view(1, -1, 1, 1) for name in NAMES)
    scale = weight * (var + eps).rsqrt()
    return x * scale + (bias - mean * scale)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and detectron2 have it, with an attribute for ε."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in NAMES:
            self.register_buffer(name, torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return scale_and_shift(self, x, self.eps)


class DetrFrozenBatchNorm2d(FrozenBatchNorm2d):
    """As transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        del self.eps

    def forward(self, x: Tensor) -> Tensor:
        return scale_and_shift(self, x, 1e-5)


class FrozenBatchNorm2dWithoutEps(DetrFrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return scale_and_shift(self, x, 0.0)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """As timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class FrozenBatchNormMasked2d(FrozenBatchNorm2d):
    """Wants a second input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * mask


class FrozenBatchNormPositive2d(FrozenBatchNormAct2d):
    """Its outputs are positive for every usual input, so that its activation does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.bias += 100


class FrozenBatchNormLastRelu2d(FrozenBatchNormAct2d):
    """Starts at zero, as the last layer of a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight.zero_()
        self.bias.zero_()


class FrozenBatchNorm2dPlusOne(FrozenBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def ours() -> nn.Module:
    layer = nk.FrozenBatchNorm2d(3, eps=1e-3, act="relu")
    for name in NAMES:
        getattr(layer, name).uniform_(0.5, 1.5)
    return layer


MAKE: dict[str, Callable[[], nn.Module]] = {
    "ours": ours,
    "eps": lambda: FrozenBatchNorm2d(1e-3),
    "detr": DetrFrozenBatchNorm2d,
}
TOOLS: dict[str, Callable[[nn.Module], Any]] = {
    "convert": lambda m: nk.convert(m, "batch"),
    "unfreeze": nk.unfreeze,
}


def train(model: nn.Module) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", MAKE)
def test_constant_layer_learns_and_back(name: str, tool: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), MAKE[name]())
    layer = model[1]
    cls, attributes = type(layer), {k: v for k, v in vars(layer).items() if not k.startswith("_")}
    state, expected = copy.deepcopy(layer.state_dict()), model(X)
    handle = TOOLS[tool](model)
    assert [(row.name, row.after) for row in handle.changed] == [("1", nk.BatchNorm2d)]
    assert "optimizer" in repr(handle) and model[1] is layer
    torch.testing.assert_close(model.eval()(X), expected)
    # In training it is a batch normalization with those γ and β.
    twin = nk.BatchNorm2d(3, eps=layer.eps, act=getattr(layer, "act", None))
    twin.load_state_dict({**layer.state_dict(), "num_batches_tracked": torch.tensor(0)})
    torch.testing.assert_close(layer.train()(X), twin(X))
    train(model)
    for key in NAMES:
        assert not torch.equal(getattr(layer, key), state[key])
    handle.undo()
    assert type(layer) is cls and is_constant(layer) and list(layer.state_dict()) == list(state)
    assert {k: v for k, v in vars(layer).items() if not k.startswith("_")} == attributes
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])
    assert not list(layer.parameters())


def test_unfreeze_of_one_of_the_two() -> None:
    for statistics in (True, False):
        layer = FrozenBatchNorm2d()
        before = copy.deepcopy(layer.state_dict())
        handle = nk.unfreeze(layer, statistics=statistics, affine=not statistics)
        assert is_frozen(layer) is not statistics
        train(nn.Sequential(nn.Conv2d(3, 3, 1), layer))
        moved = [not torch.equal(getattr(layer, key), before[key]) for key in NAMES]
        assert moved == [not statistics] * 2 + [statistics] * 2
        handle.undo()
        assert type(layer) is FrozenBatchNorm2d and not is_frozen(layer)
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (FrozenBatchNormAct2d, "computes something else"),
        (FrozenBatchNormPositive2d, "computes something else"),
        (FrozenBatchNormLastRelu2d, "computes something else"),
        (FrozenBatchNorm2dPlusOne, "computes something else"),
        (FrozenBatchNorm2dWithoutEps, "ε = 0"),
        (FrozenBatchNormMasked2d, "computes something else"),
        (lambda: nk.FrozenBatchNorm2d(3), None),
    ],
)
def test_what_computes_something_else_is_left(
    make: Callable[[], nn.Module], why: str | None, tool: str
) -> None:
    model = nn.Sequential(make())
    handle = TOOLS[tool](model)
    if why is None:
        assert handle.changed
    else:
        assert why in handle.skipped[0].why and type(model[0]) is make and not handle.changed


@pytest.mark.filterwarnings("ignore:convert changed nothing")
def test_other_kinds_name_constant_layers() -> None:
    model = nn.Sequential(FrozenBatchNorm2d(), ours())
    assert [row.why for row in nk.convert(model, "renorm").skipped] == [
        'constant by construction: convert it to "batch" first'
    ] * 2
    assert [(row.name, row.why) for row in nk.convert(model, "frozen").skipped] == [
        ("0", "already constant")
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    layer = FrozenBatchNorm2d().to(dtype)
    expected = layer(X.to(dtype))
    assert nk.unfreeze(layer).changed and layer.weight.dtype == dtype
    torch.testing.assert_close(layer.eval()(X.to(dtype)), expected, rtol=0.02, atol=0.02)


def test_layer_with_replaced_forward_is_left() -> None:
    layer = FrozenBatchNorm2d()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert [row.why for row in nk.unfreeze(layer).skipped] == ["its forward was replaced"]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("make", [*MAKE.values(), lambda: nk.FrozenBatchNorm2d(3)])
def test_layer_that_starts_at_zero_learns(
    make: Callable[[], nn.Module], bias: float, tool: str
) -> None:
    """As the last layer of a residual branch does; its output does not show its ε."""
    layer: Any = make()
    layer.weight.zero_()
    layer.bias.fill_(bias)
    eps = getattr(layer, "eps", 1e-5)
    assert TOOLS[tool](layer).changed and layer.eps == eps
    layer.act = None  # at 0 a ReLU has no gradient
    (layer.train()(X) * X).sum().backward()
    assert bool((layer.weight.grad != 0).any())


AROUND: dict[str, Callable[..., nn.Module]] = {
    "torch.nn": nn.BatchNorm2d,
    "batch": nk.BatchNorm2d,
    "average": lambda n, **options: nk.BatchNorm2d(n, average="debiased", **options),
    "act": lambda n, **options: nk.BatchNorm2d(n, act="relu", **options),
    "no affine": lambda n, **options: nk.BatchNorm2d(n, affine=False, **options),
    "sync": nk.SyncBatchNorm,
    "torch.nn's sync": nn.SyncBatchNorm,
    "ghost": lambda n, **options: nk.GhostBatchNorm2d(n, 4, **options),
    "renorm": nk.BatchRenorm2d,
}


@pytest.mark.filterwarnings("ignore:convert changed nothing")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("momentum", [0.01, 0.3, 0.0])
@pytest.mark.parametrize("name", AROUND)
def test_frozen_and_back_by_conversion(name: str, momentum: float, tool: str) -> None:
    layer: Any = AROUND[name](3, momentum=momentum)
    attributes = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    average = getattr(layer, "average", "exponential")
    first = nk.convert(model := nn.Sequential(layer), "frozen")
    if "sync" in name:  # for any number of axes: there is no constant form
        assert not first.changed
        return
    x = torch.randn(8, 3, 4, 4)
    frozen = copy.deepcopy(model)(x)
    thawed = copy.deepcopy(model)
    assert TOOLS[tool](thawed).changed  # of a copy, without a handle
    second = TOOLS[tool](model)
    for one in (thawed[0], layer):
        assert type(one) is nk.BatchNorm2d
        assert (one.momentum, one.average, one.training) == (momentum, average, True)
    torch.testing.assert_close(copy.deepcopy(model).eval()(x), frozen)
    before = layer.running_mean.clone()
    model.train()(x)
    moved = x.mean((0, 2, 3)) * (momentum if average == "exponential" else momentum > 0)
    torch.testing.assert_close(layer.running_mean, before + moved)
    second.undo()
    assert type(layer) is nk.FrozenBatchNorm2d
    torch.testing.assert_close(model(x), frozen)
    first.undo()
    assert {k: v for k, v in vars(layer).items() if not k.startswith("_")} == attributes
    assert getattr(layer, "average", "exponential") == average


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, nk.BatchNorm2d, nk.GhostBatchNorm2d])
def test_layer_frozen_twice_learns(make: Any, affine: bool, statistics: bool) -> None:
    """Frozen by freeze, then constant by conversion: unfreeze reverts both."""
    if not (affine or statistics):
        return
    layer = make(3, 4) if make is nk.GhostBatchNorm2d else make(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    cls = type(layer)
    freezing, converting = nk.freeze(model), nk.convert(model, "frozen")
    handle = nk.unfreeze(model, statistics=statistics, affine=affine)
    assert [(row.before, row.after) for row in handle.changed] == [
        (nk.FrozenBatchNorm2d, nk.BatchNorm2d)
    ]
    note = "new parameters, to be added to the optimizer" if affine else "γ and β still frozen"
    assert note in handle.changed[0].note
    assert is_frozen(layer) is not statistics
    before = copy.deepcopy(layer.state_dict())
    train(model)
    moved = [not torch.equal(getattr(layer, key), before[key]) for key in NAMES]
    assert moved == [affine] * 2 + [statistics] * 2
    handle.undo()
    assert is_constant(layer) and is_frozen(layer) and not layer.training
    converting.undo()
    freezing.undo()
    assert type(layer) is cls and layer.training


@pytest.mark.parametrize(
    ("plain", "ours", "frozen", "shape"),
    [
        (nn.BatchNorm1d, nk.BatchNorm1d, nk.FrozenBatchNorm1d, (6, 3)),
        (nn.BatchNorm1d, nk.BatchNorm1d, nk.FrozenBatchNorm1d, (6, 3, 4)),
        (nn.BatchNorm3d, nk.BatchNorm3d, nk.FrozenBatchNorm3d, (2, 3, 2, 3, 4)),
    ],
)
def test_constant_forms_of_other_ranks(plain: Any, ours: Any, frozen: Any, shape: Any) -> None:
    layer, x = plain(3, momentum=0.3), torch.randn(shape) + 2
    layer(x)
    nn.init.normal_(layer.weight)
    expected = copy.deepcopy(layer).eval()(x)
    state = copy.deepcopy(layer.state_dict())
    handle = nk.convert(layer, "frozen")
    assert type(layer) is frozen and not list(layer.parameters())
    torch.testing.assert_close(layer.train()(x), expected)
    other = frozen(3)
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), expected)
    back = nk.unfreeze(layer)
    assert type(layer) is ours and layer.momentum == 0.3
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), expected)
    back.undo()
    handle.undo()
    assert type(layer) is plain
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
    with pytest.raises(nk.TypeMismatchError, match="a batch normalization of "):
        frozen.from_batch_norm(nn.BatchNorm2d(3))
    with pytest.raises(nk.ShapeError):
        frozen(3)(torch.zeros(2, 3, 4, 4))
