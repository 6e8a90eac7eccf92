"""consistency says where the modes part, by how much, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.errors import DataError, NormkitError, OptionError
from normkit.statistics import consistency
from tests.statistics.test_preserve import IMAGES, assert_same, snapshot, trained


def net(source: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), source.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5), source.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3),
    )  # fmt: skip


LABELS = torch.arange(60) % 3
BATCHES = list(zip(IMAGES.split(20), LABELS.split(20), strict=True))


@pytest.mark.parametrize("source", [nn, nk])
def test_outputs_match_both_modes(source: Any) -> None:
    """Against the modes themselves, the model in training mode but for its dropout."""
    model = net(source)
    model[5].running_mean.fill_(0.7)
    model[1].running_var.fill_(3.0)
    found = consistency(model, BATCHES, samples=None)
    with torch.no_grad():
        evaluated = [model.eval()(x) for x, _ in BATCHES]
        model.train()
        model[6].eval()
        trained = [model(x) for x, _ in BATCHES]
    a, b, y = torch.cat(trained), torch.cat(evaluated), LABELS
    out = found.output
    assert out.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).float().mean().item())
    assert 0 < out.agreement < 1
    spread = torch.cat([x - x.mean(0) for x in trained])
    assert out.difference == pytest.approx((a - b).norm().item() / spread.norm().item(), rel=1e-5)
    losses = F.cross_entropy(a, y).item(), F.cross_entropy(b, y).item()
    assert out.loss == pytest.approx(losses, rel=1e-5)
    steps = torch.stack(
        [
            F.cross_entropy(q, t) - F.cross_entropy(p, t)
            for p, q, (_, t) in zip(trained, evaluated, BATCHES, strict=True)
        ]
    )
    assert out.loss_difference is not None
    assert out.loss_difference[0] == pytest.approx(steps.mean().item(), abs=1e-6)
    assert out.loss_difference[1] == pytest.approx(steps.std().item() / 3**0.5, rel=1e-4)


@pytest.mark.parametrize("source", [nn, nk])
def test_first_mismatch_is_the_layers_own(source: Any) -> None:
    model = net(source)
    nk.recalibrate(model, BATCHES, samples=None)
    assert consistency(model, BATCHES, samples=None).first_mismatch is None
    with torch.no_grad():
        model[1].running_mean += model[1].running_var.sqrt() / 2
        model[1].running_var *= 4
    found = consistency(model, BATCHES, samples=None)
    assert found.first_mismatch == "1"
    assert found.layers["1"].mean == pytest.approx(0.5, abs=0.01)
    assert found.layers["1"].variance == pytest.approx(4, rel=0.01)
    # The layer behind is right for itself; evaluation shows it something else all the same.
    assert not found.layers["5"].matters
    assert found.inherited["5"].matters
    text = repr(found)
    assert "first mismatch at 1;" in text and "recalibrate" in text
    assert "% of predictions agree" in text


def test_chance_is_no_mismatch() -> None:
    """A few samples show a layer something else than it remembers, and it is said how unsure."""
    torch.manual_seed(5)
    layer = nk.BatchNorm1d(50)
    found = consistency(layer, [torch.randn(5, 50) for _ in range(10)])
    gap = found.layers[""]
    assert gap.mean > 0.1  # 1/√50 of a deviation by chance alone
    assert 0.5 < gap.mean_errors < 2
    assert found.first_mismatch is None
    text = repr(found)
    assert "no gap is more than chance with 50 samples" in text and "match" not in text


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", [1, 64])
def test_few_batches_claim_no_mismatch(source: Any, number: int, channels: int) -> None:
    """Nor do they hide one: chance is neither taken for zero nor for unknown."""
    torch.manual_seed(number)
    batches = [torch.randn(16, channels) for _ in range(number)]
    layer = source.BatchNorm1d(channels)
    assert consistency(layer, batches).first_mismatch is None
    layer.running_mean.fill_(2.0)
    assert consistency(layer, batches).first_mismatch == ""
    layer.running_mean.zero_()
    layer.running_var.fill_(16.0)
    assert consistency(layer, batches).first_mismatch == ""
    few = consistency(layer, [torch.randn(6, channels)])
    assert few.first_mismatch is None
    assert "6 samples: too few to tell a mismatch from chance" in repr(few)


def test_inherited_gap_of_later_layers() -> None:
    model = net(nk)
    found = consistency(model, BATCHES, samples=None)
    with torch.no_grad():
        x = model[:5].eval()(IMAGES)
    mean, variance = x.mean(0), x.var(0)
    gap = found.inherited["5"]
    assert gap.mean == pytest.approx((mean.square() / variance).mean().sqrt().item(), rel=1e-3)


def test_consistency_restores_model() -> None:
    for source in (nn, nk):
        model = trained(source)
        before = snapshot(model)
        found = consistency(model, IMAGES.split(20))
        assert_same(before, snapshot(model))
        assert "not finite" in repr(found)  # its NaN
        assert found.first_mismatch == "norm1"

        def broken() -> Any:
            yield IMAGES[:20]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            consistency(model, broken())
        assert_same(before, snapshot(model))


def test_ghost_batches_as_in_training() -> None:
    """Training's side is that of the parts, and nothing is updated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nk.GhostBatchNorm1d(6, ghost_size=5), nn.Linear(6, 3))
    batches = list(torch.randn(60, 4).split(20))
    nk.recalibrate(model, batches, progress=False)
    before = snapshot(model)
    result = consistency(model, batches, progress=False)
    assert_same(before, snapshot(model))
    with torch.no_grad():
        evaluated = torch.cat([model.eval()(x) for x in batches])
        trained = torch.cat([model.train()(x) for x in batches])
    expected = (trained - evaluated).norm() / (trained - trained.mean(0)).norm()
    assert result.output.difference == pytest.approx(expected.item(), rel=1e-5)
    assert result.first_mismatch is None


