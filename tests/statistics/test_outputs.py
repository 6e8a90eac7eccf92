"""Outputs and labels that consistency reads, and those that it names and leaves out."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.errors import DataError, StatisticsError, TypeMismatchError
from normkit.statistics import StatsSpec, stats_spec
from normkit.statistics.outputs.labels import fitting_axes, labels_of
from normkit.statistics.outputs.read import read_output

SOURCES = [nn, nk]
SCORES = torch.zeros(8, 3)
LOSS = torch.tensor(0.5)


class Named(NamedTuple):
    loss: Tensor | None
    scores: Tensor


@dataclasses.dataclass
class Record:
    scores: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("output", "values", "loss", "logits"),
    [
        (SCORES, True, None, False),
        (LOSS, False, 0.5, False),
        ((LOSS, SCORES), True, 0.5, False),
        ((SCORES, LOSS), True, 0.5, False),
        ((SCORES, LOSS, None), True, 0.5, False),
        ((None, LOSS, SCORES), True, 0.5, False),
        ((SCORES, SCORES, LOSS), True, None, False),
        ((SCORES, LOSS, SCORES), True, None, False),
        ((SCORES, None), True, None, False),
        ([SCORES, SCORES + 1], True, None, False),
        ([SCORES, (SCORES + 1, SCORES)], True, None, False),
        ((torch.zeros(8), SCORES), True, None, False),
        ({"loss": LOSS, "logits": SCORES}, True, 0.5, True),
        ({"loss": None, "logits": SCORES}, True, None, True),
        ({"loss": LOSS.view(1), "out": SCORES}, True, 0.5, False),
        ({"loss": 0.5, "out": SCORES}, True, 0.5, False),
        ({"out": {"deep": SCORES}}, True, None, False),
        ({"boxes": LOSS, "classes": LOSS / 2}, False, 0.75, False),
        ({"loss": LOSS, "of_which": LOSS / 2}, False, 0.5, False),
        (Named(LOSS, SCORES), True, 0.5, False),
        (Record(SCORES, LOSS), True, 0.5, False),
        (Record(SCORES), True, None, False),
        ([{"boxes": SCORES}, {"boxes": SCORES}], False, None, False),
        ([[SCORES], [SCORES]], False, None, False),
        (None, False, None, False),
        ("text", False, None, False),
        ({}, False, None, False),
        ((), False, None, False),
    ],
)
def test_read_output(output: Any, values: bool, loss: float | None, logits: bool) -> None:
    read = read_output(output)
    assert (read.values is not None and torch.equal(read.values, SCORES)) == values
    assert (read.loss, read.logits) == (loss, logits)


@pytest.mark.parametrize(
    ("values", "labels", "axes"),
    [
        ((8, 5), (8,), [1]),
        ((8, 5, 7), (8, 7), [1]),
        ((8, 7, 5), (8, 7), [-1]),
        ((8, 5, 5), (8, 5), [1, -1]),
        ((8, 5, 6, 7), (8, 6, 7), [1]),
        ((8, 6, 7, 5), (8, 6, 7), [-1]),
        ((8, 1), (8,), []),
        ((8, 5), (8, 1), []),
        ((8,), (8,), []),
    ],
)
def test_fitting_axes(values: tuple[int, ...], labels: tuple[int, ...], axes: list[int]) -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        classes = torch.zeros(labels, dtype=dtype)
        assert fitting_axes(torch.zeros(values), classes) == axes
    assert fitting_axes(torch.zeros(values), torch.zeros(labels)) == []
    ignored = torch.full(labels, -100)
    assert fitting_axes(torch.zeros(values), ignored) == axes
    ignored.view(-1)[0] = 9
    assert fitting_axes(torch.zeros(values), ignored) == []


def test_labels_of() -> None:
    labels = torch.arange(8)
    pairs = ((SCORES, labels), [SCORES, labels], ((SCORES, SCORES), labels))
    for batch in (*pairs, {"x": SCORES, "labels": labels}, {"label": labels}, {"target": labels}):
        assert labels_of(batch) is labels
    for batch in (SCORES, (SCORES,), (SCORES, labels, labels), (SCORES, {"a": labels}), {}):
        assert labels_of(batch) is None
    for others in (labels.tolist(), tuple(labels.tolist()), labels.numpy()):
        read = labels_of((SCORES, others))
        assert read is not None and torch.equal(read, labels)


def net(source: Any, out: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), source.BatchNorm1d(6), nn.Linear(6, out))
    model[1].running_var.fill_(4.0)
    return model


def data(*sizes: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 4) for n in sizes]


class Returns(nn.Module):
    """A model whose output is wrapped by a function of it and of the number of the call."""

    def __init__(self, model: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.model = model
        self.wrap = wrap
        self.call = -1

    def forward(self, x: Tensor) -> Any:
        self.call += 1
        return self.wrap(self.model(x), self.call // 2, self.call % 2)


@pytest.mark.parametrize("source", SOURCES)
def test_regression_has_no_agreement(source: Any) -> None:
    for out in (1, 3):
        batches = [(x, torch.randn(len(x), out)) for x in data(8, 8, 5)]
        result = nk.consistency(net(source, out), batches, progress=False)
        assert result.output.agreement is None and result.output.loss is None
        assert "predictions agree" not in repr(result)
        assert any("no predictions and no loss" in note for note in result.output.notes)
    # Counts, as integers, for one column.
    batches = [(x, torch.randint(2, (len(x),))) for x in data(8, 8, 5)]
    assert nk.consistency(net(source, 1), batches, progress=False).output.agreement is None
    # Called logits, as those of Hugging Face's regressions are.
    model = Returns(net(source), lambda y, *_: {"logits": y})
    batches = [(x, torch.randn(len(x), 3)) for x in data(8, 8, 5)]
    assert nk.consistency(model, batches, progress=False).output.agreement is None


@pytest.mark.parametrize("source", SOURCES)
def test_logits_without_labels_agree(source: Any) -> None:
    model = Returns(net(source), lambda y, *_: {"logits": y})
    out = nk.consistency(model, data(8, 8, 5), progress=False).output
    assert out.agreement is not None and out.loss is None


@pytest.mark.parametrize("source", SOURCES)
def test_loss_not_finite_is_named(source: Any) -> None:
    """Batches that cannot be used are left out of the loss, and their number is named."""
    wrap = lambda y, batch, mode: y * (math.nan if batch == 1 and mode else 1)  # noqa: E731
    batches = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in data(8, 6, 5)]
    result = nk.consistency(Returns(net(source), wrap), batches, progress=False)
    usable = nk.consistency(net(source), [batches[0], batches[2]], progress=False)
    assert result.output.loss == pytest.approx(usable.output.loss)
    text = repr(result)
    assert "loss not finite in 1 of 3 batches" in text
    assert "0 with batch statistics, 1 with running statistics" in text
    assert math.isnan(result.output.difference)
    assert "18 values are not finite with running statistics" in text
    assert "nan" not in text


@pytest.mark.parametrize("source", SOURCES)
def test_batches_without_values_are_named(source: Any) -> None:
    wraps = {
        "the model returned nothing": lambda y, batch, _: None if batch == 1 else y,
        "the outputs of the two modes": lambda y, batch, mode: y[:5] if batch == 1 and mode else y,
    }
    for why, wrap in wraps.items():
        for order in ((8, 6, 7), (6, 8, 7)):
            result = nk.consistency(Returns(net(source), wrap), data(*order), progress=False)
            assert f"values not compared in 1 of 3 batches: {why}" in repr(result)
            assert result.output.difference > 0
            assert result.samples == 21


@pytest.mark.parametrize("source", SOURCES)
def test_ignored_labels_weigh_nothing(source: Any) -> None:
    batches = [(x, torch.arange(len(x)) % 3) for x in data(8, 6, 5)]
    batches[0][1][:6] = -100
    batches[1][1][:] = -100
    result = nk.consistency(net(source), batches, progress=False)
    assert result.output.loss is not None and result.output.notes == ()
    for _, labels in batches:
        labels[:] = -100
    result = nk.consistency(net(source), batches, progress=False)
    assert result.output.loss is None and result.output.agreement is None
    assert result.output.notes == ("no predictions and no loss: no label counts",)


@pytest.mark.parametrize("source", SOURCES)
def test_labels_of_other_classes_are_named(source: Any) -> None:
    batches = [(x, torch.arange(len(x)) % 3) for x in data(8, 6, 5)]
    batches[1][1][0] = 255
    result = nk.consistency(net(source), batches, progress=False)
    assert result.output.loss is None and result.output.agreement is None
    assert "the labels of 1 of 3 batches are no classes of the output" in repr(result)


@pytest.mark.parametrize("source", SOURCES)
def test_users_loss_is_a_mean_over_samples(source: Any) -> None:
    batches = [(x, torch.randn(len(x), 3)) for x in data(8, 6, 5)]
    loss = lambda output, batch: F.mse_loss(output, batch[1])  # noqa: E731
    out = nk.consistency(net(source), batches, loss=loss, progress=False).output
    with torch.no_grad():
        model = net(source).eval()
        expected = F.mse_loss(torch.cat([model(x) for x, _ in batches]),
                              torch.cat([y for _, y in batches])).item()  # fmt: skip
    assert out.loss is not None and out.loss[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_users_loss_comes_first(source: Any) -> None:
    """Before the model's own and that of labels, also where it is not finite."""
    batches = [(x, torch.arange(len(x)) % 3) for x in data(8, 6, 5)]
    model = Returns(net(source), lambda y, *_: {"loss": y.mean(), "logits": y})
    for value in (7.0, torch.tensor([7.0]), 7):
        out = nk.consistency(model, batches, loss=lambda *_, v=value: v, progress=False).output
        assert out.loss == (7.0, 7.0)
    out = nk.consistency(model, batches, loss=lambda *_: math.nan, progress=False).output
    assert out.loss is None and "loss not finite in 3 of 3 batches" in out.notes[0]
    with pytest.raises(TypeMismatchError, match="to return one number"):
        nk.consistency(model, batches, loss=lambda output, _: output["logits"], progress=False)


