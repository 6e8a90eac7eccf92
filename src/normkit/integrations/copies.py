"""Layers that many repositories hold a copy of, under the same name.

The comparison with the copy's own ``forward`` tells which form it has, or that it is another layer.
"""

from __future__ import annotations

from normkit.integrations.transformers import RMS
from normkit.nn import FrozenBatchNorm2d, LayerNorm2d
from normkit.nn.norm_spec import NormSpec, register_norm

__all__: list[str] = []

# Of torchvision and detectron2, and of DETR, which keeps ε in its forward.
register_norm(
    "*.FrozenBatchNorm2d",
    NormSpec(FrozenBatchNorm2d),
    NormSpec(FrozenBatchNorm2d, eps=1e-5),
)
# Of ConvNeXt, which moves the channels to the end and back, and of SAM, which does not.
register_norm("*.LayerNorm2d", NormSpec(LayerNorm2d, channels_last=True), NormSpec(LayerNorm2d))
# Of Llama and Gemma.
register_norm("*.RMSNorm", *RMS)
