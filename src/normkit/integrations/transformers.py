"""Normalization layers of transformers' models.

Each model has its own copy, in a few forms that differ in the name of ε, in a γ that is stored as
its distance from 1, and in where results are rounded. So they are registered by a pattern of
names with all forms, and the comparison with the layer itself tells which one it is.
"""

from __future__ import annotations

from normkit.nn import (
    FrozenBatchNorm2d,
    GroupNorm,
    LayerNorm,
    LayerNorm2d,
    RMSNorm,
    ZeroCenteredRMSNorm,
)
from normkit.nn.norm_spec import NormSpec, register_norm

__all__: list[str] = []

EPSILONS = ("variance_epsilon", "eps")

# Llama's and T5's; those without γ; Gemma's, with a distance from 1.
RMS = (
    *(NormSpec(RMSNorm, eps, bias=None) for eps in EPSILONS),
    *(NormSpec(RMSNorm, eps, weight=None, bias=None) for eps in EPSILONS),
    *(NormSpec(ZeroCenteredRMSNorm, eps, bias=None) for eps in EPSILONS),
)
LAYER = (
    NormSpec(LayerNorm, shape="normalized_shape"),
    NormSpec(LayerNorm2d, shape="normalized_shape", channels_last=True),
    *(NormSpec(LayerNorm, eps, bias=bias) for eps in EPSILONS for bias in ("bias", None)),
    NormSpec(LayerNorm, offset=1.0),
    NormSpec(LayerNorm, eps=1e-5),
    NormSpec(LayerNorm, eps=1e-5, weight=None, bias=None, shape="normalized_shape"),
    NormSpec(LayerNorm2d),
)
FROZEN = (NormSpec(FrozenBatchNorm2d, eps=1e-5), NormSpec(FrozenBatchNorm2d))
GROUP = (NormSpec(GroupNorm, then=("activation",)),)

# Models of the library, and those whose code comes with their weights.
for package in ("transformers.models.*", "transformers_modules.*"):
    register_norm(f"{package}FrozenBatchNorm2d", *FROZEN)
    register_norm(f"{package}RMSNorm", *RMS)
    # T5LayerNorm is a root mean square normalization.
    for name in ("LayerNorm", "LayerNorm2d", "LayerNorm1P", "L2Norm"):
        register_norm(f"{package}{name}", *LAYER, *RMS)
    register_norm(f"{package}GroupNormActivation", *GROUP)
