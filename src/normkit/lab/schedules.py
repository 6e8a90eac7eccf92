r"""Learning rate schedules, by name.

With T steps in all and t of them done, a step is made at the rate ``lr`` times

* *constant*: 1;
* *cosine*: :math:`(1 + \cos(\pi t / T)) / 2` (Loshchilov & Hutter 2017, arXiv 1608.03983, without
  restarts);
* *step*: 1, a tenth from half of the epochs on, a hundredth from three quarters on (He et al. 2016,
  arXiv 1512.03385, §4.2).
"""

from __future__ import annotations

import math

import torch

from normkit.lab.config import RunConfig

__all__ = ["rate", "set_rate"]


def rate(config: RunConfig, done: int) -> float:
    """Return the learning rate of the step after ``done`` steps.

    >>> run = RunConfig(model="lenet5", norm="batch", lr=0.4, train_images=128, test_images=2,
    ...                 batch_size=64, epochs=4, seed=0, schedule="step")
    >>> [round(rate(run, done), 4) for done in range(run.steps)]
    [0.4, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004]
    """
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * done / config.steps)) / 2
    if config.schedule == "step":
        epoch = done // config.steps_per_epoch
        return config.lr * 0.1 ** ((2 * epoch >= config.epochs) + (4 * epoch >= 3 * config.epochs))
    return config.lr


def set_rate(optimizer: torch.optim.Optimizer, config: RunConfig, done: int) -> None:
    """Set the optimizer's rate for its next step."""
    if config.schedule == "constant":
        return
    for group in optimizer.param_groups:
        group["lr"] = rate(config, done)
