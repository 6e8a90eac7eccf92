"""Estimate what the runs of the claims cost on this machine, without running them.

    python benchmarks/lab_cost.py --preset full                    # all claims: minutes
    python benchmarks/lab_cost.py --preset full --claim C21        # one claim: seconds
    python benchmarks/lab_cost.py --preset full --claim C21 --arms # and where its time goes

Of each distinct configuration a few training steps and some evaluations are timed, as a worker of
the lab does them: the lab's own trainer, one thread. The times are extended to all steps, images
and seeds. Processor time is counted, so a loaded machine tells nearly the same as an idle one, up
to a third more where programs wait for each other's memory. Left out: checkpoints (at most a
twentieth), writing to the store, the estimate that freezing begins with, and that runs which
diverge end early. A run that several claims share counts for the first of them that is asked for;
"alone" is what a claim takes by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from normkit.allocator import keep_freed_memory
from normkit.lab import data, machine
from normkit.lab.claims.claim import PRESETS, Available
from normkit.lab.claims.registry import select
from normkit.lab.conditions import CONDITIONS, Condition
from normkit.lab.config import RunConfig
from normkit.lab.epochs import epoch_batches
from normkit.lab.timing import measure_step_time
from normkit.lab.trainer import SilentLog, Trainer

STEP_SECONDS = 0.4
"""Least time to measure steps for; at least three of them, after one to warm up."""
TEST_IMAGES = 500
EVALUATIONS = 2
IGNORED = ("seed", "lr", "momentum", "weight_decay", "schedule", "edition", "loss_every")
"""Fields of a run that do not change the time of a step."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Processor seconds of one run, by what they are spent on; of a timing all are ``steps``."""

    steps: float
    evaluations: float = 0.0
    start: float = 0.0

    @property
    def seconds(self) -> float:
        return self.steps + self.evaluations + self.start


def timed(do: Callable[[], Any]) -> float:
    """Return the processor seconds that it takes."""
    begin = time.process_time()
    do()
    return time.process_time() - begin


