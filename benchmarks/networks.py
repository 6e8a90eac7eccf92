"""Networks written as torchvision writes them: layers called in ``forward``, hardly a Sequential.

ResNet (He et al. 2015, arXiv 1512.03385), DenseNet (Huang et al. 2016, arXiv 1608.06993),
MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) and VGG16 with batch normalization, of
``torch.nn`` alone. ``width`` scales the channels, 1 is the paper's; tests use a fraction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, before: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 3, stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, before: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: tuple[int, ...],
        width: float = 1,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        channels = int(64 * width)
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before, layers = channels, []
        for i, count in enumerate(counts):
            blocks = []
            for j in range(count):
                after, stride = (channels << i) * block.expansion, 2 if i and not j else 1
                shortcut = None
                if stride != 1 or before != after:
                    shortcut = nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))
                blocks.append(block(before, channels << i, stride, shortcut))
                before = after
            layers.append(nn.Sequential(*blocks))
        self.layers = nn.ModuleList(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for layer in self.layers:
            x = layer(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(before), nn.ReLU(inplace=True)
        self.conv1 = _conv(before, 4 * growth, 1)
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)
        self.conv2 = _conv(4 * growth, growth, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, count: int, before: int, growth: int) -> None:
        super().__init__()
        for i in range(count):
            self.add_module(f"denselayer{i + 1}", DenseLayer(before + i * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, counts: tuple[int, ...], width: float = 1, classes: int = 1000) -> None:
        super().__init__()
        channels, growth = int(64 * width), int(32 * width)
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        for i, count in enumerate(counts):
            self.features.append(DenseBlock(count, channels, growth))
            channels += count * growth
            if i + 1 < len(counts):
                self.features.append(
                    nn.Sequential(
                        nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                        _conv(channels, channels // 2, 1), nn.AvgPool2d(2),
                    )
                )  # fmt: skip
                channels //= 2
        self.features.append(nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))


class ConvBNReLU6(nn.Sequential):
    def __init__(self, before: int, after: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(
            _conv(before, after, kernel, stride, groups), nn.BatchNorm2d(after),
            nn.ReLU6(inplace=True),
        )  # fmt: skip


class InvertedResidual(nn.Module):
    def __init__(self, before: int, after: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = before * expand
        layers = [] if expand == 1 else [ConvBNReLU6(before, hidden, 1, 1)]
        layers.append(ConvBNReLU6(hidden, hidden, 3, stride, hidden))
        self.conv = nn.Sequential(*layers, _conv(hidden, after, 1), nn.BatchNorm2d(after))
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    # (expansion, channels, blocks, stride) of table 2.
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self, width: float = 1, classes: int = 1000, stages: int = 7) -> None:
        super().__init__()
        before = int(32 * width)
        layers: list[nn.Module] = [ConvBNReLU6(3, before, 3, 2)]
        for expand, channels, count, stride in self.STAGES[:stages]:
            after = int(channels * width)
            for i in range(count):
                layers.append(InvertedResidual(before, after, stride if i == 0 else 1, expand))
                before = after
        last = int(1280 * width)
        self.features = nn.Sequential(*layers, ConvBNReLU6(before, last, 1, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


class VGG(nn.Module):
    # Channels of configuration D (Simonyan & Zisserman 2014, arXiv 1409.1556), with pooling after
    # each row.
    ROWS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)

    def __init__(self, width: float = 1, classes: int = 1000) -> None:
        super().__init__()
        layers, before = [], 3
        for row in self.ROWS:
            for channels in row:
                after = int(channels * width)
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after),
                           nn.ReLU(inplace=True)]  # fmt: skip
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features, hidden = nn.Sequential(*layers), int(4096 * width)
        self.classifier = nn.Sequential(
            nn.Linear(before * 49, hidden), nn.ReLU(True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 7)
        return self.classifier(torch.flatten(x, 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    "densenet121": lambda: DenseNet((6, 12, 24, 16)),
    "mobilenet_v2": MobileNetV2,
    "vgg16_bn": VGG,
}
"""The published networks, by torchvision's names."""
