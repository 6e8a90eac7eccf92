"""consistency against an independent float64 computation on all data at once.

Whatever the batches are: their order, their sizes (ones too), which labels count, and in what the
model wraps its output.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import normkit as nk

SAMPLES = 24
SHAPES = {"plain": (5,), "line": (5, 3), "tokens": (3, 5), "map": (5, 2, 3)}


class Fields(NamedTuple):
    loss: Tensor | None
    logits: Tensor


@dataclasses.dataclass
class Record:
    loss: Tensor | None
    logits: Tensor


KINDS = {
    "tensor": lambda loss, logits: logits,
    "pair": lambda loss, logits: (loss, logits),
    "pair, loss last": lambda loss, logits: (logits, loss),
    "mapping": lambda loss, logits: {"loss": loss, "hidden": [2 * logits], "logits": logits},
    "ordered": lambda loss, logits: collections.OrderedDict(loss=loss, scores=logits),
    "dataclass": Record,
    "named tuple": Fields,
    "loss": lambda loss, logits: loss,
    "losses": lambda loss, logits: {"boxes": 0.25 * loss, "classes": 0.75 * loss},
}  # fmt: skip


def cross_entropy(logits: Tensor, labels: Tensor, shape: str) -> Tensor:
    return F.cross_entropy(logits.movedim(-1 if shape == "tokens" else 1, 1), labels)


class Known(nn.Module):
    """Two outputs that differ by mode and not by the batch that a sample is in."""

    def __init__(self, source: Any, kind: str, shape: str) -> None:
        super().__init__()
        self.bn = source.BatchNorm1d(3)
        self.bn.running_mean.fill_(1000.0)
        self.kind, self.shape = kind, shape

    def forward(self, x: Tensor, at: Tensor, labels: Tensor) -> Any:
        self.bn(x)
        logits = at[:, int(self.bn.running_mean.mean() > 500)]
        return KINDS[self.kind](cross_entropy(logits, labels, self.shape), logits)


@st.composite
def partitions(draw: Any) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < SAMPLES:
        sizes.append(draw(st.sampled_from([1, 2, 3, 7, SAMPLES])))
    sizes[-1] -= sum(sizes) - SAMPLES
    return sizes


@pytest.mark.parametrize("source", [nn, nk])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=st.sampled_from(sorted(SHAPES)),
    sizes=partitions(),
    order=st.sampled_from(["drawn", "by label", "by value"]),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    pairs=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None)
def test_equals_all_data_at_once(
    source: Any,
    kind: str,
    shape: str,
    sizes: list[int],
    order: str,
    ignored: float,
    pairs: bool,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    axis = -1 if shape == "tokens" else 1
    size = SHAPES[shape]
    offsets = 100 * torch.randn(5, generator=draw, dtype=torch.float64)
    offsets = offsets.view([5 if d == axis % (len(size) + 1) else 1 for d in range(len(size) + 1)])
    both = torch.randn(2, SAMPLES, *size, generator=draw, dtype=torch.float64)
    a = both[0] + offsets
    b = a + 0.5 * both[1]
    labels = torch.randint(5, [n for d, n in enumerate((SAMPLES, *size)) if d != axis % a.dim()],
                           generator=draw)  # fmt: skip
    labels[torch.rand(labels.shape, generator=draw) < ignored] = -100
    labels.view(-1)[0] = 2
    rows = {
        "drawn": torch.arange(SAMPLES),
        "by label": labels.view(SAMPLES, -1).sum(1).argsort(),
        "by value": a.view(SAMPLES, -1).mean(1).argsort(),
    }[order]
    x = torch.randn(SAMPLES, 3, 4, generator=draw)
    batches: list[Any] = [
        {"x": x[i], "at": torch.stack([a, b], 1)[i], "labels": labels[i]} for i in rows.split(sizes)
    ]
    forward = None
    if pairs:
        batches = [((one["x"], one["at"]), one["labels"]) for one in batches]
        forward = lambda model, batch: model(*batch[0], batch[1])  # noqa: E731
    result = nk.consistency(
        Known(source, kind, shape), batches, samples=None, forward=forward, progress=False
    )
    out = result.output
    assert result.samples == SAMPLES

    losses = [cross_entropy(z, labels, shape).item() for z in (a, b)]
    assert out.loss == pytest.approx(losses, rel=1e-9)
    assert out.loss_difference is not None
    assert out.loss_difference[0] == pytest.approx(losses[1] - losses[0], rel=1e-9, abs=1e-12)
    if kind in ("loss", "losses"):
        assert math.isnan(out.difference) and out.agreement is None
        assert any("no tensor" in note or "returned" in note for note in out.notes)
        return
    features = [d for d in range(a.dim()) if d != axis % a.dim()]
    deviation = (a - a.mean(features, keepdim=True)).square().sum().sqrt()
    assert out.difference == pytest.approx(((a - b).norm() / deviation).item(), rel=1e-9)
    counted = labels != -100
    same = (a.argmax(axis) == b.argmax(axis))[counted].double().mean().item()
    assert out.agreement == pytest.approx(same, rel=1e-12)
    assert out.notes == ()
