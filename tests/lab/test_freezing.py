"""The last epochs with population statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normkit.lab import data, trainer
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.training import train

Make = Callable[..., RunConfig]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that trainings build, to be looked at after them."""
    built: list[nn.Module] = []

    def build(*arguments: Any, **options: Any) -> nn.Module:
        built.append(build_model(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(trainer, "build_model", build)
    return built


def buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


NORMS = [("torch-batch", ()), ("batch", ()), ("ghost", (("ghost_size", 16),))]


@pytest.mark.parametrize(("norm", "options"), NORMS)
def test_statistics_stay_while_weights_learn(
    make_config: Make,
    dataset: data.Dataset,
    make_log: Any,
    models: list[nn.Module],
    norm: str,
    options: Any,
) -> None:
    # Gently: a network that is held so early soon leaves what its statistics hold for.
    config = make_config(norm=norm, norm_options=options, lr=0.01, epochs=3, frozen_epochs=2)
    seen: list[list[torch.Tensor]] = []
    weights: list[torch.Tensor] = []

    def look() -> bool:  # asked after each step and each epoch
        seen.append(buffers(models[0]))
        weights.append(models[0].norm1.weight.detach().clone())  # type: ignore[union-attr, operator]
        return False

    log = make_log()
    train(config, dataset, log, stopping=look)
    first, phase = seen[:3], seen[5:]
    assert not torch.equal(first[0][0], first[1][0])  # they move with the batches, and then
    for later in phase:
        assert all(torch.equal(a, b) for a, b in zip(phase[0], later, strict=True))
    assert not torch.equal(weights[-1], weights[-2])  # γ learns
    # All layers hold estimates of the population, not what the first epoch remembered.
    assert not torch.equal(phase[0][0], first[-1][0])
    assert log.metrics["epoch_train_loss", 12] < log.metrics["epoch_train_loss", 4]


@pytest.mark.parametrize(
    ("stop", "norm"),
    [(3, "torch-batch"), (4, "batch"), (5, "torch-batch"), (6, "batch"), (9, "torch-batch")],
)
def test_stopped_run_resumes_bit_for_bit(
    make_config: Make, dataset: data.Dataset, make_log: Any, norm: str, stop: int
) -> None:
    config = make_config(norm=norm, lr=0.01, epochs=3, frozen_epochs=2)
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    asked = iter([False] * (stop - 1))
    outcome = train(config, dataset, parts, stopping=lambda: next(asked, True))
    assert outcome.stopped
    train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert parts.metrics == whole.metrics


def test_run_is_unchanged_before_frozen_phase(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    plain, frozen = make_log(), make_log()
    train(make_config(lr=0.01, epochs=3), dataset, plain)
    train(make_config(lr=0.01, epochs=3, frozen_epochs=1), dataset, frozen)
    before = {key for key in plain.metrics if key[1] <= 8}
    assert {key: frozen.metrics[key] for key in before} == {k: plain.metrics[k] for k in before}
    # In its first step the phase normalizes with other statistics, and so has another loss.
    assert frozen.metrics["train_loss", 9] != plain.metrics["train_loss", 9]
    # Training and evaluation agree from then on: the running statistics are the held ones.
    assert frozen.metrics["test_accuracy", 12] != plain.metrics["test_accuracy", 12]


def test_run_without_finite_statistics_has_diverged(
    make_config: Make, dataset: data.Dataset, make_log: Any, models: list[nn.Module]
) -> None:
    def spoil() -> bool:  # as a step does whose gradient is not finite, and whose loss was
        if ("test_accuracy", 4) in log.metrics:
            with torch.no_grad():
                models[0].conv1.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
        return False

    log = make_log()
    config = make_config(norm="batch", lr=0.01, epochs=3, frozen_epochs=2)
    outcome = train(config, dataset, log, stopping=spoil)
    assert outcome.diverged_step == 4
    assert [log.metrics["test_accuracy", step] for step in (8, 12)] == [0.1, 0.1]
    assert log.metrics["epoch_train_loss", 4] is not None
    assert log.metrics["epoch_train_loss", 12] is None
