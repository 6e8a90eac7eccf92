"""C5: batch normalization makes sigmoid networks trainable.

The source's set-up: LeNet-5 with sigmoid, SGD at learning rate 1.0, batch size 256, five epochs.
Endpoint, fixed before any run: test accuracy after the last epoch, as measured also where a run
never left chance; the smallest difference that would matter is one point (0.01).
"""

from __future__ import annotations

from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import (
    WITH,
    WITHOUT,
    differences,
    figures,
    final_loss,
    metric_chart,
    on_and_off,
    seed_table,
)
from normkit.lab.config import RunConfig
from normkit.lab.findings import Reference
from normkit.lab.runs import Run
from normkit.lab.verdicts import compare

SMALLEST = 0.01


SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=20_000, test=10_000, epochs=5),
    "full": Scale(seeds=5, train=30_000, test=10_000, epochs=5),
    "paper": Scale(seeds=20, train=60_000, test=10_000, epochs=5),
}


def plan(preset: Preset, available: Available) -> Arms:
    """LeNet-5 with sigmoid, SGD at 1.0, batch size 256, five epochs, with and without."""
    scale = SCALES[preset]

    def make(norm: str, seed: int) -> RunConfig:
        return RunConfig(
            model="lenet5",
            norm=norm,
            act="sigmoid",
            lr=1.0,
            batch_size=256,
            epochs=scale.epochs,
            seed=seed,
            **available.at_most(scale.train, scale.test),
        )

    return on_and_off(make, scale.seeds)


def last_accuracy(run: Run) -> float | None:
    """Test accuracy after the last epoch."""
    return run.last("test_accuracy")


def judge(evidence: Evidence) -> Judgement:
    """Compare the two arms seed by seed."""
    pairs = evidence.pairs(WITH, WITHOUT)
    accuracy = compare(
        "Decides: how much higher is test accuracy after the last epoch?",
        differences(pairs, last_accuracy),
        unit="accuracy",
        smallest=SMALLEST,
    )
    charts = [
        metric_chart(
            evidence,
            "test_accuracy",
            key="accuracy",
            title="Test accuracy after each epoch, sigmoid, learning rate 1.0",
            y_label="test accuracy",
        ),
        metric_chart(
            evidence,
            "train_loss",
            key="loss",
            title="Training loss, sigmoid, learning rate 1.0",
            y_label="cross-entropy (nats)",
            by="step",
        ),
    ]
    means = []
    for arm in evidence.arms:
        values = [value for run in evidence.of(arm) for value in [last_accuracy(run)] if value]
        if values:
            stuck = sum(run.status == "diverged" for run in evidence.of(arm))
            means.append(
                f"{arm} {fmean(values):.3f} ({stuck} of {len(values)} runs no better than guessing)"
            )
    return Judgement(
        sentence=(
            f"Test accuracy after the last epoch: {', '.join(means) or 'not yet measured'}; "
            f"difference {figures(accuracy, scale=100)} points "
            f"({evidence.coverage(len(pairs))}, 95 % interval)."
        ),
        decides=[accuracy],
        charts=[chart for chart in charts if chart],
        tables=(
            seed_table(
                evidence,
                (("last test accuracy", last_accuracy), ("last training loss", final_loss)),
            ),
        ),
    )


CLAIM = Claim(
    key="C5",
    title="Batch normalization makes sigmoid networks trainable",
    statement=(
        "A network with sigmoid activations hardly learns, because a sigmoid far from zero passes "
        "almost no gradient. Batch normalization keeps its inputs near zero, and the network "
        "learns."
    ),
    sources=(
        Reference(
            "An implementation of batch normalization in PyTorch (article), LeNet-5 with sigmoid",
            "learning rate 1.0, batch size 256, 5 epochs; no accuracies are given",
        ),
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §4.2.2",
            "Inception with sigmoid and BN reaches 69.8 %; without BN it never does better than "
            "guessing (0.1 %)",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction="With BN test accuracy rises from the first epoch on; without, it stays near 10 %.",
    decision=(
        "Test accuracy after the last epoch (matters from 0.01); 95 % t interval of the paired "
        "differences. A run that never left chance counts with the accuracy it has."
    ),
    plan=plan,
    judge=judge,
    differs=(
        "Whether a plain network with sigmoid gets away from guessing depends on its first "
        "weights and on the number of steps: it may stay there for most of training and then "
        "learn within an epoch. The source gives no accuracies, and its larger case, Inception, "
        "is far deeper than LeNet-5."
    ),
)