def test_measuring_is_no_forward_pass_of_training() -> None:
    """A layer's note of whether it has run, which tells recomputation from an ODE's adjoint."""
    model = nk.InstanceNorm1d(4, track_running_stats=True)
    before = sorted(vars(model))
    nk.recalibrate(model, [torch.randn(6, 4, 5)] * 2, progress=False)
    consistency(model, [torch.randn(6, 4, 5)] * 2, progress=False)
    assert sorted(vars(model)) == before


def test_what_training_does_beyond_the_batch_is_named() -> None:
    model = nn.Sequential(nk.BatchRenorm1d(4), nn.BatchNorm1d(4))
    result = consistency(model, list(torch.randn(60, 4).split(20)), progress=False)
    assert "0: training normalizes by a correction towards running statistics" in repr(result)


def test_frozen_layers_are_named() -> None:
    model = net(nk)
    nk.freeze(model[1])
    found = consistency(model, BATCHES)
    assert [row.name for row in found.skipped] == ["1"]
    assert list(found.layers) == ["5"]


def test_custom_loss() -> None:
    def loss(output: Any, batch: Any) -> Tensor:
        return F.mse_loss(output["scores"], batch["target"])

    def forward(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"scores": model(batch["image"])}

    batches = [{"image": x, "target": torch.zeros(len(x), 3)} for x, _ in BATCHES]
    found = consistency(net(nk), batches, forward=forward, loss=loss)
    assert found.output.loss is not None and found.output.loss[0] > 0
    assert "loss" in repr(found)


def test_outputs_without_labels_or_scores() -> None:
    model = nn.Sequential(nk.BatchNorm1d(3), nn.Linear(3, 1))
    out = consistency(model, [torch.randn(10, 3) + 5]).output
    assert out.agreement is None and out.loss is None
    assert out.difference > 0.5


class Silent(nn.Sequential):
    def forward(self, x: Tensor) -> None:
        super().forward(x)


@pytest.mark.parametrize(
    ("model", "batches", "options", "error", "says"),
    [
        (nk.BatchNorm2d(3), [], {}, DataError, "at least one batch"),
        (nk.BatchNorm2d(3), [IMAGES[:0]], {}, DataError, "at least one batch"),
        (nk.BatchNorm2d(3), [IMAGES], {"samples": -1}, OptionError, "samples=-1"),
        (Silent(nk.BatchNorm2d(3)), [IMAGES], {}, DataError, "returns a tensor"),
        (nn.ReLU(), [IMAGES], {}, NormkitError, "ReLU without one"),
    ],
)
def test_bad_input(
    model: nn.Module, batches: Any, options: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        consistency(model, batches, **options)
