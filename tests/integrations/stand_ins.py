"""Small layers that compute what other libraries' do, under the names that those have.

Written for these tests. :data:`LAYERS` lists them by qualified name, with the shape of an input;
:func:`installed` puts them into modules of those names, so that they can be pickled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 6


def named(cls: type, name: str) -> type:
    """Return ``cls`` under another library's name."""
    module, _, qualname = name.rpartition(".")
    names: dict[str, Any] = {"__module__": module, "__qualname__": qualname}
    if "forward" in vars(cls):
        names["forward"] = vars(cls)["forward"]
    return type(cls)(qualname, (cls,), names)


class BatchNormAct(nn.BatchNorm2d):
    def __init__(self, act: nn.Module | None = None, **options: Any) -> None:
        super().__init__(C, **options)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True) if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 4, "4D input")
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked) if self.training else 0.0
        use = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if use else (None, None)
        train = self.training or mean is None
        y = F.batch_norm(x, mean, var, self.weight, self.bias, train, momentum, self.eps)
        return self.act(self.drop(y))


class FrozenBatchNorm(nn.Module):
    """Constant, with ε as an attribute, and no activation."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for key, low in (("weight", 0.5), ("bias", 0), ("running_mean", 0), ("running_var", 0.5)):
            self.register_buffer(key, torch.linspace(low, low + 1, C))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class FrozenBatchNormAct(FrozenBatchNorm):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.act = nn.Identity(), nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(FrozenBatchNorm.forward(self, x)))


class DetrFrozen(FrozenBatchNorm):
    """Constant, with ε in its forward."""

    def __init__(self) -> None:
        super().__init__()
        del self.eps

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var + 1e-5).rsqrt().view(
            1, -1, 1, 1
        )
        return x * scale + (
            self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale
        )


class GroupNorm(nn.GroupNorm):
    def __init__(self) -> None:
        super().__init__(2, C)
        self._fast_norm = False

    def forward(self, x: Tensor) -> Tensor:
        if self._fast_norm and torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            tensors = (self.weight.to(kind), self.bias.to(kind))
            with torch.autocast(x.device.type, enabled=False):
                return F.group_norm(x.to(kind), self.num_groups, *tensors, self.eps)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class GroupNormAct(nn.GroupNorm):
    def __init__(self) -> None:
        super().__init__(3, C)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.act(self.drop(y))


class LayerNorm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(C, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNormWide(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class LayerNorm2d(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNormAct2d(LayerNorm2d):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.act = nn.Identity(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(LayerNorm2d.forward(self, x)))


class ConvNextNorm(nn.LayerNorm):
    def __init__(self, data_format: str) -> None:
        super().__init__(C, eps=1e-6)
        self.data_format = data_format

    def forward(self, x: Tensor) -> Tensor:
        if self.data_format == "channels_first":
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


class SamNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape, self.eps = (C,), 1e-6
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class RmsNorm2d(RmsNorm):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(dim=1, keepdim=True)
        return x * torch.rsqrt(mean + self.eps) * self.weight.reshape(1, -1, 1, 1)


class LlamaNorm(nn.Module):
    """Rounds to the input's type before it multiplies with γ."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(C)), 1e-6

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.to(torch.float32)
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normalized.to(hidden_states.dtype)


class GptOssNorm(LlamaNorm):
    """Multiplies with γ before it rounds."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.float()
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * normalized).to(hidden_states.dtype)


class T5Norm(LlamaNorm):
    """Returns the type of γ, if that is a half type."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        var = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        normalized = hidden_states * torch.rsqrt(var + self.variance_epsilon)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            normalized = normalized.to(self.weight.dtype)
        return self.weight * normalized


class GemmaNorm(nn.Module):
    """γ is stored as its distance from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(C)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normalized * (1.0 + self.weight.float())).type_as(x)


class WeightlessNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class CohereNorm(nn.Module):
    """Layer normalization without β."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(C)), 1e-5

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = hidden_states.to(torch.float32)
        mean = wide.mean(-1, keepdim=True)
        var = (wide - mean).pow(2).mean(-1, keepdim=True)
        normalized = (wide - mean) * torch.rsqrt(var + self.variance_epsilon)
        return (self.weight.to(torch.float32) * normalized).to(hidden_states.dtype)


class OnePlusLayerNorm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)


class Inherited(nn.LayerNorm):
    """Has the forward of torch.nn's."""

    def __init__(self) -> None:
        super().__init__(C, bias=False)
        self.eps = 1e-6


