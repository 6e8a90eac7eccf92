"""torchvision's layers: LayerNorm2d of ConvNeXt, and FrozenBatchNorm2d, as detectron2 has it."""

from __future__ import annotations

from normkit.nn import FrozenBatchNorm2d, LayerNorm2d
from normkit.nn.norm_spec import NormSpec, register_norm

__all__: list[str] = []

FROZEN = NormSpec(FrozenBatchNorm2d)

register_norm(
    "torchvision.models.convnext.LayerNorm2d",
    NormSpec(LayerNorm2d, shape="normalized_shape", like_torch=True),
)
# And their many copies in other repositories.
register_norm("*.FrozenBatchNorm2d", FROZEN, NormSpec(FrozenBatchNorm2d, eps=1e-5))
