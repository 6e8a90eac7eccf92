"""Networks of the lab, trained by the book on real images: nothing above a note is said of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab import data, models

pytestmark = pytest.mark.slow

# Model, its options, side of the images, optimizer and rate of the claims that train it.
NETWORKS = {
    "lenet5": ({}, 28, "sgd", 0.1),
    "convnet4": ({}, 28, "sgd", 0.1),
    "alexnet": ({"width": 8, "hidden": 256}, 28, "adam", 1e-3),
    "cifar10-quick": ({}, 28, "sgd", 0.01),
    "resnet18": ({"width": 8}, 16, "sgd", 0.05),
    "densenet": ({"growth": 6, "stem": 12}, 16, "sgd", 0.1),
    "vit": ({}, 28, "adam", 1e-3),
}
NORMS = ("batch", "group", "layer", "instance", "none")
CASES = [
    (model, norm)
    for model in NETWORKS
    for norm in (NORMS if model == "lenet5" else ("layer", "none") if model == "vit" else NORMS[:2])
]


def prepared(split: data.Split, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = split.images[:count].float() / 255
    if side != 28:
        images = F.interpolate(images, side, mode="area")
    return (images - 0.286) / 0.353, split.labels[:count]


@pytest.mark.parametrize(("name", "norm"), CASES, ids=["-".join(case) for case in CASES])
def test_trained_by_the_book(name: str, norm: str) -> None:
    options, side, rule, rate = NETWORKS[name]
    images = data.load("fashion-mnist", offline=True)
    x, y = prepared(images.train, 2_560, side)
    torch.manual_seed(0)
    model = models.build(name, norm=norm, in_channels=1, classes=10, size=side, **options)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]
    more = {"momentum": 0.9} if rule == "sgd" else {}
    optimizer: torch.optim.Optimizer = kind(model.parameters(), lr=rate, **more)
    epochs, size = 2, 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(x) // size)
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), size, shuffle=True, drop_last=True,
        generator=generator,
    )  # fmt: skip
    for _ in range(epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), labels).backward()
            optimizer.step()
            schedule.step()
    test = prepared(images.test, 1_000, side)
    tested = list(zip(*(part.split(250) for part in test), strict=True))
    result = nk.diagnose(model, loader, tested, optimizer=optimizer)
    assert [one for one in result.findings if one.severity != "note"] == [], result
