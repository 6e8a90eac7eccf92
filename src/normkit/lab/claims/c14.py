"""C14: batch normalization costs more than convolution, and too much on a CPU.

Measured, not trained: each run takes the time of one training step, forward and backward, spent
in normalization, in convolution and in the rest, with PyTorch's layers and with normkit's, in
turn on one batch. Its seed counts the repetitions. Endpoints, averaged over the three networks:

* more than convolution: the share of a step that PyTorch's batch normalization takes, less the
  share that convolution takes; the smallest difference that would matter is 0.01;
* too much on a CPU: the share of a step that goes away with normkit's layers, which do the same
  and apply the activation and the sum with the shortcut on the way; the smallest is 0.05. What can
  be saved was not necessary; what cannot be saved by these layers is not counted.

The endpoints were written after a first look at the benchmark's training steps of ResNet-18 and
DenseNet, where convolution took the larger part, and before normkit had kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.parts import figures
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import interval, paired_test

MORE = 0.01
TOO_MUCH = 0.05
SIDES = {"torch": "PyTorch's layers", "ours": "normkit's layers"}
KINDS = {"norm": "normalization", "convolution": "convolution", "rest": "the rest"}

# (model, side of the images, batch size by preset).
NETWORKS: tuple[tuple[str, int, dict[Preset, int]], ...] = (
    ("lenet5", 28, {"quick": 256, "full": 256, "paper": 256}),
    ("resnet18", 96, {"quick": 16, "full": 16, "paper": 128}),
    ("densenet", 96, {"quick": 16, "full": 16, "paper": 128}),
)
REPETITIONS: dict[Preset, int] = {"quick": 5, "full": 6, "paper": 20}


def plan(preset: Preset, available: Available) -> Arms:
    """LeNet-5, ResNet-18 and the small DenseNet; each repetition is a run."""
    return [
        (
            model,
            RunConfig(
                kind="timing",
                model=model,
                norm="batch",
                size=size,
                batch_size=batches[preset],
                lr=0.01,
                momentum=0.9,
                epochs=1,
                seed=repetition,
                **available.at_most(batches[preset], 1),
            ),
        )
        for repetition in range(REPETITIONS[preset])
        for model, size, batches in NETWORKS
    ]


def seconds(run: Run, side: str, kind: str) -> float:
    """What a kind of layer takes of a step, forward, backward and (the rest) update."""
    parts = ("forward", "backward", "update")
    return sum(run.last(f"{side}_{kind}_{part}") or 0.0 for part in parts)


def share(run: Run, side: str, kind: str) -> float:
    """The same as a share of the step."""
    return seconds(run, side, kind) / (run.last(f"{side}_step") or float("nan"))


def more(run: Run) -> float:
    """Share in normalization less share in convolution, with PyTorch's layers."""
    return share(run, "torch", "norm") - share(run, "torch", "convolution")


def saved(run: Run) -> float:
    """The share of PyTorch's step that goes away with normkit's layers."""
    return 1 - (run.last("ours_step") or 0.0) / (run.last("torch_step") or float("nan"))


def by_repetition(evidence: Evidence, value: Callable[[Run], float]) -> list[float]:
    """The mean over the networks, for each repetition that has them all."""
    found = []
    for repetition in evidence.seeds:
        runs = [run for arm in evidence.arms for run in evidence.of(arm, seed=repetition)]
        if len(runs) == len(evidence.arms):
            found.append(fmean(map(value, runs)))
    return found


def judge(evidence: Evidence) -> Judgement:
    """Look at both endpoints, repetition by repetition."""
    shares, savings = by_repetition(evidence, more), by_repetition(evidence, saved)
    against = paired_test(
        "More than convolution (decides): share of a step in batch normalization less that in "
        "convolution",
        shares,
        unit="share of a step",
        smallest=MORE,
    )
    spared = paired_test(
        "Too much on a CPU (decides): what share of a step goes away with normkit's layers?",
        savings,
        unit="share of a step",
        smallest=TOO_MUCH,
    )
    return Judgement(
        sentence=(
            f"With PyTorch's layers, the share of a training step in batch normalization less "
            f"that in convolution is {figures(against, scale=100, digits=1)} points; with "
            f"normkit's layers a step is shorter by {figures(spared, scale=100, digits=1)} % "
            f"({evidence.coverage(len(shares))}, 95 % intervals)."
        ),
        decides=[against, spared],
        charts=charts(evidence),
        tables=(times(evidence), parts(evidence)),
    )


