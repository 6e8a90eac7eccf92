"""The switches where they are for: on real images, in trainings of a few seconds."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.lab.data.catalogue import SUBSET
from normkit.lab.data.loading import SUBSET_FOLDER
from normkit.lab.data.reading import read
from normkit.nn import DomainBatchNorm2d
from normkit.statistics import batch_statistics, recalibrate, use_domain
from normkit.surgery import convert, freeze

Data = tuple[Tensor, Tensor, Tensor, Tensor]
LOSS = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def data() -> Data:
    """Standardised images and labels: 5,000 to train with, 1,000 to test."""
    found = read(SUBSET, SUBSET_FOLDER, "the package")
    train, test = (
        (half.images.float() / 255 - SUBSET.mean[0]) / SUBSET.std[0]
        for half in (found.train, found.test)
    )
    return train, found.train.labels, test, found.test.labels


def network(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), norm(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), norm(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip


def steps(model: nn.Module, data: Data, number: int, rate: float = 0.05) -> list[float]:
    """Train; the loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    losses = []
    for _ in range(number):
        chosen = torch.randint(len(data[0]), (64,))
        optimizer.zero_grad()
        loss = LOSS(model(data[0][chosen]), data[1][chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model.eval()(x).argmax(1) == y).double().mean())


def test_population_statistics_late_in_training(data: Data) -> None:
    """Training and evaluation are the same function from then on, and learning goes on."""
    model = network(nn.BatchNorm2d)
    steps(model, data, 60)
    recalibrate(model, [data[0][:1000]], progress=False)
    freeze(model, affine=False)
    kept = copy.deepcopy(model.state_dict())
    losses = steps(model.train(), data, 150, 0.01)
    assert sum(losses[-30:]) < 0.95 * sum(losses[:30])
    for key, value in model.state_dict().items():
        still = "running" in key or "tracked" in key
        assert torch.equal(value, kept[key]) is still, key
    x = data[2][:100]
    assert torch.equal(model.train()(x), model.eval()(x))
    assert accuracy(model, *data[2:]) > 0.7


def test_batch_statistics_in_evaluation(data: Data) -> None:
    """Images that came fainter and brighter than any in training: each batch says by how much."""
    model = network(nk.BatchNorm2d)
    steps(model, data, 100)
    x, y = data[2][:500], data[3][:500]
    usual = accuracy(model, x, y)
    assert accuracy(model, 0.3 * x + 2, y) < usual - 0.3
    with batch_statistics(model):
        assert accuracy(model, 0.3 * x + 2, y) > usual - 0.05
    assert accuracy(model, x, y) == usual


def seen(image: Tensor, domain: int) -> Tensor:
    """The same clothes as another camera has them: inverted, faint and on a bright ground."""
    return image if domain == 0 else 2 - 0.3 * image


@pytest.mark.slow  # trains two networks
def test_domains_evaluate_with_their_own_statistics(data: Data) -> None:
    """Trained on batches of a domain each, a population of both together fits neither."""
    found = {}
    for name in ("shared", "by domain"):
        torch.manual_seed(0)
        own = name == "by domain"
        model = network((lambda c: DomainBatchNorm2d(c, 2)) if own else nn.BatchNorm2d)

        def run(net: nn.Module, batch: Any, own: bool = own) -> Any:
            with use_domain(net, batch[1]) if own else contextlib.nullcontext():
                return net(batch[0])

        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(120):
            chosen = torch.randint(len(data[0]), (64,))
            optimizer.zero_grad()
            for k in (0, 1):
                LOSS(run(model, (seen(data[0][chosen], k), k)), data[1][chosen]).backward()
            optimizer.step()
        batches = [(seen(x, k), k) for x in data[0][:2000].split(250) for k in (0, 1)]
        recalibrate(model, batches, samples=None, forward=run, progress=False)
        model.eval()
        with torch.no_grad():
            found[name] = [
                float((run(model, (seen(data[2], k), k)).argmax(1) == data[3]).double().mean())
                for k in (0, 1)
            ]
    assert sum(found["by domain"]) > sum(found["shared"]) + 0.1, found
    assert abs(found["by domain"][0] - found["by domain"][1]) < 0.1, found


@pytest.mark.parametrize("to", [("ghost", 16), "renorm"], ids=str)
def test_converted_model_continues_learning(data: Data, to: Any) -> None:
    model = network(nn.BatchNorm2d)
    before = steps(model, data, 60)
    convert(model, to)
    after = steps(model, data, 60)
    assert sum(after[:20]) < sum(before[:20]) / 2 and accuracy(model, *data[2:]) > 0.65
