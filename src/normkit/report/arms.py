"""Colour of each arm, the same on every page: the number of a colour of the style sheet.

A table, because colours dealt out in the order of a page's claims would be others on a page of
other claims. Arms of one chart have colours of their own; what one arm is in several claims (with
BN, the moving average) has one. ``tests/report/test_colours.py`` holds both for the charts of every
claim. An arm that is not here gets a colour that its charts leave free.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["ARMS"]

_BY_COLOUR: dict[int, tuple[str, ...]] = {
    # Blue: with batch normalization.
    0: (
        "with BN",
        "BN",
        "ReLU with BN",
        "SGD batch 256, even light, moving average",
        "Dynamic Tanh, PyTorch's weights, α 2",
    ),
    # Vermilion: without it.
    1: (
        "without BN",
        "none",
        "without",
        "nothing",
        "no normalization",
        "ReLU without BN",
        "ReLU, no BN",
        "SGD batch 256, even light, population statistics",
    ),
    # Teal: population statistics.
    2: (
        "population statistics",
        "with BN, population statistics",
        "test, population statistics",
        "test, population statistics, even light",
        "SGD batch 256, population statistics",
        "LayerNorm",
        "SGD specific",
        "conv",
        "BN and dropout",
        "with BN, noise after it",
        "plain, 18 layers",
        "ResNet-18, cut",
    ),
    # Magenta: the moving average; dropout; a domain of one's own.
    3: (
        "moving average",
        "running statistics",
        "exponential, decay 0.95",
        "SGD batch 256, moving average",
        "dropout",
        "IN",
        "SGD",
        "SGD and affine specific",
        "Dynamic Tanh",
        "He's weights",
        "fc",
        "sigmoid, γ and β",
        "ReLU, γ and β",
        "residual, 18 layers",
        "ResNet-18, half as wide",
    ),
    # Amber: batch statistics; GroupNorm; PyTorch's layers.
    4: (
        "batch statistics",
        "batch statistics at test",
        "test, batch statistics",
        "test, batch statistics, even light",
        "moving average, last batch dropped",
        "GroupNorm",
        "PyTorch's layers",
        "PyTorch's weights",
        "Dynamic erf",
        "sigmoid without BN",
        "sigmoid, no γ, no β",
        "ReLU, no γ, no β",
        "BN and dropout before the output",
        "SGD batch 64, even light, moving average",
        "plain",
        "plain, 34 layers",
        "DenseNet, twice as wide",
    ),
    # The text's own: normkit's layers, and what has no other home.
    5: (
        "normkit's layers",
        "Adadelta",
        "debiased, decay 0.95",
        "half-IN",
        "BN over each group",
        "BN, batch statistics",
        "without BN, the same noise",
        "LayerNorm, PyTorch's weights",
        "SGD batch 64, even light, population statistics",
    ),
    6: (
        "ours",
        "RMSProp",
        "sigmoid with BN",
        "test, frozen at the end",
        "sorted by label",
        "BN, shuffled",
        "BN, population statistics",
        "none, even",
        "without BN, PyTorch's weights",
        "Dynamic Tanh, PyTorch's weights",
        "SGD batch 64, moving average",
        "ResNet-18",
    ),
    7: (
        "training",
        "training, even light",
        "cumulative",
        "SGD shared",
        "the article's LeNet-5",
        "BN over the whole batch",
        "half-IN, even",
        "with BN, PyTorch's weights",
        "nothing, PyTorch's weights",
        "SGD batch 64, population statistics",
        "ResNet-50 on ImageNet, SGD batch 32",
        "residual",
        "residual, 34 layers",
        "DenseNet",
    ),
}

ARMS: Mapping[str, int] = MappingProxyType(
    {arm: colour for colour, arms in _BY_COLOUR.items() for arm in arms}
)
"""Colour by the name of an arm, as charts have it."""
