"""Cases in which other tools that fold are wrong: ours is right, and PyTorch's own are still wrong.

Where one of the latter no longer fails, it was mended: take the case from ``WRONG``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

import normkit as nk
from tests.surgery.fold.sweep import settle
from tests.surgery.fold.test_fold import Calls, bn, check, conv, outputs

IMAGES = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def apart(model: nn.Module, other: nn.Module) -> float:
    y = outputs(model, IMAGES)
    return float((outputs(other, IMAGES) - y).abs().max() / y.abs().max())


def doubling() -> nn.Module:
    layer = conv()
    layer.register_forward_hook(lambda _, args, y: 2 * y)
    return layer


# Network, and how many normalizations can be folded.
WRONG: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "convolution called twice": (
        lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.conv(x.sin()), conv=conv(), bn=bn()), 0),
    "convolution with two normalizations": (
        lambda: Calls(lambda m, x: m.a(m.conv(x)) + m.b(m.conv(x)), conv=conv(), a=bn(), b=bn()),
        0),
    "both called twice": (
        lambda: Calls(lambda m, x: m.bn(m.conv(m.bn(m.conv(x)).relu())), conv=conv(), bn=bn()), 1),
    "weight used elsewhere": (
        lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.conv.weight.sum(), conv=conv(), bn=bn()), 0),
    "linear layer over positions": (
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(42, 4), nn.BatchNorm1d(4)), 0),
    "hook that changes the output": (lambda: nn.Sequential(doubling(), bn()), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:fold changed nothing")
def test_right_where_torch_fx_fuse_is_wrong(name: str) -> None:
    make, folded = WRONG[name]
    model = settle(make()).double()
    assert apart(model, fuse(copy.deepcopy(model))) > 0.05
    check(model, IMAGES, folded)


def test_right_where_fuse_conv_bn_eval_is_wrong() -> None:
    """PyTorch issue 180995: grouped transposed convolutions."""
    model = settle(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))).double()
    try:
        fused = fuse_conv_bn_eval(copy.deepcopy(model[0]), model[1], transpose=True)
    except RuntimeError:  # shapes that do not fit
        fused = nn.Identity()
    y = outputs(model, IMAGES)
    z = outputs(fused, IMAGES)
    assert z.shape != y.shape or float((z - y).abs().max() / y.abs().max()) > 0.05
    check(model, IMAGES, 1)


def by_definition(model: nn.Module) -> nn.Module:
    """Fold as mmengine and others do: a normalization into the convolution defined before it."""
    before: nn.Module | None = None
    before_name = ""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None:
            setattr(model, before_name, fuse_conv_bn_eval(before, child))
            setattr(model, name, nn.Identity())
            before = None
        elif isinstance(child, nn.Conv2d):
            before, before_name = child, name
    return model


class Crepe(nn.Module):
    """A block as in torchcrepe: convolution, ReLU, normalization, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(), bn()
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), bn()
        self.out = nn.Linear(4 * 7 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x).relu())
        return self.out(self.bn2(self.conv2(x).relu()).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("order", ["torchcrepe", "normalization defined elsewhere"])
def test_right_where_the_order_of_definition_is_wrong(order: str) -> None:
    if order == "torchcrepe":
        model, folded = settle(Crepe()).double(), 1
    else:
        make = lambda m, x: m.b(m.first(x)).relu() + m.a(m.second(x))  # noqa: E731
        model = settle(Calls(make, first=conv(), a=bn(), second=conv(), b=bn())).double()
        folded = 2
    assert apart(model, by_definition(copy.deepcopy(model))) > 0.05
    handle = check(model, IMAGES, folded)
    if order == "torchcrepe":
        assert handle.changed[0][0] == "bn2" and handle.changed[0].note == "into out"


def unchecked(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold by the formula alone, as mmengine does: of any mode, with a γ that has to be there."""
    assert bn.running_mean is not None and bn.running_var is not None
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    fused = copy.deepcopy(conv)
    fused.weight = nn.Parameter(conv.weight * factor[:, None, None, None])
    bias = 0 if conv.bias is None else conv.bias
    fused.bias = nn.Parameter((bias - bn.running_mean) * factor + bn.bias)
    return fused


def test_right_where_the_formula_alone_is_wrong_in_training_mode() -> None:
    model = settle(nn.Sequential(conv(), bn())).double().train()
    with torch.no_grad():
        batch = copy.deepcopy(model)(IMAGES)
        assert float((unchecked(model[0], model[1])(IMAGES) - batch).abs().max()) > 0.05
    with pytest.raises(nk.OptionError, match=r"model\.eval"):
        nk.fold(model, IMAGES)
    assert model.training and type(model[1]) is nn.BatchNorm2d
    check(model.eval(), IMAGES, 1)


def test_right_where_the_formula_alone_fails_without_affine() -> None:
    model = nn.Sequential(conv(bias=False), nn.BatchNorm2d(4, affine=False))
    with pytest.raises(TypeError):
        unchecked(model[0], model[1])
    check(settle(model).double(), IMAGES, 1)