def test_output_that_is_written_over() -> None:
    """A model that returns one buffer, whatever it holds by then."""
    model = net(nn)
    expected = nk.consistency(model, data(8, 8), progress=False).output
    held = torch.zeros(8, 3)
    out = nk.consistency(
        Returns(model, lambda y, *_: held.copy_(y)), data(8, 8), progress=False
    ).output
    assert out.difference == expected.difference > 0


def test_other_kinds_of_tensors() -> None:
    dense = nk.consistency(net(nn), data(8, 8), progress=False).output
    sparse = Returns(net(nn), lambda y, *_: y.to_sparse())
    assert nk.consistency(sparse, data(8, 8), progress=False).output == dense
    pairs = Returns(net(nn), lambda y, *_: torch.complex(y, y))
    out = nk.consistency(pairs, data(8, 8), progress=False).output
    assert out.difference == pytest.approx(dense.difference)
    nested = Returns(
        net(nn), lambda y, *_: torch.nested.nested_tensor(list(y), layout=torch.jagged)
    )
    out = nk.consistency(nested, data(8, 8), progress=False).output
    assert math.isnan(out.difference) and "not compared in 2 of 2 batches" in out.notes[0]


@pytest.mark.parametrize("source", SOURCES)
def test_masked_scores(source: Any) -> None:
    """Infinities that both modes share, such as those of a mask, tell nothing."""

    def wrap(y: Tensor, *_: int) -> Tensor:
        y = y.clone()
        y[:, 2] = -math.inf
        return y

    plain = lambda y, *_: y[:, :2]  # noqa: E731
    masked, two = (
        nk.consistency(Returns(net(source), w), data(8, 6, 5), progress=False).output
        for w in (wrap, plain)
    )
    assert masked.difference == pytest.approx(two.difference, rel=1e-12)
    assert masked.notes[0] == "values: 19 values are not finite in either mode"