def smaller(config: RunConfig, share: float) -> RunConfig:
    """Return the same run, evaluated on a share of the images."""

    def condition(of: Condition) -> Condition:
        numbers = dict(zip(CONDITIONS[str(of[0])], of[1:], strict=True))
        for name in {"samples", "images"} & set(numbers):
            numbers[name] = max(2, math.ceil(int(numbers[name]) * share))
        if "samples" in numbers:  # in full batches
            batch = min(int(numbers["batch_size"]), int(numbers["samples"]))
            numbers |= {"batch_size": batch, "samples": int(numbers["samples"]) // batch * batch}
        return (of[0], *numbers.values())

    return dataclasses.replace(
        config,
        test_images=max(2, math.ceil(config.test_images * share)),
        evaluations=tuple(map(condition, config.evaluations)),
        final_evaluations=tuple(map(condition, config.final_evaluations)),
    )


def measured(config: RunConfig, dataset: data.Dataset) -> Cost:
    """Time steps and evaluations of a run, and extend them to the whole of it."""
    if config.kind == "timing":
        return Cost(timed(lambda: measure_step_time(config, dataset, SilentLog())))
    # So small a rate lets nothing diverge, and costs as much.
    calm = dataclasses.replace(config, lr=1e-6, frozen_epochs=0)
    trainers: list[Trainer] = []
    start = timed(
        lambda: trainers.append(
            Trainer(
                calm, dataset, SilentLog(), resume=None, stopping=bool, checkpoint_seconds=math.inf
            )
        )
    )
    trainer = trainers[0]
    batches = itertools.chain.from_iterable(
        epoch_batches(calm, trainer.dataset.train, epoch) for epoch in itertools.count()
    )

    def step() -> float:
        return timed(lambda: trainer.step(*next(batches)))

    step()
    # Every probe is due at the first step, and only then if others are left out.
    due = {n for _, every in config.probes for n in (1, *range(every, config.steps + 1, every))}
    trainer.progress.step = 0
    probed = step() if due else 0.0
    trainer.config = dataclasses.replace(calm, probes=())
    times: list[float] = []
    while len(times) < 3 or sum(times) < STEP_SECONDS:
        times.append(step())
    steps = statistics.median(times) * (config.steps - len(due)) + probed * len(due)

    share = min(1.0, TEST_IMAGES / config.test_images)
    trainer.config = smaller(calm, share)
    trainer.dataset = dataclasses.replace(
        trainer.dataset, test=trainer.dataset.test.take(trainer.config.test_images)
    )
    evaluations = 0.0
    last = config.epochs - 1
    before = [epoch for epoch in range(last) if config.is_evaluated(epoch)]
    for epoch, times_done in ((before[0] if before else 0, len(before)), (last, 1)):
        if times_done:
            trainer.epoch = epoch
            tries = []
            for _ in range(EVALUATIONS):
                step()  # an epoch has at least one
                tries.append(timed(trainer.evaluate))
            evaluations += min(tries) / share * times_done
    return Cost(steps, evaluations, start)


class Prices:
    """Costs of runs; those that differ in nothing that costs time are measured once."""

    def __init__(self, datasets: Mapping[str, data.Dataset]) -> None:
        self.datasets = datasets
        self.known: dict[RunConfig, Cost] = {}

    def of(self, config: RunConfig) -> Cost:
        same: dict[str, Any] = {
            "seed": 0,
            "lr": 1.0,
            "momentum": float(config.momentum > 0),
            "weight_decay": 0.0,
            "schedule": "constant",
            "loss_every": 5,
        }
        like = dataclasses.replace(config, **same)
        if like not in self.known:
            self.known[like] = measured(like, self.datasets[config.data])
        return self.known[like]


def described(config: RunConfig, among: Sequence[RunConfig]) -> str:
    """List the fields that set a configuration apart from the others of its claim."""
    names = [field.name for field in dataclasses.fields(RunConfig) if field.name not in IGNORED]
    varied = [name for name in names if len({repr(getattr(each, name)) for each in among}) > 1]
    return " ".join(f"{name}={getattr(config, name)}" for name in varied)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--claim", action="append", metavar="KEY", help="default: all; repeatable")
    parser.add_argument("--arms", action="store_true", help="list configurations, dearest first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    claims = select(options.claim or ["all"], preset=options.preset)
    names = dict.fromkeys(name for claim in claims for name in claim.data_sets(options.preset))
    prices = Prices({name: data.load(name, offline=True) for name in names})
    paid: set[str] = set()
    total = 0.0
    print(
        f"{'claim':<16}{'runs':>6}{'of its own':>12}{'core-min':>10}{'alone':>8}   steps/evaluation"
    )
    for claim in claims:
        arms = claim.plan(options.preset, Available.whole(claim.data))
        runs = {config.key: (arm, config) for arm, config in arms}
        costs = {key: prices.of(config) for key, (_, config) in runs.items()}
        mine = [key for key in runs if key not in paid]
        paid |= set(runs)
        alone = sum(cost.seconds for cost in costs.values()) / 60
        minutes = sum(costs[key].seconds for key in mine) / 60
        total += minutes
        steps = sum(cost.steps for cost in costs.values()) / 60
        print(
            f"{claim.key:<16}{len(runs):>6}{len(mine):>12}{minutes:>10.1f}{alone:>8.1f}   "
            f"{steps:.1f} + {sum(c.evaluations for c in costs.values()) / 60:.1f}",
            flush=True,
        )
        if options.arms:
            list_arms(list(runs.values()), costs)
    cores = machine.cores()
    print(f"total {total:.1f} core-minutes: {total / cores:.0f} min on {cores} cores, if idle")


def list_arms(runs: Sequence[tuple[str, RunConfig]], costs: Mapping[str, Cost]) -> None:
    """Print each configuration of a claim, its seeds together, dearest first."""
    configs = [config for _, config in runs]
    seeds: Counter[tuple[str, str]] = Counter()
    dear: dict[tuple[str, str], Cost] = {}
    for arm, config in runs:
        row = (arm, described(config, configs))
        seeds[row] += 1
        dear[row] = costs[config.key]
    for row in sorted(dear, key=lambda row: -seeds[row] * dear[row].seconds):
        arm, words = row
        cost = dear[row]
        print(
            f"  {seeds[row] * cost.seconds / 60:6.1f} min = {seeds[row]:>3} x "
            f"{cost.seconds:6.1f} s (steps {cost.steps:.1f}, evaluations {cost.evaluations:.1f})  "
            f"{arm}  {words}"
        )


if __name__ == "__main__":
    main()
