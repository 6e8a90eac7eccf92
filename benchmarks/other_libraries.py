"""Models of torchvision and transformers for timm_families.py, with an input for each."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BUILDERS"]

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


class Reads(nn.Module):
    """A model whose output is one tensor, of tokens or images."""

    def __init__(self, model: nn.Module, read: Callable[[Any], Tensor], key: str = "") -> None:
        super().__init__()
        self.model, self.read, self.key = model, read, key

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.model(**{self.key: x}) if self.key else self.model(x))


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        sys.exit(f"This program needs {name} ({error}): pip install --no-deps {name}")


def _tokens() -> Tensor:
    return torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def _images(size: int = 64) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def _joined(outputs: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in outputs.values()])


def _vision(name: str) -> tuple[nn.Module, Tensor]:
    models = _library("torchvision").models
    return models.get_model(name, weights=None, num_classes=10), _images()


def _detection(name: str) -> tuple[nn.Module, Tensor]:
    utils = _library("torchvision").models.detection.backbone_utils
    backbone = utils.resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)
    return Reads(backbone, _joined), _images()


def _language(name: str, **more: Any) -> tuple[nn.Module, Tensor]:
    library = _library("transformers")
    config = getattr(library, f"{name}Config")(**{**SIZES, **more})
    model = getattr(library, f"{name}ForCausalLM")(config)
    return Reads(model, lambda y: y.logits, "input_ids"), _tokens()


def _t5() -> tuple[nn.Module, Tensor]:
    library = _library("transformers")
    config = library.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return Reads(
        library.T5EncoderModel(config), lambda y: y.last_hidden_state, "input_ids"
    ), _tokens()


def _image_model(name: str, **sizes: Any) -> tuple[nn.Module, Tensor]:
    library = _library("transformers")
    model = getattr(library, f"{name}Model")(getattr(library, f"{name}Config")(**sizes))
    return Reads(model, lambda y: y.last_hidden_state, "pixel_values"), _images()


def _detr() -> tuple[nn.Module, Tensor]:
    library = _library("transformers")
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1]}
    backbone = library.ResNetConfig(**stages, out_features=["stage4"])
    ends = {f"{part}_{what}": n for part in ("encoder", "decoder")
            for what, n in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 32))}  # fmt: skip
    return _image_model(
        "ConditionalDetr", backbone_config=backbone, backbone=None, use_timm_backbone=False,
        use_pretrained_backbone=False, d_model=32, num_queries=5, **ends,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "torchvision resnet18, FPN of its detection": functools.partial(_detection, "resnet18"),
    **{
        f"torchvision {name}": functools.partial(_vision, name)
        for name in ("convnext_tiny", "efficientnet_b0", "regnet_y_400mf", "swin_t")
    },
    **{
        f"transformers {name}": functools.partial(_language, name)
        for name in ("Llama", "Mistral", "Cohere", "Olmo", "Olmo2", "Nemotron", "GPTNeoX")
    },
    **{
        f"transformers {name}": functools.partial(_language, name, head_dim=8)
        for name in ("Qwen3", "Gemma2", "Helium")
    },
    "transformers T5Encoder": _t5,
    "transformers ConvNext": functools.partial(
        _image_model, "ConvNext", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 2, 1]
    ),
    "transformers ConditionalDetr": _detr,
}