def charts(evidence: Evidence) -> Sequence[Chart]:
    """For each network, where the time of a step goes, with both sides' layers."""
    made = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        if not runs:
            continue
        words = "; ".join(
            f"{word} {_ms(runs, 'torch', kind)} ms with PyTorch's layers and "
            f"{_ms(runs, 'ours', kind)} ms with normkit's"
            for kind, word in KINDS.items()
        )
        made.append(
            Chart(
                key=f"parts-{arm}",
                title=f"A training step of {arm}, by kind of layer",
                x_label="kind of layer",
                y_label="time in a step (ms)",
                lines=tuple(_side(runs, side) for side in SIDES),
                text=f"Time in a training step of {arm}: {words}. normkit's normalization includes "
                f"the activation. Mean of {len(runs)} repetitions; whiskers are 95 % intervals.",
                kind="dots",
                rows=tuple(KINDS.values()),
            )
        )
    return made


def _side(runs: Sequence[Run], side: str) -> Line:
    """The milliseconds of each kind of layer, over the repetitions."""
    spans = [
        interval([1e3 * seconds(run, side, kind) for run in runs])
        if len(runs) > 1
        else (1e3 * seconds(runs[0], side, kind), None, None)
        for kind in KINDS
    ]
    mean, low, high = (tuple(each) for each in zip(*spans, strict=True))
    return Line(SIDES[side], tuple(map(float, range(len(KINDS)))), mean, low, high, arm=SIDES[side])


def _ms(runs: Sequence[Run], side: str, kind: str) -> str:
    return f"{1e3 * fmean(seconds(run, side, kind) for run in runs):.1f}"


def times(evidence: Evidence) -> Table:
    """Mean milliseconds by network, layers, kind and direction."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        for side, layers in SIDES.items() if runs else ():
            for kind, word in KINDS.items():
                forward, backward = (
                    1e3 * fmean(run.last(f"{side}_{kind}_{way}") or 0.0 for run in runs)
                    for way in ("forward", "backward")
                )
                part = fmean(share(run, side, kind) for run in runs)
                rows.append((arm, layers, word, round(forward, 2), round(backward, 2),
                             round(100 * part, 1)))  # fmt: skip
    return Table(
        "times",
        "Where a training step goes (the rest includes loss and update; normkit's normalization "
        "includes the activation)",
        ("network", "layers", "part", "forward, ms", "backward, ms", "% of the step"),
        tuple(rows),
    )


def parts(evidence: Evidence) -> Table:
    """Run by run: the step of both sides, and the two endpoints."""
    rows = tuple(
        (
            run.config.model,
            run.config.seed + 1,
            round(1e3 * (run.last("torch_step") or 0.0), 2),
            round(1e3 * (run.last("ours_step") or 0.0), 2),
            round(more(run), 4),
            round(saved(run), 4),
        )
        for run in evidence.runs
    )
    return Table(
        "repetitions",
        "Repetition by repetition",
        ("network", "repetition", "PyTorch's step, ms", "normkit's step, ms",
         "BN less convolution", "share saved"),
        rows,
    )  # fmt: skip


CLAIM = Claim(
    key="C14",
    title="Batch normalization costs more than it looks",
    statement=(
        "Batch normalization does few operations and takes much time all the same: more than the "
        "convolutions, and on a CPU more than it has to."
    ),
    sources=(
        Reference(
            "Notes on batch normalization (article)",
            "says that it costs more than convolution, and too much on a CPU; no times are given",
        ),
        Reference(
            "Gitman & Ginsburg 2017, Comparison of Batch Normalization and Weight Normalization "
            "Algorithms for the Large-scale Image Classification",
            "batch normalization takes a significant part of the time of training, and is bound "
            "by the memory's bandwidth",
            "https://arxiv.org/abs/1709.08145",
        ),
    ),
    prediction=(
        "Convolution takes the larger share of a step; a good part of normalization's time can be "
        "saved."
    ),
    decision=(
        "Both, averaged over the networks: share of the step in PyTorch's batch normalization "
        "less that in convolution (matters from 0.01), and share of the step that normkit's layers "
        "save (matters from 0.05); 95 % t interval over repetitions."
    ),
    plan=plan,
    judge=judge,
    setup=(
        ("threads", "1, beside the lab's other workers"),
        ("memory", "what is freed is kept by the process"),
        ("clock", "hooks before and after each module and each node of the autograd graph"),
        ("a run", "median of 5 steps of each side, in turn, after 2 of each"),
        ("memory format", "contiguous"),
    ),
    differs=(
        "The source tells neither its CPU nor which kernels it timed. It is of the years of "
        "Caffe, whose BN and Scale layers went over their data several times; PyTorch's kernels "
        "do less of that, and their convolutions have become faster too. The shares depend on the "
        "processor, the memory and the number of threads, and on the networks: where convolutions "
        "are small, normalization takes a larger share."
    ),
)
