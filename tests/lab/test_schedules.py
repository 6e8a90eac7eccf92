"""Learning rates along training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.schedules import rate
from normkit.lab.training import train

Make = Callable[..., RunConfig]


def test_cosine_begins_at_the_rate_and_ends_near_zero(make_config: Make) -> None:
    config = make_config(schedule="cosine", epochs=4)  # 16 steps
    rates = [rate(config, done) for done in range(config.steps)]
    assert rates[0] == config.lr
    assert rates[8] == pytest.approx(config.lr / 2)
    assert 0 < rates[-1] < 0.01 * config.lr
    assert rates == sorted(rates, reverse=True)


def test_optimizer_is_given_the_rate_of_each_step(
    make_config: Make, dataset: data.Dataset, make_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    config = make_config(schedule="step", epochs=4)
    train(config, dataset, make_log())
    assert used == pytest.approx([0.1] * 8 + [0.01] * 4 + [0.001] * 4)


def test_stopped_run_resumes_at_its_rate(
    make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    config = make_config(schedule="cosine")
    whole, parts = make_log(), make_log()
    train(config, dataset, whole)
    asked = iter([False] * 5)
    train(config, dataset, parts, stopping=lambda: next(asked, True))
    train(config, dataset, parts, resume=parts.checkpoints[-1][1])
    assert parts.metrics == whole.metrics