@pytest.mark.parametrize("source", SOURCES)
def test_output_of_classes(source: Any) -> None:
    wrap = lambda y, *_: y.argmax(1)  # noqa: E731
    out = nk.consistency(Returns(net(source), wrap), data(8, 6, 5), progress=False).output
    scores = nk.consistency(
        Returns(net(source), lambda y, *_: {"logits": y}), data(8, 6, 5), progress=False
    ).output
    assert out.agreement == scores.agreement
    assert math.isnan(out.difference)
    assert out.notes[0].startswith("values: the model returned classes, which are compared as")


def test_constant_output() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)
            self.bn.running_mean.fill_(9.0)

        def forward(self, x: Tensor) -> Tensor:
            self.bn(x)
            return torch.ones(len(x), 2) * (1 + self.bn.running_mean.max())

    result = nk.consistency(Constant(), data(8, 8), progress=False)
    text = repr(result)
    assert math.isnan(result.output.difference) or result.output.difference > 1
    assert "nan" not in text and "inf" not in text


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_output_that_is_constant_but_for_rounding(source: Any, dtype: torch.dtype) -> None:
    class Sums(nn.Module):
        """Probabilities add up to one, and a mismatch shows in evaluation alone."""

        def __init__(self) -> None:
            super().__init__()
            self.bn = source.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(x)
            return y.softmax(1).sum(1, keepdim=True) * (3 + y.mean().round())

    batches = [5 + one.to(dtype) for one in data(64, 8)]
    result = nk.consistency(Sums().to(dtype), batches, progress=False)
    text = repr(result)
    assert math.isnan(result.output.difference)
    assert "the output with batch statistics is constant, but for rounding" in text
    assert "differ by" not in text


