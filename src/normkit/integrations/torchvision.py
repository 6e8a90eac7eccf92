"""torchvision's LayerNorm2d of ConvNeXt; its FrozenBatchNorm2d is among the copies."""

from __future__ import annotations

from normkit.nn import LayerNorm2d
from normkit.nn.norm_spec import NormSpec, register_norm

__all__: list[str] = []

register_norm(
    "torchvision.models.convnext.LayerNorm2d",
    NormSpec(LayerNorm2d, shape="normalized_shape", like_torch=True, channels_last=True),
)
