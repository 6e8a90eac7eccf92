"""Layers of other libraries, known by their names; here as copies of what those classes do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.nn.freezing import is_constant
from normkit.nn.stats_spec import stats_spec, why_unknown

X = torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1


def named(cls: type, name: str) -> type:
    """Return ``cls`` under the qualified name of another library's class."""
    cls.__module__, _, cls.__qualname__ = name.rpartition(".")
    cls.__name__ = cls.__qualname__
    return cls


def norm_act(name: str, base: type = nn.BatchNorm2d) -> type:
    class NormAct(base):  # type: ignore[misc]
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.drop(nn.BatchNorm2d.forward(self, x)))

    return named(NormAct, name)


def module_norm(name: str) -> type:
    """A normalization that derives from nn.Module alone."""

    class ABN(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.eps, self.momentum = 1e-5, 0.1
            self.weight, self.bias = (nn.Parameter(torch.ones(channels)) for _ in range(2))
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.running_mean, self.running_var
            return F.leaky_relu(F.batch_norm(x, mean, var, self.weight, self.bias, self.training))

    return named(ABN, name)


NAMES = [
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.models.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.inplace_abn.InplaceAbn",
    "inplace_abn.abn.ABN",
    "inplace_abn.abn.InPlaceABN",
    "inplace_abn.abn.InPlaceABNSync",
    "apex.parallel.sync_batchnorm.SyncBatchNorm",
    "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm",
    "detectron2.layers.batch_norm.NaiveSyncBatchNorm",
    "mmdet3d.models.layers.norm.NaiveSyncBatchNorm2d",
    "mmcv.ops.sync_bn.SyncBatchNorm",
    "pytorchvideo.layers.batch_norm.NaiveSyncBatchNorm3d",
    "networks.sync_batchnorm.batchnorm._SynchronizedBatchNorm",
]


@pytest.mark.parametrize("make", [norm_act, module_norm])
@pytest.mark.parametrize("name", NAMES)
def test_known_by_name(name: str, make: Callable[[str], type]) -> None:
    layer = make(name)(4)
    layer.channel_last = False
    model = nn.Sequential(layer)
    assert name.split(".")[0] not in sys.modules
    result = nk.recalibrate(model, [X], samples=None, progress=False)
    assert not result.skipped and why_unknown(layer) is None
    torch.testing.assert_close(layer.running_mean, X.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, X.transpose(0, 1).flatten(1).var(1))
    assert nk.scale_momentum(model, 2).changed
    handle = nk.freeze(model)
    before = layer.running_mean.clone()
    model.train()(X + 1)
    assert torch.equal(layer.running_mean, before) and not layer.weight.requires_grad
    handle.undo()
    with nk.batch_statistics(model):
        assert layer.training
        model(X + 1)
    assert torch.equal(layer.running_mean, before) and layer.running_mean is not before
    if make is norm_act and name.endswith("BatchNormAct2d"):  # what it computes is known too
        assert nk.accelerate(model).changed and nk.convert(model, "sync").changed
        assert model[0].act == "relu"
        return
    # Its activation would be lost in another class.
    with pytest.warns(UserWarning, match="convert changed nothing"):
        assert not nk.convert(model, "sync").changed
    assert not nk.accelerate(model).changed


def test_channels_last_by_option() -> None:
    class Apex(nn.BatchNorm1d):
        channel_last = True

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(-1, 1)).movedim(1, -1)

    layer = named(Apex, "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm")(4)
    x = X[..., 0, :4]
    nk.recalibrate(layer, [x], samples=None, progress=False)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 1)))


def test_a_subclass_of_a_known_class_with_its_own_forward_is_unknown() -> None:
    class Theirs(norm_act("timm.layers.norm_act.BatchNormAct2d")):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.abs())

    assert stats_spec(Theirs(4)) is None and why_unknown(Theirs(4)) is not None


KEYS = ("weight", "bias", "running_mean", "running_var")


def frozen(name: str, parameters: bool = False) -> nn.Module:
    """As torchvision, detectron2, DETR and their copies have it."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, value in zip(KEYS, (2.0, 1.0, 0.5, 4.0), strict=True):
                tensor = torch.full((4,), value)
                if parameters and key in ("weight", "bias"):
                    setattr(self, key, nn.Parameter(tensor, requires_grad=False))
                else:
                    self.register_buffer(key, tensor)

        def forward(self, x: Tensor) -> Tensor:
            values = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(x, *values, training=False)

    return named(Frozen, name)()


@pytest.mark.parametrize("parameters", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "torchvision.ops.misc.FrozenBatchNorm2d",
        "detectron2.layers.batch_norm.FrozenBatchNorm2d",
        "mmdet.models.layers.brick_wrappers.FrozenBatchNorm2d",
        "transformers.models.detr.modeling_detr.DetrFrozenBatchNorm2d",
        "transformers.models.rt_detr.modeling_rt_detr.RTDetrFrozenBatchNorm2d",
        "timm.layers.norm_act.FrozenBatchNormAct2d",
    ],
)
def test_frozen_layers_are_known_as_constant(name: str, parameters: bool) -> None:
    layer = frozen(name, parameters)
    assert is_constant(layer)
    model = nn.ModuleList([layer, nn.BatchNorm2d(4)])
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    tools: list[Callable[[nn.Module], Any]] = [
        lambda m: nk.recalibrate(m, [X], progress=False),
        lambda m: nk.consistency(m, [X], progress=False),
        nk.average_buffers, nk.freeze, lambda m: nk.scale_momentum(m, 2),
    ]  # fmt: skip
    for tool in tools:
        (why,) = [row.why for row in tool(model).skipped if row.name == "0"]
        assert "constant" in why
    nk.unfreeze(model[1])
    with nk.batch_statistics(model):  # nothing to warn of: it is what it is
        assert not layer.training


def test_a_layer_that_learns_is_not_constant_whatever_its_name() -> None:
    class FrozenBatchNorm2d(nn.BatchNorm2d):
        pass

    assert not is_constant(FrozenBatchNorm2d(4)) and stats_spec(FrozenBatchNorm2d(4))
