"""diagnose(): looks and changes nothing, ranks, measures what mending brings, mends, refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor import rules
from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding

Batches = list[tuple[Tensor, Tensor]]


def net(**options: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8, **options),  # type: ignore[arg-type]
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def batches(count: int = 8, size: int = 32, seed: int = 0) -> Batches:
    """Images of four classes that differ in brightness by quadrant."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        labels = torch.randint(4, (size,), generator=generator)
        images = torch.randn(size, 1, 10, 10, generator=generator)
        for i, label in enumerate(labels.tolist()):
            images[i, 0, 5 * (label // 2) :, 5 * (label % 2) :] += 3
        out.append((images, labels))
    return out


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def test_looking_changes_nothing(trained: nn.Sequential) -> None:
    model = copy.deepcopy(trained).train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    data = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches(), strict=True)))
    shuffled = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    nk.diagnose(model, shuffled, batches(seed=1))
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_stale_statistics_are_found_measured_and_mended(trained: nn.Sequential) -> None:
    model = copy.deepcopy(trained)
    model[1].running_mean.add_(8)
    model[1].running_var.mul_(0.05)
    test = batches(20, seed=1)
    result = nk.diagnose(model, batches(), test)
    first = result.findings[0]
    assert first.rule == "NK290"
    assert first.places == ("1",)
    assert first.gain is not None
    assert first.gain.low > 20
    assert result.gain == first.gain
    assert f"{first.gain.after:.1f} %" in repr(result).splitlines()[0]
    former = model[1].running_mean.clone()
    handle = first.mend()
    after = nk.diagnose(model, batches(), test)
    assert after.score == pytest.approx(first.gain.after)
    assert not after.of("NK290")
    handle.undo()
    assert torch.equal(model[1].running_mean, former)


def test_profile_and_tried_treatments_are_carried(trained: nn.Sequential) -> None:
    model = copy.deepcopy(trained)
    model[1].running_mean.add_(8)
    result = nk.diagnose(model, batches(), batches(20, seed=1))
    assert result.profile is not None
    worst = result.profile.worst
    assert worst is not None
    assert (worst.layer, list(result.profile.layers)) == ("1", ["1"])
    assert worst.running_mean == tuple(model[1].running_mean.double().tolist())
    x = torch.cat([trained[0](images) for images, _ in batches()]).detach().double()
    torch.testing.assert_close(torch.tensor(worst.mean).double(), x.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(worst.deviation).double(), x.std((0, 2, 3)))
    assert result.tried["recalibrate"] == result.gain
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["profile"]["layers"]["1"]


def test_momentum_kept_is_mended_with_its_statistics(trained: nn.Sequential) -> None:
    model = copy.deepcopy(trained)
    model[1].momentum = 0.9
    (found,) = nk.diagnose(model, batches()).of("NK104")
    handle = found.mend()
    assert model[1].momentum == pytest.approx(0.1)
    handle.undo()
    assert model[1].momentum == 0.9


def test_without_data_the_model_is_examined() -> None:
    result = nk.diagnose(net(momentum=0.9))
    assert [one.rule for one in result.findings if one.severity != "note"] == ["NK104"]
    assert result.score is None
    assert any("training batches" in note for note in result.notes)


def test_an_iterator_is_read_once_and_only_as_far_as_needed(trained: nn.Sequential) -> None:
    drawn = 0

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal drawn
        for batch in batches(50):
            drawn += 1
            yield batch

    nk.diagnose(trained, stream(), samples=100)
    assert drawn == 5


def test_bad_input_is_refused_as_by_recalibrate() -> None:
    model, data = net(), batches()
    for args in [(data, model), (model, data[0][0]), (model, {"train": data}), (model, 3)]:
        with pytest.raises(nk.TypeMismatchError):
            nk.diagnose(*args)  # type: ignore[arg-type]
    with pytest.raises(nk.OptionError):
        nk.diagnose(model, data, samples=0)
    with pytest.raises(nk.TypeMismatchError):
        nk.diagnose(model, data, optimizer=model)  # type: ignore[arg-type]
    with pytest.raises(nk.TypeMismatchError):
        nk.diagnose(model, data, forward=lambda model: model)  # type: ignore[arg-type, misc]


