"""Settings of a run in words: names of normalizers, optimizers and options as readers say them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType

from normkit.lab import models
from normkit.lab.config import RunConfig

__all__ = [
    "activation",
    "listed",
    "network_options",
    "networks",
    "normalizer",
    "optimizer",
    "option",
]

Value = str | int | float | bool | None

NORMS = MappingProxyType(
    {
        "none": "none",
        "batch": "batch normalization",
        "torch-batch": "batch normalization (PyTorch's layer)",
        "ghost": "batch normalization in ghost batches",
        "domain": "batch normalization by domain",
        "layer": "layer normalization",
        "group": "group normalization",
        "instance": "instance normalization",
        "half-instance": "instance normalization of half the channels",
        "dyt": "Dynamic Tanh",
        "derf": "Dynamic erf",
        "noise": "none, and noise",
        "noisy-batch": "batch normalization, and noise after it",
    }
)
"""Normalizers by the name in a run's description."""

OPTIMIZERS = MappingProxyType(
    {"sgd": "SGD", "adam": "Adam", "adadelta": "Adadelta", "rmsprop": "RMSProp"}
)
ACTIVATIONS = MappingProxyType(
    {
        "relu": "ReLU",
        "sigmoid": "sigmoid",
        "tanh": "tanh",
        "gelu": "GELU",
        "silu": "SiLU",
        "leaky_relu_0.2": "leaky ReLU, slope 0.2",
    }
)

# Options whose every value has words of its own.
_CHOICES = MappingProxyType(
    {
        ("affine", False): "no γ, no β",
        ("affine", True): "γ and β",
        ("bottleneck", 0): "no bottlenecks",
        ("dropout", 0.0): "no dropout",
        ("dropout_at", "hidden"): "dropout after each hidden dense layer",
        ("dropout_at", "output"): "dropout before the output alone",
        ("init", "caffe"): "Caffe's first weights",
        ("init", "kaiming"): "He's first weights",
        ("init", "pytorch"): "PyTorch's first weights",
        ("init", "xavier"): "Xavier's first weights",
        ("norm_at", "both"): "normalizers after convolutions and dense layers",
        ("norm_at", "conv"): "normalizers after convolutions",
        ("norm_at", "fc"): "normalizers after dense layers",
        ("padding", 0): "no padding",
        ("pool", "avg"): "average pooling",
        ("pool", "max"): "max pooling",
        ("residual", False): "no shortcuts",
        ("residual", True): "shortcuts",
        ("share_affine", False): "γ and β for each domain",
        ("share_affine", True): "one γ and β for all domains",
        ("zero_init", True): "the last γ of each block starts at 0",
        ("average", "cumulative"): "cumulative average",
        ("average", "debiased"): "debiased average",
        ("average", "exponential"): "exponential average",
    }
)
# All others: a phrase around the value.
_PHRASES = MappingProxyType(
    {
        "alpha": "α starts at {}",
        "beta": "β starts at {}",
        "bottleneck": "bottlenecks {} times the growth",
        "depth": "depth {}",
        "dim": "{} values for each patch",
        "domains": "{} domains",
        "dropout": "dropout {}",
        "eps": "ε {}",
        "gamma": "γ starts at {}",
        "ghost_size": "{} images normalized together",
        "growth": "each layer adds {} channels",
        "heads": "{} heads",
        "hidden": "{} units in each dense layer",
        "momentum": "momentum {}",
        "padding": "padding {}",
        "patch": "patches {} pixels wide",
        "stem": "{} channels before the first block",
        "width": "{} channels in the first stage",
    }
)
# More values than these are told by the least, the greatest and their number.
_MOST = 8


def networks(names: Iterable[str]) -> str:
    """Name networks as people do, each once.

    >>> networks(["lenet5", "resnet18", "lenet5"])
    'LeNet-5, ResNet-18'
    """
    return ", ".join(dict.fromkeys(models.TITLES.get(name, name) for name in names))


def optimizer(name: str) -> str:
    """Name an optimizer as people do."""
    return OPTIMIZERS.get(name, name)


def activation(name: str) -> str:
    """Name an activation as people do."""
    return ACTIVATIONS.get(name, name)


def option(name: str, value: Value) -> str:
    """Say an option of a network or a normalizer in words.

    >>> option("hidden", 1024), option("dropout", 0.0), option("eps", 1e-10)
    ('1,024 units in each dense layer', 'no dropout', 'ε 1e-10')
    """
    known = _CHOICES.get((name, value))
    if known is not None:
        return known
    shown = f"{value:,}" if isinstance(value, int) else f"{value}"
    return _PHRASES.get(name, f"{name.replace('_', ' ')} {{}}").format(shown)


def network_options(configs: Iterable[RunConfig]) -> str:
    """Say the options of the networks, each once.

    Where networks differ in an option, a list of its values would not say whose is which: the arms
    say so, and here stands what there is.
    """
    return "; ".join(
        dict.fromkeys(
            option(name, value) for config in configs for name, value in config.model_options
        )
    )


def normalizer(config: RunConfig) -> str:
    """Say what normalizes in a run: the normalizer and its options."""
    words = NORMS.get(config.norm, config.norm)
    options = ", ".join(option(name, value) for name, value in config.norm_options)
    return f"{words}: {options}" if options else words


def listed(values: Sequence[float]) -> str:
    """List numbers, each once; many by the least, the greatest and their number. Zero is none.

    >>> listed([0.1, 0.2, 0.1]), listed([0.0])
    ('0.1, 0.2', 'none')
    >>> listed([0.5 + step for step in range(9)])
    '0.5 to 8.5, 9 values'
    """
    known = list(dict.fromkeys(values))
    if len(known) > _MOST:
        return f"{min(known):g} to {max(known):g}, {len(known)} values"
    return ", ".join(f"{value:g}" if value else "none" for value in known)
