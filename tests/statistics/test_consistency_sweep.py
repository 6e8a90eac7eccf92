"""consistency against an independent float64 computation on all data at once.

Whatever the batches are: their order, their sizes (ones too), which labels count, and in what the
model wraps its output.
"""

from __future__ import annotations

import collections
import copy
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


def build(source: Any, kind: str) -> nn.Module:
    if kind == "dense":
        return nn.Sequential(nn.Linear(12, 6), source.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5),
                             source.BatchNorm1d(5))  # fmt: skip
    norm = {
        "batch": lambda: source.BatchNorm2d(4),
        "cumulative": lambda: source.BatchNorm2d(4, momentum=None),
        "instance": lambda: source.InstanceNorm2d(4, affine=True, track_running_stats=True),
    }[kind.removeprefix("twice ")]
    shared = norm()
    second = shared if kind.startswith("twice") else norm()
    return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 1), shared, nn.ReLU(),
                         nn.Conv2d(4, 4, 1), second, nn.Flatten(), nn.Linear(16, 5))  # fmt: skip


@pytest.mark.parametrize("source", [nn, nk])
@given(
    kind=st.sampled_from(["dense", "batch", "cumulative", "instance", "twice batch"]),
    sizes=partitions(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=20, deadline=None)
def test_equals_the_modes_themselves(source: Any, kind: str, sizes: list[int], seed: int) -> None:
    """Against the model in training and in evaluation mode, in float64, batch by batch."""
    torch.manual_seed(seed)
    model = build(source, kind).double()
    norms = [layer for layer in model.modules() if hasattr(layer, "running_mean")]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 4.0)
        norm.num_batches_tracked.fill_(3)
    batches = [
        (torch.randn(n, 12, dtype=torch.float64), torch.randint(5, (n,))) for n in sizes
    ]  # fmt: skip
    # Dense layers have one value per channel in batches of one.
    usable = [batch for batch in batches if kind != "dense" or len(batch[0]) > 1]
    if not usable:
        return
    state = copy.deepcopy(model.state_dict())
    result = nk.consistency(model, batches, samples=None, progress=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert result.samples == sum(len(x) for x, _ in usable)
    inputs: dict[str, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0])
        )
        for name, layer in model.named_modules()
        if layer in norms
    ]
    with torch.no_grad():
        a = torch.cat([model.train()(x) for x, _ in usable])
        for hook in hooks:
            hook.remove()
        model.load_state_dict(state)
        b = torch.cat([model.eval()(x) for x, _ in usable])
    y = torch.cat([labels for _, labels in usable])
    out = result.output
    assert out.loss == pytest.approx([F.cross_entropy(z, y).item() for z in (a, b)], rel=1e-6)
    assert out.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).double().mean().item())
    expected = (a - b).norm() / (a - a.mean(0)).norm()
    assert out.difference == pytest.approx(expected.item(), rel=1e-6)
    for name, layer in model.named_modules():
        if layer not in norms:
            continue
        if kind == "instance":
            x = torch.cat(inputs[name])
            mean, variance = x.mean((0, 2, 3)), x.var((2, 3)).mean(0)
        else:
            x = torch.cat([each.movedim(1, 0).flatten(1) for each in inputs[name]], 1)
            mean, variance = x.mean(1), x.var(1)
        scale = variance + layer.eps
        step = ((layer.running_mean - mean).square() / scale).mean().sqrt()
        ratio = ((layer.running_var + layer.eps) / scale).log().square().mean().sqrt().exp()
        assert result.layers[name].mean == pytest.approx(step.item(), rel=1e-5)
        assert result.layers[name].variance == pytest.approx(ratio.item(), rel=1e-5)
        assert (name in result.calls) == kind.startswith("twice")
