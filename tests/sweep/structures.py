"""Structures around layers: shared, nested, branched, held; other inputs and outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Again",
    "Attention",
    "Branches",
    "Holds",
    "Keyword",
    "Levels",
    "Output",
    "Residual",
    "Returns",
    "ReturnsLoss",
    "Shortcut",
    "Siamese",
    "Swap",
    "Twice",
    "TwoInputs",
    "Unused",
    "Variadic",
]


class Residual(nn.Module):
    """Add a body's output to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Shortcut(nn.Module):
    """Hand a residual to a layer of ours."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, residual=x.roll(1, 0) / 2)


class Branches(nn.Module):
    """Concatenate the bodies' outputs along the channels; one is a pooling branch to 1×1."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [body(x) for body in self.bodies]
        return torch.cat([y.expand(-1, -1, *x.shape[2:]) for y in outputs], 1)


class Twice(nn.Module):
    """Call a body twice in a row."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x).sin() + x)


class Again(nn.Module):
    """Call a body a first time, and a second time for only some batches."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.body(2 * x) + y if len(x) % 2 == 0 else y


class Levels(nn.Module):
    """Share one body among levels of unlike scale, as a detector's head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(y) for y in (x, 4 * x + 6, x / 8 - 3)], 1)


class Siamese(nn.Module):
    """Compare a body's outputs on two views."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) - self.body(x.flip(0) + 1)


class Swap(nn.Module):
    """Swap the last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Attention(nn.Module):
    """A transformer's layer on (N, C, L)."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(channels, 1, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Unused(nn.Module):
    """Own a layer that is never called."""

    def __init__(self, body: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.body, self.spare = body, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Holds(nn.Module):
    """Keep the normalization of a body in evaluation mode whatever train() is told."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def train(self, mode: bool = True) -> Holds:
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TwoInputs(nn.Module):
    """Take two inputs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.body(x * scale.view(-1, *[1] * (x.dim() - 1)))


class Keyword(nn.Module):
    """Take an option by keyword, and labels that it ignores."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None, *, shift: float = 0.0) -> Tensor:
        return self.body(x + shift if shift else x)


class Variadic(nn.Module):
    """Take whatever keywords come."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **inputs: Any) -> Tensor:
        return self.body(inputs["x"])


@dataclasses.dataclass
class Output:
    """A model's output with a name."""

    logits: Tensor
    hidden: Any = None


class Returns(nn.Module):
    """Return a body's output in some container."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        if self.how == "tuple":
            return y, x
        if self.how == "dict":
            return {"logits": y, "hidden": None}
        return Output(y) if self.how == "dataclass" else [y]


class ReturnsLoss(nn.Module):
    """Return loss and scores, as transformers' models do with labels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.body(x)
        out = {} if labels is None else {"loss": F.cross_entropy(y.flatten(1).double(), labels)}
        return {**out, "logits": y}
