"""Layers to time: 30 shapes of ResNet-50, U-Nets and diffusion decoders, and two of rows.

Sizes are those of the published networks: ResNet-50 on images of 224×224 (He et al. 2015, arXiv
1512.03385); a U-Net with batch normalization on 512×512 and smaller (Ronneberger et al. 2015, arXiv
1505.04597); the denoising U-Net and the decoder of latent diffusion (Rombach et al. 2021, arXiv
2112.10752), whose layers are GroupNorm of 32 groups with SiLU; and one layer of a video decoder.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.layers import SeparateModules

__all__ = ["CASES", "LAYOUTS", "Case", "Inputs", "inputs", "sides"]

LAYOUTS = ("contiguous", "channels-last")
GROUPS = 32


class Case(NamedTuple):
    """One layer with its input.

    Args:
        norm: "bn", "gn", "ln" or "rms"; the last two normalize rows of the last axis.
        shape: of the input.
        dtype: name of its type in torch.
        network: where the layer is from.
        residual: a tensor is added before the activation.
        first: among those that are timed compiled, too, before all others.
    """

    norm: str
    shape: tuple[int, ...]
    dtype: str
    network: str
    residual: bool = False
    first: bool = False

    @property
    def act(self) -> str | None:
        """Activation of the layer."""
        return {"bn": "relu", "gn": "silu"}.get(self.norm)

    @property
    def layouts(self) -> tuple[str, ...]:
        """Memory formats that the input can have."""
        return LAYOUTS if len(self.shape) in (4, 5) else LAYOUTS[:1]

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize

    def passes(self, mode: str) -> int:
        """Return how many times an input's size has to be read or written.

        Forward reads the input for the moments and again to normalize it, and writes the output;
        backward reads input and gradient for two sums and again for the input's gradient. Rows fit
        the registers and are read once. A residual is read; backward reads it (or the output) in
        both passes and writes its gradient.

        >>> bn = Case("bn", (2, 8, 4, 4), "float32", "")
        >>> bn.passes("forward"), bn.passes("training")
        (3, 8)
        >>> bn._replace(residual=True).passes("training"), bn._replace(norm="ln").passes("training")
        (12, 5)
        """
        rows = self.norm in ("ln", "rms")
        forward = (2 if rows else 3) + self.residual
        backward = (3 if rows else 5) + 3 * self.residual
        return forward if mode == "forward" else forward + backward

    def toy(self) -> Case:
        """Return the case at a size that an interpreter computes in a fraction of a second."""
        channels = {"bn": 8, "gn": GROUPS}.get(self.norm, self.shape[1])
        if self.norm in ("ln", "rms"):
            return self._replace(shape=(3, 40))
        return self._replace(shape=(min(self.shape[0], 2), channels, *(3,) * (len(self.shape) - 2)))

    def __str__(self) -> str:
        words = [f"{self.norm} {'×'.join(map(str, self.shape))} {self.dtype}"]
        words += [self.act] if self.act else []
        return " + ".join([*words, "residual"] if self.residual else words)


def _resnet50(
    batch: int, dtype: str, first: tuple[int, ...], *sizes: tuple[int, int, bool]
) -> list[Case]:
    return [
        Case("bn", (batch, c, side, side), dtype, "ResNet-50", residual, i in first)
        for i, (c, side, residual) in enumerate(sizes)
    ]  # fmt: skip


def _groups(
    network: str, dtype: str, *shapes: tuple[int, ...], first: tuple[int, ...]
) -> list[Case]:
    return [Case("gn", shape, dtype, network, first=i in first) for i, shape in enumerate(shapes)]


CASES: list[Case] = [
    *_resnet50(
        32, "float32", (1, 2),
        (64, 112, False), (64, 56, False), (256, 56, True), (128, 28, False), (512, 28, True),
        (256, 14, False), (1024, 14, True), (512, 7, False), (2048, 7, True),
    ),
    *_resnet50(128, "float32", (), (64, 112, False), (256, 56, True)),
    *_resnet50(128, "bfloat16", (0,), (64, 112, False), (256, 56, True)),
    *(
        Case("bn", (4, c, side, side), "float32", "U-Net", first=side == 512)
        for c, side in ((64, 512), (128, 256), (512, 64), (1024, 32))
    ),
    *_groups(
        "diffusion U-Net", "float16", (2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16),
        first=(0,),
    ),
    *_groups("diffusion U-Net", "bfloat16", (16, 320, 64, 64), (16, 640, 32, 32), first=(0,)),
    *_groups(
        "diffusion decoder", "float32", (1, 512, 64, 64), (1, 512, 128, 128), (1, 512, 256, 256),
        (1, 256, 512, 512), first=(1, 3),
    ),
    *_groups(
        "diffusion decoder", "bfloat16", (1, 512, 256, 256), (1, 256, 512, 512),
        (1, 128, 1024, 1024), first=(1,),
    ),
    *_groups("video decoder", "bfloat16", (1, 128, 20, 256, 256), first=()),
    Case("ln", (16384, 1024), "bfloat16", "transformer", first=True),
    Case("rms", (16384, 4096), "bfloat16", "transformer"),
]  # fmt: skip


class Inputs(NamedTuple):
    """Tensors of a case in one memory format."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    copy_target: Tensor


def inputs(case: Case, layout: str, device: torch.device) -> Inputs:
    """Return random tensors on the device."""
    memory_format = torch.contiguous_format
    if layout == "channels-last":
        memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}[len(case.shape)]

    def random() -> Tensor:
        t = torch.randn(case.shape, device=device, dtype=getattr(torch, case.dtype))
        return t.contiguous(memory_format=memory_format)

    residual = random().requires_grad_() if case.residual else None
    return Inputs(random().requires_grad_(), random(), residual, random())


def sides(case: Case, device: torch.device) -> dict[str, nn.Module]:
    """Return ``torch.nn``'s layers for a case, one after another, and ours, in training mode.

    The parameters of batch normalization are float32 whatever the input's type, as under autocast;
    those of the others have the input's type, as in a model converted to it.
    """
    channels = case.shape[-1] if len(case.shape) == 2 else case.shape[1]
    if case.norm == "bn":
        theirs: nn.Module = nn.BatchNorm2d(channels)
        ours: nn.Module = nk.BatchNorm2d(channels, act=case.act)
    elif case.norm == "gn":
        theirs = nn.GroupNorm(GROUPS, channels)
        ours = nk.GroupNorm(GROUPS, channels, act=case.act)
    else:
        name = {"ln": "LayerNorm", "rms": "RMSNorm"}[case.norm]
        theirs, ours = getattr(nn, name)(channels), getattr(nk, name)(channels)
    activation = {"relu": nn.ReLU(inplace=True), "silu": nn.SiLU(), None: None}[case.act]
    both = {"torch": SeparateModules(theirs, activation), "ours": ours}
    dtype = torch.float32 if case.norm == "bn" else getattr(torch, case.dtype)
    return {name: layer.to(device, dtype).train() for name, layer in both.items()}
