"""C8: batch normalization regularises, but does not replace dropout late in training.

AlexNet, far too large for its images, with batch normalization, with dropout, with both and with
neither (:mod:`normkit.lab.claims.overfitting` has the runs, and what *late* and *gap* are).

Endpoints, fixed before any run of the claim's seeds. Both must hold for *supported*; each matters
from half a point (0.005):

* it regularises: the gap between training and test accuracy late in training, of neither less that
  of BN;
* it does not replace dropout: test accuracy late in training, of BN and dropout less that of BN
  alone. The gap is no measure here, since dropout can narrow it by learning less as well.

An arm that did not learn has no gap either, so the sentence tells what each arm learned.

For information: the second one early in training (the first quarter of the epochs), where the
claim expects less; what dropout takes off BN's gap and off its test loss, late.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Claim, Evidence, Judgement
from normkit.lab.claims.overfitting import (
    ARMS,
    ARTICLE,
    BOTH,
    NEITHER,
    ONLY_BN,
    SETUP,
    early,
    epochs_chart,
    gap,
    late,
    late_table,
    learned,
    plan,
    tested,
    tested_loss,
    trained,
)
from normkit.lab.claims.parts import differences, figures, seed_table
from normkit.lab.claims.parts import learned as learned_at_all
from normkit.lab.findings import Reference
from normkit.lab.verdicts import paired_test

REGULARISES = 0.005
HELPS = 0.005
LOSS = 0.05


def judge(evidence: Evidence) -> Judgement:
    """Compare the arms seed by seed."""
    without = evidence.pairs(NEITHER, ONLY_BN)
    adding = evidence.pairs(BOTH, ONLY_BN)
    regularises = paired_test(
        "Regularises (decides): how much narrower is the late gap with BN than with neither?",
        differences(without, late(gap)),
        unit="accuracy",
        smallest=REGULARISES,
    )
    helps = paired_test(
        "Does not replace dropout (decides): how much does dropout add to BN's late test accuracy?",
        differences(adding, late(tested)),
        unit="accuracy",
        smallest=HELPS,
    )
    before = paired_test(
        "For information: how much does it add early, in the first quarter of the epochs?",
        differences(adding, early(tested)),
        unit="accuracy",
        smallest=HELPS,
    )
    narrows = paired_test(
        "For information: how much does dropout narrow BN's late gap?",
        [-each for each in differences(adding, late(gap))],
        unit="accuracy",
        smallest=REGULARISES,
    )
    loss = paired_test(
        "For information: how much does dropout take off BN's late test loss?",
        [-each for each in differences(adding, late(tested_loss))],
        unit="cross-entropy, nats",
        smallest=LOSS,
    )
    trained_well = learned_at_all(evidence.of(ONLY_BN))
    charts = [
        epochs_chart(
            evidence,
            gap,
            key="gap",
            title="Gap between training and test accuracy after each epoch",
            y_label="training less test accuracy",
        ),
        epochs_chart(
            evidence,
            tested,
            key="test",
            title="Test accuracy after each epoch",
            y_label="test accuracy",
        ),
        epochs_chart(
            evidence,
            tested_loss,
            key="loss",
            title="Test loss after each epoch: where it rises, the network overfits",
            y_label="cross-entropy (nats), logarithmic",
            y_log=True,
        ),
    ]
    return Judgement(
        sentence=(
            f"Late in training the gap between training and test accuracy is narrower with BN than "
            f"with neither by {figures(regularises, scale=100)} points, and dropout adds "
            f"{figures(helps, scale=100)} points to BN's test accuracy (early in training "
            f"{figures(before, scale=100)}). Late training accuracy is: "
            f"{learned(evidence, tuple(ARMS))} ({evidence.coverage(len(adding))}, 95 % intervals)."
        ),
        decides=[regularises, helps] if trained_well else [None, None],
        information=[before, narrows, loss],
        charts=[chart for chart in charts if chart],
        tables=(
            late_table(evidence),
            seed_table(
                evidence,
                (
                    ("late training accuracy", late(trained)),
                    ("late test accuracy", late(tested)),
                    ("late gap", late(gap)),
                    ("late test loss", late(tested_loss)),
                ),
            ),
        ),
    )


CLAIM = Claim(
    key="C8",
    title="Batch normalization regularises, but does not replace dropout late in training",
    statement=(
        "Batch normalization narrows the gap between training and test. In a large network that "
        "trains for long it is not enough: late in training dropout still helps."
    ),
    sources=(
        Reference(
            "Notes on batch normalization (articles)",
            "BN acts as a regulariser; in a large network late in training it does not replace "
            "dropout; no figures of the four arms are given",
        ),
        ARTICLE,
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §3.4 and §4.2.1",
            "with BN, dropout can be removed or reduced in strength; without dropout, modified "
            "BN-Inception does not overfit more",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "Late in training the gap is some points narrower with BN than with neither, and test "
        "accuracy is higher with BN and dropout than with BN alone."
    ),
    decision=(
        "Both, as means over the last quarter of the epochs: the gap between training and test "
        "accuracy, of neither less of BN (matters from 0.005), and test accuracy, of BN and "
        "dropout less of BN (from 0.005); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=SETUP,
    demo=False,
    differs=(
        "Of the large network and the long training that the source speaks of, quick and full are "
        "a small stand-in: a thousand images or fewer, and a quarter of AlexNet's channels. Where "
        "all arms know their training images, the gap says the same as test accuracy; and BN "
        "alone may leave little for dropout to add."
    ),
)
