from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.lab import data, trainer
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.config import RunConfig
from normkit.lab.training import train

Make = Callable[..., RunConfig]
STEPS = 8  # of the tiny run: 2 epochs of 4


def stop_after(steps: int) -> Callable[[], bool]:
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return asked >= steps

    return stopping


def test_arms_of_a_pair_start_from_the_same_weights(make_config: Make) -> None:
    first = build_model(make_config(), in_channels=1, classes=10)
    second = build_model(make_config(norm="none"), in_channels=1, classes=10)
    mine, theirs = (
        [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        for model in (first, second)
    )
    assert len(mine) == len(theirs) == 5
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert torch.equal(a.bias, b.bias)


def test_other_seed_has_other_initial_weights(make_config: Make) -> None:
    first = build_model(make_config(seed=0), in_channels=1, classes=10)
    second = build_model(make_config(seed=1), in_channels=1, classes=10)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)  # type: ignore[arg-type, union-attr]


def test_arms_of_a_pair_see_the_same_batches(
    make_config: Make, dataset: data.Dataset, make_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[torch.Tensor]] = []
    original = data.batches

    def spy(*arguments: Any, **options: Any) -> Any:
        for images, labels in original(*arguments, **options):
            if options.get("shuffle", True):
                seen[-1].append(labels)
            yield images, labels

    monkeypatch.setattr(data, "batches", spy)
    for norm in ("torch-batch", "none"):
        seen.append([])
        train(make_config(norm=norm), dataset, make_log())
    assert len(seen[0]) == len(seen[1]) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert not torch.equal(seen[0][0], seen[0][4])  # another epoch, another order


def test_epoch_and_step_metrics(make_config: Make, dataset: data.Dataset, make_log: Any) -> None:
    log = make_log()
    outcome = train(make_config(), dataset, log)
    assert (outcome.step, outcome.diverged_step, outcome.stopped) == (STEPS, None, False)
    assert [step for name, step in log.metrics if name == "train_loss"] == list(range(1, 9))
    for name in ("epoch_train_loss", "test_accuracy", "test_loss"):
        assert [step for metric, step in log.metrics if metric == name] == [4, 8]
    losses = [log.metrics["train_loss", step] for step in range(5, 9)]
    # 256 images in four equal batches: the epoch's loss is the mean of its steps' losses.
    assert log.metrics["epoch_train_loss", 8] == pytest.approx(sum(losses) / 4)
    assert log.metrics["epoch_train_loss", 8] < log.metrics["epoch_train_loss", 4]