class Case(NamedTuple):
    name: str
    make: Callable[[type], nn.Module]
    cls: type
    shape: tuple[int, ...]
    fused: bool = False


IMAGE, ROWS = (4, C, 3, 5), (4, 7, C)


def _case(name: str, cls: type, shape: tuple[int, ...], *args: Any, fused: bool = False) -> Case:
    return Case(name, lambda known: known(*args), named(cls, name), shape, fused)


_TF = "transformers.models"
CASES = [
    _case("timm.layers.norm_act.BatchNormAct2d", BatchNormAct, IMAGE, fused=True),
    _case("timm.models.layers.norm_act.BatchNormAct2d", BatchNormAct, IMAGE, nn.SiLU(), fused=True),
    _case("timm.layers.norm_act.BatchNormAct2d", BatchNormAct, IMAGE, nn.Hardswish()),
    _case("timm.layers.norm_act.BatchNormAct2d", BatchNormAct, IMAGE, nn.Identity()),
    _case("timm.layers.norm_act.FrozenBatchNormAct2d", FrozenBatchNormAct, IMAGE, fused=True),
    _case("timm.layers.norm_act.GroupNormAct", GroupNormAct, IMAGE, fused=True),
    _case("timm.layers.norm_act.LayerNormAct2d", LayerNormAct2d, IMAGE, fused=True),
    _case("timm.layers.norm.GroupNorm", GroupNorm, IMAGE),
    _case("timm.layers.norm.LayerNorm", LayerNorm, ROWS),
    _case("timm.layers.norm.LayerNormFp32", LayerNormWide, ROWS),
    _case("timm.layers.norm.LayerNorm2d", LayerNorm2d, IMAGE),
    _case("timm.layers.norm.RmsNorm", RmsNorm, ROWS),
    _case("timm.layers.norm.RmsNorm2d", RmsNorm2d, IMAGE),
    _case("torchvision.ops.misc.FrozenBatchNorm2d", FrozenBatchNorm, IMAGE),
    _case("torchvision.models.convnext.LayerNorm2d", LayerNorm2d, IMAGE),
    _case("detectron2.layers.batch_norm.FrozenBatchNorm2d", FrozenBatchNorm, IMAGE, 1e-3),
    _case(f"{_TF}.llama.modeling_llama.LlamaRMSNorm", LlamaNorm, ROWS),
    _case(f"{_TF}.gpt_oss.modeling_gpt_oss.GptOssRMSNorm", GptOssNorm, ROWS),
    _case(f"{_TF}.t5.modeling_t5.T5LayerNorm", T5Norm, ROWS),
    _case(f"{_TF}.gemma.modeling_gemma.GemmaRMSNorm", GemmaNorm, ROWS),
    _case(f"{_TF}.llama4.modeling_llama4.Llama4TextL2Norm", WeightlessNorm, ROWS),
    _case(f"{_TF}.cohere.modeling_cohere.CohereLayerNorm", CohereNorm, ROWS),
    _case(f"{_TF}.videoprism.modeling_videoprism.VideoPrismLayerNorm", OnePlusLayerNorm, ROWS),
    _case(f"{_TF}.convnext.modeling_convnext.ConvNextLayerNorm", ConvNextNorm, IMAGE,
          "channels_first"),
    _case(f"{_TF}.convnext.modeling_convnext.ConvNextLayerNorm", ConvNextNorm, (2, 3, 5, C),
          "channels_last"),
    _case(f"{_TF}.detr.modeling_detr.DetrFrozenBatchNorm2d", DetrFrozen, IMAGE),
    _case("segment_anything.modeling.common.LayerNorm2d", SamNorm, IMAGE),
    _case("model.RMSNorm", LlamaNorm, ROWS),
    _case("timm.models.metaformer.LayerNormNoBias", Inherited, ROWS),
]  # fmt: skip


def build(case: Case) -> tuple[nn.Module, Tensor]:
    """Return a layer with random tensors, and an input."""
    generator = torch.Generator().manual_seed(0)
    layer = case.make(case.cls)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point() and "var" not in name:
                tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
    return layer, torch.randn(case.shape, generator=generator) * 2 + 0.5


@contextmanager
def installed(cls: type) -> Iterator[None]:
    """Make ``cls`` importable by its name."""
    parts = cls.__module__.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = ModuleType(name)
    setattr(sys.modules[names[-1]], cls.__qualname__, cls)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
