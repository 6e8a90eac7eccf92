"""A small transformer on image patches (a vision transformer), with any normalizer of tokens.

Source: Dosovitskiy et al. 2020, *An Image is Worth 16x16 Words*, arXiv 2010.11929; its normalizers
stand before each part of a block ("pre-norm"), and the logits are read from the mean of all tokens
in place of a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import OptionError, message
from normkit.lab.models.layers import Layers
from normkit.lab.models.parts import Image, initialise, whole

__all__ = ["Attention", "VisionTransformer", "vit"]


class Attention(nn.Module):
    """Multi-head self-attention: every token looks at all of its image. Shapes (N, T, C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, layers: Layers, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layers.token_norm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = layers.token_norm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = layers.activation()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = self.fc2(self.act(self.fc1(self.norm2(x))))
        return x + y


class VisionTransformer(nn.Module):
    """Patches, blocks, a last normalizer, the mean of the tokens, logits; see :func:`vit`."""

    def __init__(
        self, layers: Layers, image: Image, patch: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        tokens = (image.size // patch) ** 2
        self.patches = nn.Conv2d(image.channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(tokens, dim))
        self.blocks = nn.Sequential(*(Block(layers, dim, heads) for _ in range(depth)))
        self.norm = layers.token_norm(dim)
        self.fc = nn.Linear(dim, image.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.fc(self.norm(self.blocks(x)).mean(dim=1))
        return logits


def vit(
    layers: Layers,
    image: Image,
    *,
    patch: int = 4,
    dim: int = 48,
    depth: int = 4,
    heads: int = 3,
    init: str = "pytorch",
) -> VisionTransformer:
    """Build a transformer on image patches, small enough for a CPU.

    Takes the normalizers of tokens only: "none", "layer", "dyt", "derf", or a factory, which is
    called with rank 1 for tokens (N, T, C). The source's activation is ``act="gelu"``. Positions
    start normal with deviation 0.02.

    Args:
        patch: side of a patch; must divide the image's side.
        dim: channels of a token.
        depth: blocks.
        heads: of each attention; must divide ``dim``.
        init: see :func:`normkit.lab.models.parts.initialise`.
    """
    for name, value in (("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads)):
        whole(name, value)
    if layers.norm_at != "all":
        raise OptionError(
            message(
                "normalizers before every part of a transformer",
                f"norm_at={layers.norm_at!r}",
                "leave norm_at out",
            )
        )
    if image.size % patch or dim % heads:
        raise OptionError(
            message(
                "patch to divide the image's side, and heads to divide dim",
                f"patch={patch} of {image.size} pixels, heads={heads} of dim={dim}",
                "use e.g. size=28, patch=4, dim=48, heads=3",
            )
        )
    model = VisionTransformer(layers, image, patch, dim, depth, heads)
    initialise(model, init)
    nn.init.normal_(model.positions, std=0.02)
    return model