def test_input_that_is_not_finite_stops_nobody() -> None:
    data = batches()
    data[3][0][:] = float("nan")
    result = nk.diagnose(net(), data, batches(seed=1))
    assert result.score is not None


def test_a_rule_that_fails_is_a_finding_about_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(exam: Examination) -> Iterator[Finding]:
        raise ZeroDivisionError("of a rule")

    broken = rules.Rule("NK199", "Fails", "Fails.", check, ())
    monkeypatch.setattr(rules, "RULES", (broken, *rules.RULES))
    (found,) = nk.diagnose(net()).of("NK199")
    assert found.severity == "note"
    assert "ZeroDivisionError: of a rule" in found.says
    with pytest.raises(nk.OptionError, match="NK199"):
        found.mend()


class Named(nn.Module):
    """Takes and returns names, as models of Hugging Face do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.inner(pixels)
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(logits, labels)
        return out


def test_batches_and_outputs_by_name(trained: nn.Sequential) -> None:
    def named(pairs: Batches) -> list[dict[str, Tensor]]:
        return [{"pixels": x, "labels": y} for x, y in pairs]

    model = copy.deepcopy(trained)
    model[1].running_mean.add_(8)
    plain = nk.diagnose(model, batches(), batches(seed=1))
    result = nk.diagnose(Named(model), named(batches()), named(batches(seed=1)))
    assert result.gain == plain.gain
    assert [one.rule for one in result.findings] == [one.rule for one in plain.findings]
    assert result.of("NK290")[0].places == ("inner.1",)


def test_a_loss_of_ones_own_scores_a_regression(trained: nn.Sequential) -> None:
    model = copy.deepcopy(trained)
    model[1].running_var.mul_(0.05)
    data = [(x, model.train()(x).detach()) for x, _ in batches()]
    result = nk.diagnose(
        model, data, data, loss=lambda out, batch: nn.functional.mse_loss(out, batch[1])
    )
    assert result.gain is not None
    assert result.gain.unit == "loss"
    assert result.gain.helps
    without = nk.diagnose(model, data, data)
    assert without.score is None
    assert any("No score" in note for note in without.notes)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["parallel", "compiled"])
def test_wrappers_are_looked_into(trained: nn.Sequential, wrap: Any) -> None:
    model = copy.deepcopy(trained)
    model[1].momentum = 0.9
    (found,) = nk.diagnose(wrap(model), batches(4)).of("NK104")
    assert found.places == ("1",)


def test_gain_claims_no_certainty_where_nothing_changed(trained: nn.Sequential) -> None:
    gain = nk.diagnose(trained, batches(), batches(1, size=20, seed=1)).gain
    assert gain is not None
    assert gain.low < 0 < gain.high


def test_a_mend_that_costs_is_not_advised(trained: nn.Sequential) -> None:
    """Statistics of training data that is another domain than what the model has to do with."""
    model = copy.deepcopy(trained)
    other = [(30 + x, y) for x, y in batches()]
    result = nk.diagnose(model, other, batches(20, seed=1))
    (found,) = result.of("NK290")
    assert found.gain is not None
    assert found.gain.high < 0
    assert found.severity == "note"
    assert found.do.startswith("leave it")


def test_layers_trained_in_evaluation_mode_are_a_warning() -> None:
    """They fit statistics that never moved: right in evaluation, and not normalized in training."""
    model = net().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in batches(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(5 + 3 * images), labels).backward()
        optimizer.step()
    train, test = ([(5 + 3 * x, y) for x, y in batches(20, seed=s)] for s in (0, 1))
    (found,) = nk.diagnose(model, train, test).of("NK101")
    assert "the result is worse (−" in found.says
    assert not found.can_mend
    assert found.severity == "warning"
