"""Benchmark cases: normalization layers of real networks.

Images are 224×224 (LeNet-5: 28×28, U-Net: 256×256). LeNet-5, AlexNet and U-Net were published
without normalization; here each convolution and each hidden dense layer is followed by it, as
is usual today. MobileNetV2 is measured with ReLU instead of ReLU6, so that all cases share one
activation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

__all__ = ["BATCHES", "LARGEST", "NORMS", "PRESET_SHAPES", "Case", "all_cases", "preset_cases"]

BATCHES = (1, 32, 128)
LARGEST = 256 * 2**20
"""Cases with a larger input, in bytes, are omitted: both sides need several such tensors."""

NORMS = ("bn", "gn", "ln", "in", "rms")
GROUPS = 32
"""Groups of GroupNorm, as in Wu & He 2018."""

# (channels, side, times) in ResNet-18 and -50; the last layer of a block adds a residual.
_RESNET18 = ((64, 112, 1), (64, 56, 4), (128, 28, 5), (256, 14, 5), (512, 7, 5))
_RESNET50 = (
    (64, 112, 1), (64, 56, 6), (256, 56, 4), (128, 56, 1), (128, 28, 7), (512, 28, 5),
    (256, 28, 1), (256, 14, 11), (1024, 14, 7), (512, 14, 1), (512, 7, 5), (2048, 7, 4),
)  # fmt: skip
_WITH_RESIDUAL = {
    "resnet18": {(64, 56), (128, 28), (256, 14), (512, 7)},
    "resnet50": {(256, 56), (512, 28), (1024, 14), (2048, 7)},
}
_LENET = ((6, 28, 1), (16, 10, 1), (120, 0, 1), (84, 0, 1))
_ALEXNET = ((64, 55, 1), (192, 27, 1), (384, 13, 1), (256, 13, 2), (4096, 0, 2))
_UNET = ((64, 256, 4), (128, 128, 4), (256, 64, 4), (512, 32, 4), (1024, 16, 2))
# Layers of other small dense networks: (width, batch).
_DENSE = ((120, 256), (512, 64))

# (network, tokens of a sample, width, times).
_TRANSFORMERS = (
    ("mobilevit", 256, 64, 4), ("swin-t", 3136, 96, 4), ("vit-ti", 197, 192, 25),
    ("vit-s", 197, 384, 25), ("vit-b", 197, 768, 25), ("bert-base", 128, 768, 25),
    ("bert-large", 128, 1024, 49), ("gpt2", 1024, 768, 25), ("gpt2-xl", 1024, 1600, 97),
    ("opt-6.7b", 128, 4096, 65),
)  # fmt: skip
_CONVNEXT = ((96, 56, 4), (192, 28, 4), (384, 14, 10), (768, 7, 4))
# Tokens 1: a step of generation.
_LLMS = (
    ("qwen2-0.5b", 512, 896, 49), ("tinyllama", 512, 2048, 45), ("llama-3b", 512, 3072, 57),
    ("llama-7b", 512, 4096, 65), ("llama-7b-token", 1, 4096, 65),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer with its input.

    Attributes:
        norm: "bn", "gn", "ln", "in" or "rms"; layer normalization of four axes is
            ``LayerNorm2d``'s, over the channels at each position.
        shape: of the input; the batch comes first.
        layout: "contiguous" or "channels-last".
        networks: those that contain it; ``times``: how often, in all of them together.
        residual: in one of these networks a residual is added to its output.
    """

    norm: str
    shape: tuple[int, ...]
    layout: str
    networks: tuple[str, ...]
    times: int
    residual: bool = False

    @property
    def name(self) -> str:
        """Name that ``--cases`` matches.

        >>> Case("bn", (32, 64, 56, 56), "channels-last", ("resnet18",), 4).name
        'bn/resnet18/32x64x56x56/channels-last'
        """
        size = "x".join(map(str, self.shape))
        return f"{self.norm}/{'+'.join(self.networks)}/{size}/{self.layout}"

    @property
    def bytes(self) -> int:
        """Size of the input in float32."""
        return 4 * math.prod(self.shape)


Entry = tuple[str, str, tuple[int, ...], int, bool]
"""Norm, network, shape of one sample, times, residual."""


