"""A layer whose library computes something else under a known name is left, and named."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.nn.norm_spec import NormSpec, equivalent, norm_spec, register_norm, why_no_norm_spec
from tests.integrations import stand_ins as known
from tests.integrations.stand_ins import C, named

IMAGE, ROWS = torch.randn(4, C, 3, 5), torch.randn(4, 7, C)


class EpsOutside(known.LlamaNorm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weight * x / (mean.sqrt() + self.variance_epsilon)


class OtherEps(known.FrozenBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 3e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Unbiased(known.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class TwoPlus(known.GemmaNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (2.0 + self.weight)


class ActFirst(known.BatchNormAct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act(x.clone()))


class NoAct(known.BatchNormAct):
    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, x)


class DropLast(known.BatchNormAct):
    """Right as long as one of the two is an identity, and not with other modules in their place."""

    def __init__(self) -> None:
        super().__init__(nn.Hardswish())
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(nn.BatchNorm2d.forward(self, self.act(x)))


class KeepsOtherStatistics(known.BatchNormAct):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.running_var.data.mul_(0.999)
        return y


class StopsGradient(known.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.detach() + x - x.detach()


class EvaluationDiffers(known.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.training else y * 1.001


class DrawsNumbers(known.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class ReturnsTwo(known.LayerNorm):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Fails(known.LayerNorm):
    def forward(self, x: Tensor) -> Any:
        raise NotImplementedError("needs a kernel of its own")


TIMM, TF = "timm.layers.norm", "transformers.models.any.modeling_any"
CHANGED: list[tuple[type, str, Tensor, str]] = [
    (EpsOutside, f"{TF}.AnyRMSNorm", ROWS, "agrees with none of the 6 formulas"),
    (OtherEps, "torchvision.ops.misc.FrozenBatchNorm2d", IMAGE, "none of the 2"),
    (Unbiased, f"{TIMM}.LayerNorm", ROWS, "other outputs in training"),
    (TwoPlus, f"{TF}.AnyRMSNorm", ROWS, "none of the 6"),
    (ActFirst, f"{TIMM}_act.BatchNormAct2d", IMAGE, "other outputs"),
    (NoAct, f"{TIMM}_act.BatchNormAct2d", IMAGE, "other outputs"),
    (DropLast, f"{TIMM}_act.BatchNormAct2d", IMAGE, "other outputs"),
    (KeepsOtherStatistics, f"{TIMM}_act.BatchNormAct2d", IMAGE, "other running statistics"),
    (StopsGradient, f"{TIMM}.LayerNorm", ROWS, "other gradients"),
    (EvaluationDiffers, f"{TIMM}.GroupNorm", IMAGE, "other outputs in evaluation"),
    (DrawsNumbers, f"{TIMM}.LayerNorm", ROWS, "other outputs in training"),
    (ReturnsTwo, f"{TIMM}.LayerNorm", ROWS, "something else than a tensor"),
    (Fails, f"{TIMM}.LayerNorm", ROWS, "NotImplementedError: needs a kernel of its own"),
]


@pytest.mark.parametrize(
    ("cls", "name", "x", "why"), CHANGED, ids=lambda v: getattr(v, "__name__", "")
)
def test_a_version_that_computes_something_else_is_left(
    cls: type, name: str, x: Tensor, why: str
) -> None:
    layer = named(cls, name)()
    model = nn.Sequential(layer)
    state = torch.get_rng_state()
    handle = nk.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(model[0]).__mro__[1] is cls and not handle.changed
    assert why in handle.skipped[0].why and why in str(why_no_norm_spec(layer))
    assert equivalent(layer) is None


def test_a_layer_that_treats_autocast_in_its_own_way_keeps_it() -> None:
    layer = named(known.GroupNorm, f"{TIMM}.GroupNorm")()
    layer._fast_norm = True
    spec = norm_spec(layer)
    assert spec is not None and not spec.like_torch
    nk.accelerate(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(IMAGE).dtype == torch.bfloat16
    assert layer(IMAGE).dtype == torch.float32


def test_a_class_is_compared_again_when_its_forward_is_replaced() -> None:
    cls = named(known.LayerNorm, f"{TIMM}.LayerNorm")
    layer = cls()
    assert norm_spec(layer) is not None
    cls.forward = Unbiased.forward  # type: ignore[attr-defined]
    assert norm_spec(layer) is None
    layer.forward = lambda x: x
    assert why_no_norm_spec(layer) == "its forward was replaced"


def test_a_pickle_loaded_with_another_version_is_the_librarys_own() -> None:
    cls = named(known.LayerNorm, f"{TIMM}.LayerNorm")
    layer = cls()
    with known.installed(cls):
        nk.accelerate(layer)
        pickled = pickle.dumps(layer)
        assert type(pickle.loads(pickled)) is type(layer)
        cls.forward = Unbiased.forward  # type: ignore[attr-defined]
        with pytest.warns(UserWarning, match="computes something else than the one"):
            loaded = pickle.loads(pickled)
    assert type(loaded) is cls
    torch.testing.assert_close(loaded(ROWS), Unbiased.forward(loaded, ROWS))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm.layers.norm.SimpleNorm", "without subtracting the mean"),
        ("timm.layers.evo_norm.EvoNorm2dS0", "an EvoNorm"),
        ("timm.layers.grn.GlobalResponseNorm", "compares channels"),
        ("somewhere.CustomNorm2d", "unknown; .*register_norm"),
        ("somewhere.RMSNormGated", "unknown; .*register_norm"),
    ],
)
def test_layers_that_are_left_are_named(name: str, why: str) -> None:
    model = nn.Sequential(named(known.LlamaNorm, name)())
    (row,) = nk.accelerate(model).skipped
    assert re.search(why, row.why)


def test_modules_that_only_hold_a_normalization_are_not_listed() -> None:
    class ConvNorm(nn.Sequential):
        pass

    class NormFreeBlock(nn.Linear):
        pass

    handle = nk.accelerate(
        nn.Sequential(ConvNorm(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), NormFreeBlock(2, 2))
    )
    assert len(handle.changed) == 1 and not handle.skipped


def test_a_class_that_keeps_account_of_its_subclasses_is_left() -> None:
    class Counting(known.LayerNorm):
        subclasses = 0
        forward = known.LayerNorm.forward

        def __init_subclass__(cls) -> None:
            Counting.subclasses += 1

    cls = named(Counting, f"{TIMM}.LayerNorm")
    (row,) = nk.accelerate(nn.Sequential(cls())).skipped
    assert row.why == "its class customizes subclassing or copying" and Counting.subclasses == 1


def test_a_layer_of_ones_own_becomes_known_by_one_line() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.b = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
            self.post = nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.post(F.layer_norm(x, (C,), self.g, self.b, 1e-4))

    name = f"{Mine.__module__}.{Mine.__qualname__}"
    layer = Mine()
    assert not nk.accelerate(layer).changed
    register_norm(name, NormSpec(nk.LayerNorm, eps=1e-4, weight="g", bias="b", then=("post",)))
    before = copy.deepcopy(layer)
    (row,) = nk.accelerate(layer).changed
    assert row.fused == ("post",)
    torch.testing.assert_close(layer(ROWS), before(ROWS))
    assert list(layer.state_dict()) == ["g", "b"]
