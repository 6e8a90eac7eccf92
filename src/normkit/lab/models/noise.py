"""Noise that makes the inputs of layers unstable on purpose, for claim C25.

Source: Santurkar et al. 2018, *How Does Batch Normalization Help Optimization?*, arXiv 1805.11604:
noise of non-zero mean and non-unit variance after each normalizer, drawn anew at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ShiftingNoise"]

MEAN, SCALE = 0.5, 1.25
"""A channel's mean of a step lies within ±MEAN, its scale from 1 to SCALE."""
SPREAD = 0.1
"""How far the samples of a batch lie from the mean and the scale of their channel."""


class ShiftingNoise(nn.Module):
    """``s·x + m`` in training, with s and m drawn anew at each step; ``x`` in evaluation.

    At each step a channel j draws a mean μ from U(−0.5, 0.5) and a scale σ from U(1, 1.25); then
    each sample draws its own m from U(μ − 0.1, μ + 0.1) and its own s from N(σ, 0.1²), the same at
    all positions of an image.

    Shapes: (N, C) or (N, C, H, W), and the same out.

    >>> ShiftingNoise().eval()(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        samples, channels = x.shape[:2]
        mean = x.new_empty(1, channels).uniform_(-MEAN, MEAN)
        scale = x.new_empty(1, channels).uniform_(1, SCALE)
        mean = mean + x.new_empty(samples, channels).uniform_(-SPREAD, SPREAD)
        scale = scale + SPREAD * torch.randn(samples, channels, dtype=x.dtype, device=x.device)
        shape = (samples, channels, *[1] * (x.dim() - 2))
        return torch.addcmul(mean.view(shape), x, scale.view(shape))