def _densenet121() -> Iterator[tuple[int, int, int]]:
    yield 64, 112, 1
    channels, side = 64, 56
    for number, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            # Widths in steps of 128, each representing the four up to it: the layers in between
            # differ by less than can be measured.
            yield -(-channels // 128) * 128, side, 1
            yield 128, side, 1
            channels += 32
        yield channels, side, 1  # before the transition; after the last block
        if number < 3:
            channels, side = channels // 2, side // 2


def _mobilenetv2() -> Iterator[tuple[int, int, int]]:
    yield 32, 112, 1
    before, side = 32, 112
    for widen, channels, layers, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for layer in range(layers):
            if widen > 1:
                yield before * widen, side, 1
            side //= 1 if layer else stride
            yield before * widen, side, 1
            yield channels, side, 1
            before = channels
    yield 1280, side, 1


def _images(norm: str, network: str, layers: Iterable[tuple[int, int, int]]) -> Iterator[Entry]:
    for channels, side, times in layers:
        shape = (channels, side, side) if side else (channels,)
        residual = (channels, side) in _WITH_RESIDUAL.get(network, ()) and norm == "bn"
        yield norm, network, shape, times, residual


def _entries() -> Iterator[Entry]:
    bn = {
        "lenet5": _LENET,
        "alexnet": _ALEXNET,
        "resnet18": _RESNET18,
        "resnet50": _RESNET50,
        "densenet121": tuple(_densenet121()),
        "mobilenetv2": tuple(_mobilenetv2()),
        "unet": _UNET,
    }
    for network, layers in bn.items():
        yield from _images("bn", network, layers)
    for norm in ("gn", "in"):
        yield from _images(norm, "resnet50", _RESNET50)
        yield from _images(norm, "unet", _UNET)
    for network, tokens, width, times in _TRANSFORMERS:
        yield "ln", network, (tokens, width), times, False
    yield from _images("ln", "convnext-t", _CONVNEXT)
    for network, tokens, width, times in _LLMS:
        yield "rms", network, (tokens, width), times, False


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Return all cases; equal layers of several networks are one case.

    Inputs above ``LARGEST`` bytes are omitted (the largest of most networks at batch 128, U-Net's
    at 32), and dense layers at batch 1, which batch normalization cannot train on.
    """
    layers: dict[tuple[str, tuple[int, ...]], tuple[dict[str, None], int, bool]] = {}
    for norm, network, shape, times, residual in _entries():
        names, count, has_residual = layers.setdefault((norm, shape), ({}, 0, False))
        layers[norm, shape] = (
            {**names, network: None},
            count + times,
            has_residual or residual,
        )
    cases = [Case("bn", (batch, width), "contiguous", ("dense",), 1) for width, batch in _DENSE]
    for (norm, shape), (names, times, residual) in layers.items():
        for batch in BATCHES:
            input_shape = (
                (batch * shape[0], shape[1])
                if norm in ("ln", "rms") and len(shape) == 2
                else (batch, *shape)
            )
            if 4 * math.prod(input_shape) > LARGEST or (len(shape) == 1 and batch == 1):
                continue
            for layout in ("contiguous", "channels-last") if len(shape) == 3 else ("contiguous",):
                cases.append(Case(norm, input_shape, layout, tuple(names), times, residual))
    return tuple(cases)


# (norm, shape) of the cases of a preset, in both layouts where there are two.
_QUICK = (
    ("bn", (128, 6, 28, 28)), ("bn", (32, 64, 56, 56)), ("bn", (32, 256, 14, 14)),
    ("bn", (1, 128, 28, 28)), ("bn", (128, 512, 7, 7)), ("bn", (256, 120)),
    ("gn", (32, 256, 14, 14)), ("ln", (6304, 768)), ("ln", (32, 96, 56, 56)),
    ("in", (32, 64, 56, 56)), ("rms", (512, 4096)),
)  # fmt: skip
_DEFAULT = (
    *_QUICK,
    ("bn", (32, 16, 10, 10)), ("bn", (32, 64, 55, 55)), ("bn", (1, 64, 112, 112)),
    ("bn", (1, 512, 7, 7)), ("bn", (128, 1024, 14, 14)),
    ("bn", (32, 144, 56, 56)), ("bn", (32, 960, 7, 7)), ("bn", (1, 64, 256, 256)),
    ("bn", (64, 512)), ("gn", (1, 512, 32, 32)), ("ln", (128, 768)), ("ln", (8192, 64)),
    ("in", (1, 128, 128, 128)), ("rms", (32, 4096)),
)  # fmt: skip
PRESET_SHAPES = {"quick": _QUICK, "default": _DEFAULT}
"""(norm, shape) of each preset's cases; "full" has all."""


def preset_cases(preset: str) -> tuple[Case, ...]:
    """Return the cases of a preset.

    >>> len(preset_cases("quick")) < len(preset_cases("default")) < len(preset_cases("full"))
    True
    """
    if preset == "full":
        return all_cases()
    shapes = PRESET_SHAPES[preset]
    return tuple(case for case in all_cases() if (case.norm, case.shape) in shapes)
