"""C4: batch normalization generalises better.

The source's two arms: AlexNet with dropout, as it was drawn, and AlexNet with batch normalization
in place of dropout. They are two of C8's four, the same runs
(:mod:`normkit.lab.claims.overfitting`), so many epochs on so few images that both arms come near a
training accuracy of 1.

Endpoints, late in training (the mean over the last quarter of the epochs), fixed before any run of
the claim's seeds. Both must hold for *supported*; each matters from one point (0.01):

* better: test accuracy, of BN less that of dropout;
* generalises: the gap between training and test accuracy, of dropout less that of BN, since a
  network that merely learned its training images better would score better as well.

For information: the same of training accuracy. It stands in the sentence too: where an arm stays
well below 1, the comparison is one of learning as well.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.overfitting import (
    ARTICLE,
    DROPOUT,
    ONLY_BN,
    SETUP,
    epochs_chart,
    gap,
    late,
    late_table,
    learned,
    tested,
    trained,
    trained_loss,
)
from normkit.lab.claims.overfitting import plan as plan_arms
from normkit.lab.claims.parts import differences, figures, seed_table
from normkit.lab.findings import Reference
from normkit.lab.verdicts import paired_test

BETTER = 0.01
GENERALISES = 0.01


def plan(preset: Preset, available: Available) -> Arms:
    """Dropout without BN, and BN without dropout."""
    return plan_arms(preset, available, (DROPOUT, ONLY_BN))


def judge(evidence: Evidence) -> Judgement:
    """Compare the two arms seed by seed."""
    pairs = evidence.pairs(ONLY_BN, DROPOUT)
    better = paired_test(
        "Better (decides): how much higher is late test accuracy with BN than with dropout?",
        differences(pairs, late(tested)),
        unit="accuracy",
        smallest=BETTER,
    )
    generalises = paired_test(
        "Generalises (decides): how much narrower is the late gap with BN than with dropout?",
        [-each for each in differences(pairs, late(gap))],
        unit="accuracy",
        smallest=GENERALISES,
    )
    learns = paired_test(
        "For information: how much higher is late training accuracy with BN?",
        differences(pairs, late(trained)),
        unit="accuracy",
        smallest=BETTER,
    )
    charts = [
        epochs_chart(
            evidence,
            tested,
            key="test",
            title="Test accuracy after each epoch",
            y_label="test accuracy",
        ),
        epochs_chart(
            evidence,
            trained,
            key="train",
            title="Training accuracy after each epoch, dropout off",
            y_label="training accuracy",
        ),
        epochs_chart(
            evidence,
            gap,
            key="gap",
            title="Gap between training and test accuracy after each epoch",
            y_label="training less test accuracy",
        ),
    ]
    return Judgement(
        sentence=(
            f"Late in training test accuracy is higher with BN than with dropout by "
            f"{figures(better, scale=100)} points, and the gap between training and test accuracy "
            f"narrower by {figures(generalises, scale=100)}; training accuracy is: "
            f"{learned(evidence, (ONLY_BN, DROPOUT))} "
            f"({evidence.coverage(len(pairs))}, 95 % intervals)."
        ),
        decides=[better, generalises],
        information=[learns],
        charts=[chart for chart in charts if chart],
        tables=(
            late_table(evidence),
            seed_table(
                evidence,
                (
                    ("late training accuracy", late(trained)),
                    ("late training loss", late(trained_loss)),
                    ("late test accuracy", late(tested)),
                    ("late gap", late(gap)),
                ),
            ),
        ),
    )


CLAIM = Claim(
    key="C4",
    title="Batch normalization generalises better",
    statement=(
        "Trained until both know their training images, AlexNet with batch normalization and no "
        "dropout scores higher on images it has not seen than plain AlexNet with dropout."
    ),
    sources=(
        ARTICLE,
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §3.4",
            "a training example is seen with the others of its batch, and the network no longer "
            "gives a fixed value for it, which is good for generalisation",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "Both arms come near a training accuracy of 1; with BN test accuracy is points higher and "
        "the gap as much narrower."
    ),
    decision=(
        "Both, as means over the last quarter of the epochs: test accuracy, of BN less of dropout "
        "(matters from 0.01), and the gap between training and test accuracy, of dropout less of "
        "BN (from 0.01); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    also=("cifar-100",),
    setup=SETUP,
    demo=False,
    differs=(
        "An arm that does not come near a training accuracy of 1, as the claim presupposes, has a "
        "narrow gap for that reason alone: see what each arm's was. "
        "The source trains on all of CIFAR-100. Quick and full have a thousand images or fewer of "
        "Fashion-MNIST (of CIFAR-100 five times as many), and an AlexNet with a quarter of its "
        "channels. How much dropout costs or gains depends on how long it is trained and with "
        "which optimizer, which the source does not tell."
    ),
)
