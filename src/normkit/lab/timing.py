"""Measure the time of a training step, and of its layers, as a run.

The network is built twice from one seed, with PyTorch's layers as everybody writes them and with
normkit's fused ones (:mod:`normkit.lab.models.forms`), and both are trained in turn on one batch
of real images. Repetitions are separate runs with different seeds: a temporary slowdown of the
machine affects one of them, and both of its sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from normkit.bench.steps import SIDES, Step, measure_parts
from normkit.lab import data
from normkit.lab.building import build_optimizer
from normkit.lab.config import RunConfig
from normkit.lab.models.forms import form
from normkit.lab.trainer import Log, Outcome

__all__ = ["measure_step_time"]

WARM = 2
ROUNDS = 5


def measure_step_time(
    config: RunConfig,
    dataset: data.Dataset,
    log: Log,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Measure one repetition and write it to ``log``: seconds as ``{side}_{part}``.

    The sides are "torch" and "ours", the parts those of :func:`normkit.bench.breakdown.step_parts`;
    each is the median over ``ROUNDS`` steps, in turn.
    """
    begin = time.perf_counter()
    images, labels = next(
        iter(
            data.batches(
                dataset.train.take(config.train_images, seed=config.seed),
                config.batch_size,
                seed=config.seed,
                epoch=0,
                size=config.size,
            )
        )
    )
    both = {}
    for side in SIDES:
        torch.manual_seed(config.seed)
        model = form(
            config.model,
            side,
            in_channels=images.shape[1],
            classes=len(dataset.classes),
            size=config.size,
            **dict(config.model_options),
        )
        both[side] = Step(model.train(), images, labels, build_optimizer(config, model))
    for _ in range(WARM):
        for step in both.values():
            if stopping():
                return Outcome(0, time.perf_counter() - begin, stopped=True)
            step.run()
    times = measure_parts(both, rounds=ROUNDS)
    medians = {
        f"{side}_{part}": median(one[part] for one in rounds)
        for side, rounds in times.items()
        for part in rounds[0]
    }
    log.record(config.steps, 0, medians)
    return Outcome(config.steps, time.perf_counter() - begin)
