"""Functions that stand in for a normalizer without any statistics: Dynamic Tanh, Dynamic erf.

Sources: Zhu et al. 2025, *Transformers without Normalization*, arXiv 2503.10622; Chen et al. 2025,
*Stronger Normalization-Free Transformers*, arXiv 2512.10938.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DynamicErf", "DynamicTanh"]


class DynamicTanh(nn.Module):
    """``γ·tanh(α·x) + β``, with one α for the layer, γ and β per channel.

    Args:
        channels: of the input.
        rank: 2 for images (N, C, H, W); 0 and 1 where the channels come last, (N, C) and
            (N, T, C).
        affine: False leaves out γ and β.
        alpha: the value that α starts at; 0.5 is the sources' for all but language models.

    >>> DynamicTanh(2, 0)(torch.tensor([[0.0, 1.0]]))
    tensor([[0.0000, 0.4621]], grad_fn=<AddcmulBackward0>)
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self, channels: int, rank: int, affine: bool = True, *, alpha: float = 0.5
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        shape = (channels, 1, 1) if rank == 2 else (channels,)
        self.weight = nn.Parameter(torch.ones(shape)) if affine else None
        self.bias = nn.Parameter(torch.zeros(shape)) if affine else None

    def squash(self, x: Tensor) -> Tensor:
        """Return the bounded value, before γ and β."""
        return torch.tanh(self.alpha * x)

    def forward(self, x: Tensor) -> Tensor:
        y = self.squash(x)
        if self.weight is None or self.bias is None:
            return y
        return torch.addcmul(self.bias, y, self.weight)


class DynamicErf(DynamicTanh):
    """``γ·erf(α·x + s) + β``, with one α and one shift s, which starts at 0, for the layer.

    >>> DynamicErf(2, 0)(torch.tensor([[0.0, 1.0]]))
    tensor([[0.0000, 0.5205]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(
        self, channels: int, rank: int, affine: bool = True, *, alpha: float = 0.5
    ) -> None:
        super().__init__(channels, rank, affine, alpha=alpha)
        self.shift = nn.Parameter(torch.tensor(0.0))

    def squash(self, x: Tensor) -> Tensor:
        """Return the bounded value, before γ and β."""
        return torch.erf(self.alpha * x + self.shift)