class Detector(nn.Module):
    """As torchvision's: boxes by image in evaluation, a mapping of losses in training."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), source.BatchNorm2d(4))

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        scores = [self.body(image[None]).mean((2, 3))[0] for image in images]
        if self.training:
            return {
                "loss_box": sum(
                    (s - t["box"]).square().mean() for s, t in zip(scores, targets, strict=True)
                )
                / len(images),
                "loss_class": scores[0].square().mean(),
            }
        return [{"boxes": s[s > 0]} for s in scores]


@pytest.mark.parametrize("source", SOURCES)
def test_detector(source: Any) -> None:
    """Boxes of two modes cannot be paired; losses of training mode can, and running ones hold."""
    torch.manual_seed(0)
    batches = [
        ([torch.randn(3, 6, 5 + k), torch.randn(3, 6, 7)], [{"box": torch.randn(4)}] * 2)
        for k in range(4)
    ]
    model = Detector(source)
    model.body[1].running_mean.fill_(3.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = nk.consistency(model, batches, progress=False)
    assert result.first_mismatch == "body.1" and result.samples == 8
    assert "values not compared in 4 of 4 batches: the model returned a list" in repr(result)
    result = nk.consistency(
        model, batches, forward=lambda m, batch: m.train()(*batch), progress=False
    )
    assert result.output.loss is not None
    # The measurement decides what the layers normalize with, whichever mode forward asks for.
    assert abs(result.output.loss[1] - result.output.loss[0]) > 1
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("source", SOURCES)
def test_batches_of_one(source: Any) -> None:
    """Training mode refuses one value per channel: left out and named, or refused."""
    result = nk.consistency(net(source), data(8, 1, 8, 1), progress=False)
    whole = nk.consistency(net(source), data(8, 1, 8, 1)[::2], progress=False)
    assert result.samples == 16 and result.layers == whole.layers
    assert "2 of 4 batches left out: 1 has one value per channel" in repr(result)
    with pytest.raises(StatisticsError, match="at least two values per channel"):
        nk.consistency(net(source), data(1, 1, 1), progress=False)
    # Maps have more.
    model = nn.Sequential(source.BatchNorm2d(3))
    images = [torch.randn(1, 3, 4, 4) for _ in range(4)]
    assert nk.consistency(model, images, progress=False).batch_size == 1


def test_batch_size_of_uneven_batches() -> None:
    result = nk.consistency(net(nn), data(16, 16, 16, 2), progress=False)
    assert (result.batch_size, result.batch_sizes) == (16, (2, 16))
    assert "in batches of 16 (2 to 16)" in repr(result)


class Wrapped:
    """An input that holds a tensor, as sparse ones do."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class Own(nn.Module):
    """A third party's layer that takes such inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, data: Wrapped) -> Tensor:
        return (data.features - self.running_mean) / self.running_var.sqrt()


class OwnThatSays(Own):
    """It says which values it normalizes."""


@stats_spec.register(Own)
def _(layer: Own) -> StatsSpec:
    return StatsSpec()


@stats_spec.register(OwnThatSays)
def _(layer: OwnThatSays) -> StatsSpec:
    return StatsSpec(values=lambda layer, data: data.features)


class Wraps(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.own, self.b = layer, nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.own(data=Wrapped(x)))


@pytest.mark.parametrize("tool", [nk.consistency, nk.recalibrate])
def test_inputs_that_are_no_tensors(tool: Any) -> None:
    """Named as what they are, and not as those of a layer that is never called."""
    result = tool(Wraps(Own()), data(8, 8), progress=False)
    assert set(result.layers) == {"b"}
    (row,) = result.skipped
    assert row.name == "own" and row.why.startswith("its input was a Wrapped and not a tensor")
    result = tool(Wraps(OwnThatSays()), data(8, 8), progress=False)
    assert set(result.layers) == {"own", "b"} and result.skipped == ()
    with pytest.raises(StatisticsError, match="its input was a Wrapped and not a tensor"):
        tool(Own(), [Wrapped(x) for x in data(8, 8)], progress=False,
             forward=lambda model, batch: model(batch))  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tool", [nk.consistency, nk.recalibrate])
def test_input_by_keyword(source: Any, tool: Any) -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = source.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    assert set(tool(Keyword(), data(8, 8), progress=False).layers) == {"norm"}


def test_nothing_to_compare() -> None:
    model = Returns(net(nn), lambda *_: "text")
    with pytest.raises(DataError, match="a model that returns a tensor"):
        nk.consistency(model, data(8, 8), progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_every_integer_type(dtype: torch.dtype) -> None:
    """In uint8, class 156 equals -100, and is a class nevertheless."""
    top = torch.iinfo(dtype).max if dtype.itemsize == 1 else 199
    model = net(nn, 200)

    class OwnLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            scores = self.model(x)
            return {"loss": F.cross_entropy(scores, labels.long()), "logits": scores}

    for classes in (150, 200):
        model[2] = nn.Linear(6, classes)
        results = []
        for kind in (dtype, torch.int64):
            batches = [(x, torch.full((len(x),), 3, dtype=kind)) for x in data(8, 6, 5)]
            batches[0][1][:] = min(top, 156)
            out = [nk.consistency(model, batches, progress=False).output]
            if classes == 200:
                mappings = [{"x": x, "labels": labels} for x, labels in batches]
                out.append(nk.consistency(OwnLoss(), mappings, progress=False).output)
            results.append(out)
        assert results[0] == results[1]
        fits = min(top, 156) < classes
        assert (results[0][0].loss is not None) == fits


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a"] * 8),
        np.array([{}] * 8),
        np.array(["2020-01-01"] * 8, dtype="datetime64[D]"),
        np.zeros(8, dtype=[("a", "i4")]),
        ["a"] * 8,
        [1, *["a"] * 7],
        [2**70] * 8,
        [[1], [1, 2]],
        np.random.default_rng(0),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    ],
    ids=str,
)
def test_labels_that_are_none(labels: Any) -> None:
    """Labels are optional: what no tensor holds counts as none."""
    assert labels_of((SCORES, labels)) is None
    (x,) = data(8)
    out = nk.consistency(net(nn), [(x, labels)], progress=False).output
    assert out == nk.consistency(net(nn), [x], progress=False).output


def test_labels_in_arrays() -> None:
    labels = np.arange(8)
    fixed = labels.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in (fixed, labels[::-1], labels.astype("u2"), labels.astype("u1")):
            read = labels_of((SCORES, array))
            assert read is not None and read.dtype == torch.int64
            assert read.tolist() == array.tolist()


@pytest.mark.parametrize("source", SOURCES)
def test_logits_of_as_many_tokens_as_classes(source: Any) -> None:
    """Both axes fit the labels; the classes of logits are last."""
    model = Returns(net(source, 12), lambda y, *_: {"logits": y.view(-1, 3, 4)[:, :, :3]})
    batches = [(x, torch.arange(3).expand(len(x), 3)) for x in data(8, 6, 5)]
    out = nk.consistency(model, batches, progress=False).output
    scores = torch.cat([net(source, 12).eval()(x) for x, _ in batches]).view(-1, 3, 4)[:, :, :3]
    labels = torch.cat([labels for _, labels in batches])
    expected = F.cross_entropy(scores.flatten(0, 1), labels.flatten()).item()
    assert out.loss is not None and out.loss[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_scale_is_no_loss(source: Any) -> None:
    """As models of images and texts return it, behind the features of both."""
    model = Returns(net(source), lambda y, *_: (y, y, torch.tensor(14.3)))
    assert nk.consistency(model, data(8, 8), progress=False).output.loss is None