def test_evaluation_can_skip_epochs_and_change_nothing(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    often, rare = make_log(), make_log()
    for every, log in ((1, often), (2, rare)):
        train(make_config(epochs=5, evaluate_every=every), dataset, log)
    assert [step for name, step in rare.metrics if name == "test_accuracy"] == [8, 16, 20]
    assert [step for name, step in rare.metrics if name == "epoch_train_loss"] == [4, 8, 12, 16, 20]
    assert {at: often.metrics[at] for at in rare.metrics} == rare.metrics


def test_diverged_run_has_chance_where_it_would_be_evaluated(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    train(make_config(norm="none", lr=1e20, epochs=5, evaluate_every=2), dataset, log)
    accuracies = {step: v for (name, step), v in log.metrics.items() if name == "test_accuracy"}
    assert accuracies == {8: 0.1, 16: 0.1, 20: 0.1}


def test_training_accuracy_counts_each_batch_as_it_was_learned_from(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    config = make_config(epochs=1)
    log = make_log()
    train(config, dataset, log)
    # The same by hand: the right answers before each of four steps.
    split = dataset.train.take(256, seed=0)
    model = build_model(config, in_channels=1, classes=10).train()
    optimizer = build_optimizer(config, model)
    right = 0
    for images, labels in data.batches(split, 64, seed=0, size=28, channels_last=True):
        optimizer.zero_grad()
        scores = model(images)
        right += int((scores.argmax(1) == labels).sum())
        nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
    assert log.metrics["epoch_train_accuracy", 4] == right / 256


def test_checkpoints_of_an_older_version_are_read(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    whole, parts = make_log(), make_log()
    train(make_config(), dataset, whole)
    train(make_config(), dataset, parts, stopping=stop_after(2))
    saved = torch.load(io.BytesIO(parts.checkpoints[-1][1]), weights_only=True)
    for name in ("epoch_correct", "epoch_judged"):  # they came later
        del saved["progress"][name]
    old = io.BytesIO()
    torch.save(saved, old)
    train(make_config(), dataset, parts, resume=old.getvalue())
    # Of the epoch in which it stopped, nobody counted what was right in the first two steps.
    assert parts.metrics["epoch_train_accuracy", 4] is None
    parts.metrics["epoch_train_accuracy", 4] = whole.metrics["epoch_train_accuracy", 4]
    assert parts.metrics == whole.metrics


def test_recorded_loss_is_a_mean_over_steps(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    each, third = make_log(), make_log()
    train(make_config(), dataset, each)
    train(make_config(loss_every=3), dataset, third)
    kept = {step: value for (name, step), value in third.metrics.items() if name == "train_loss"}
    assert list(kept) == [3, 6, 8]
    expected = [each.metrics["train_loss", step] for step in (4, 5, 6)]
    assert kept[6] == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopped_run_resumes_bit_for_bit(
    make_config: Make, dataset: data.Dataset, make_log: Any, stop: int, optimizer: str
) -> None:
    alexnet = {"model": "alexnet", "model_options": (("hidden", 64), ("width", 16))}
    config = make_config(
        **alexnet if optimizer == "adam" and stop == 3 else {},  # it draws for its dropout
        optimizer=optimizer,
        lr=0.01,
        momentum=0.9 if optimizer == "sgd" else 0.0,
        loss_every=3,
    )
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    outcome = train(config, dataset, parts, stopping=stop_after(stop))
    assert outcome.stopped
    assert parts.checkpoints[-1][0] == outcome.step < STEPS
    torch.manual_seed(12345)  # whatever happened to the generator in between
    outcome = train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert outcome.step == STEPS
    assert parts.metrics == whole.metrics


def test_checkpoints_at_each_step_if_cheap(
    make_config: Make, dataset: data.Dataset, make_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 1e9)
    log = make_log()
    train(make_config(), dataset, log)
    assert [step for step, _ in log.checkpoints] == [1, 2, 3, 4, 5, 6, 7]


def test_expensive_checkpoints_are_rare(
    make_config: Make, dataset: data.Dataset, make_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", 1e-9)
    log = make_log()
    train(make_config(), dataset, log)
    assert [step for step, _ in log.checkpoints] == [1]


def test_exploding_run_is_a_result(make_config: Make, dataset: data.Dataset, make_log: Any) -> None:
    log = make_log()
    outcome = train(make_config(norm="none", lr=1e20, epochs=3), dataset, log)
    assert outcome.diverged_step is not None
    assert outcome.diverged_step <= 4
    assert not outcome.stopped
    accuracies = [log.metrics["test_accuracy", step] for step in (4, 8, 12)]
    assert accuracies == [0.1, 0.1, 0.1]  # that of guessing, as the docs say
    assert log.metrics["epoch_train_loss", 12] is None
    finite = [value for (name, _), value in log.metrics.items() if name == "train_loss"]
    assert all(math.isfinite(value) for value in finite)


def test_activations_beyond_all_statistics_are_a_result(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    outcome = train(make_config(norm="batch", lr=1e25), dataset, log)
    assert outcome.diverged_step == outcome.step < STEPS
    assert log.metrics["test_accuracy", STEPS] == 0.1


def test_run_at_chance_level_is_a_result(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    log = make_log()
    outcome = train(make_config(norm="none", act="sigmoid", lr=1e-6), dataset, log)
    assert outcome.diverged_step == 0
    assert outcome.step == STEPS
    assert 0 <= log.metrics["test_accuracy", STEPS] <= 0.3  # as measured
