"""Networks in the styles of the wild, of ``torch.nn`` alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize


def vgg() -> nn.Module:
    features: list[nn.Module] = []
    for before, after in ((3, 8), (8, 8), (8, 16)):
        conv = nn.Conv2d(before, after, 3, padding=1)
        features += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = (nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2))
    return nn.Sequential(nn.Sequential(*features), *head, nn.Linear(16, 5))


def short() -> nn.Module:
    """Few layers, for compiling: each costs a good part of a second."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.BatchNorm1d(16),
    )  # fmt: skip


class ConvNormAct(nn.Sequential):
    """A Sequential that only has a constructor, as torchvision has them."""

    def __init__(self, before: int, after: int, act: type[nn.Module], **options: int) -> None:
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False, **options)
        super().__init__(conv, nn.BatchNorm2d(after), act())
        self.width = after


class Inverted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormAct(width, width * 2, nn.ReLU6),
            ConvNormAct(width * 2, width * 2, nn.Hardswish, groups=width * 2),
            nn.Conv2d(width * 2, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobile() -> nn.Module:
    stem = ConvNormAct(3, 8, nn.SiLU, stride=2)
    return nn.Sequential(stem, Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)  # called twice
        self.shortcut = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def residual() -> nn.Module:
    return nn.Sequential(ConvNormAct(3, 8, nn.ReLU), Residual(8), Residual(8), nn.Flatten())


class Dense(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.values():
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


def dense() -> nn.Module:
    def layer(width: int) -> nn.Module:
        named = [("norm", nn.BatchNorm2d(width)), ("relu", nn.ReLU(inplace=True)),
                 ("conv", nn.Conv2d(width, 4, 3, padding=1))]  # fmt: skip
        return nn.Sequential(OrderedDict(named))

    return nn.Sequential(Dense({f"layer{i}": layer(3 + 4 * i) for i in range(3)}), nn.Flatten())


class UNet(nn.Module):
    """One ReLU for all, and normalizations in a list."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), relu)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), relu)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norms = nn.ModuleList([nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8)])
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        y = self.up(self.inner(F.max_pool2d(x, 2)))
        for norm in self.norms:
            y = self.relu(norm(y))
        return torch.cat([x, y], 1)


class Recurrent(nn.Module):
    """Weights tied between input and output; one LayerNorm used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 12)
        self.gru = nn.GRU(12, 12, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.between = nn.Sequential(self.norm, nn.GELU(), nn.Linear(12, 12), nn.RMSNorm(12))
        self.out = nn.Linear(12, 16)
        self.out.weight = nn.Parameter(self.embed.weight.detach().T.clone())
        self.embed.weight = nn.Parameter(self.out.weight.detach().T.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.gru(self.embed(x.flatten(2)))[0])
        return F.linear(self.between(y), self.embed.weight.T, self.out.bias)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(2), x.flatten(2).flip(1))


class Tapped(nn.Module):
    """Walks over a Sequential and keeps what a normalization gave, as contrastive losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, y = [self.model(x)], x
        for place, layer in enumerate(self.model):
            y = layer(y)
            if place in (1, 4, 5):
                kept.append(y)
        return torch.cat([*kept, self.model[:2](x), self.model[:-1](x)], 1)


class Twice(nn.Module):
    """One normalization in two Sequentials, with and without an activation behind."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(3)
        self.a = nn.Sequential(norm, nn.ReLU())
        self.b = nn.Sequential(norm, nn.Sigmoid())
        self.c = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), norm), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def parametrized() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    parametrize.register_parametrization(norm, "weight", Positive())
    conv = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(conv, nn.GroupNorm(1, 8), nn.ReLU(), norm, nn.ReLU())


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(),
        nn.Flatten(2), nn.LazyInstanceNorm1d(), nn.GELU(), nn.Flatten(), nn.LazyLinear(4),
        nn.LazyBatchNorm1d(),
    )  # fmt: skip


WILD: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg, "mobile": mobile, "residual": residual, "dense": dense, "unet": UNet,
    "recurrent": Recurrent, "transformer": Translator, "tapped": Tapped, "twice": Twice,
    "parametrized": parametrized,
}  # fmt: skip


def fitting(name: str) -> Tensor:
    """Images; for what takes sequences, three steps of sixteen numbers."""
    size = 4 if name in {"recurrent", "transformer"} else 16
    return torch.randn(4, 3, size, size, dtype=torch.float64)


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A network with statistics and affine parameters that are not those of the start."""
    # float64, so that what differs is a mistake and not rounding that the network amplifies.
    model, x = (short if name == "short" else WILD[name])().double(), fitting(name)
    model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, x
