"""Other libraries: how their layers behave, and callbacks for their loops.

Layers are known by name, so none of these libraries is imported. Import a callback from its own
module.
"""

from normkit.integrations import (
    copies,
    inplace_abn,
    quantization,
    sync_batchnorm,
    timm,
    torchvision,
    transformers,
)

__all__ = [
    "copies",
    "inplace_abn",
    "quantization",
    "sync_batchnorm",
    "timm",
    "torchvision",
    "transformers",
]
