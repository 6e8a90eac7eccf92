"""C17: two cures for small normalization batches.

Trained with few images to a mean, a network does worse with population statistics. The source
has two cures: the statistics of the batch in the test too, in batches as small as the training's;
or population statistics in training already, for the last fifth of the epochs. The runs without
cure are those of C16, and the frozen ones are trained like them up to that fifth
(:mod:`normkit.lab.claims.normsizes`).

Endpoints, fixed before any run of the claim's seeds, at a normalization batch size of 2. Both must
hold for *supported*; each matters from half a point (0.005):

* batch statistics: test error with population statistics less that with batch statistics;
* frozen: test error with population statistics of the plain run less that of the frozen run.
"""

from __future__ import annotations

from normkit.lab.claims.c16 import LARGE, less
from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.normsizes import (
    BATCH,
    BN,
    FROZEN,
    POPULATION,
    SMALL,
    WU,
    Curve,
    by_seed,
    chart,
    error,
    size_of,
    table,
)
from normkit.lab.claims.normsizes import plan as plan_sizes
from normkit.lab.claims.parts import figures, seed_table
from normkit.lab.findings import Comparison, Reference
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

SMALLEST = 0.005
PLAIN: Curve = (BN, POPULATION)
CURES: dict[str, Curve] = {"batch statistics": (BN, BATCH), "frozen": (FROZEN, POPULATION)}


def plan(preset: Preset, available: Available) -> Arms:
    """BN at each normalization batch size, as it is and frozen for the last fifth."""
    return plan_sizes(preset, available, (BN, FROZEN))


def judge(evidence: Evidence) -> Judgement:
    """Compare each cure with population statistics, seed by seed."""

    def mended(cure: str, size: int, question: str) -> Comparison | None:
        differences = less(
            by_seed(evidence, PLAIN, size), by_seed(evidence, CURES[cure], size)
        ).values()
        return paired_test(question, list(differences), unit="error", smallest=SMALLEST)

    batch = mended(
        "batch statistics",
        SMALL,
        f"Batch statistics in the test (decides): how much lower is test error at {SMALL}?",
    )
    frozen = mended(
        "frozen",
        SMALL,
        f"Frozen for the last fifth (decides): how much lower is test error at {SMALL}?",
    )
    others = tuple(
        mended(cure, LARGE, f"For information, {cure}: how much lower is test error at {LARGE}?")
        for cure in CURES
    )
    curves = (PLAIN, *CURES.values())
    drawn = chart(
        evidence, curves, key="cures", title="Test error by normalization batch size, and two cures"
    )
    pairs = less(by_seed(evidence, PLAIN, SMALL), by_seed(evidence, CURES["frozen"], SMALL))
    return Judgement(
        sentence=(
            f"At a normalization batch size of {SMALL}, test error falls by "
            f"{figures(batch, scale=100)} points with batch statistics in the test and by "
            f"{figures(frozen, scale=100)} with population statistics in the last fifth of "
            f"training ({evidence.coverage(len(pairs))}, 95 % intervals)."
        ),
        decides=[batch, frozen],
        information=others,
        charts=[drawn] if drawn else [],
        tables=(
            table(evidence, curves),
            seed_table(
                evidence,
                (
                    ("normalization batch size", size_of),
                    ("test, population statistics", lambda run: error(run, POPULATION)),
                    ("test, batch statistics", _with_batch),
                ),
            ),
        ),
    )


def _with_batch(run: Run) -> float | None:
    return None if run.config.frozen_epochs else error(run, BATCH)


CLAIM = Claim(
    key="C17",
    title="Two cures for small normalization batches",
    statement=(
        "Where few images share a mean in training, the test gets better with the statistics of "
        "its own batches, and so it does where the last part of training uses population "
        "statistics."
    ),
    sources=(
        Reference(
            'Rethinking "Batch" in BatchNorm (article)',
            "batch statistics in the test, or population statistics in training, take the "
            "inconsistency away",
        ),
        WU,
    ),
    prediction=(
        "At 2 images both cures lower the test error by half a point or more; at 256 they change "
        "little."
    ),
    decision=(
        "Both, at a normalization batch size of 2: test error with population statistics less that "
        "with batch statistics, and less that of the runs frozen for the last fifth of the epochs "
        "(each matters from 0.005); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=(
        ("normalization", "ghost batches; their size is the normalization batch size"),
        ("frozen", "statistics held for the last fifth of the epochs, γ and β learning"),
    ),
    demo=False,
    differs=(
        "Both cures mend an inconsistency, and can give back no more than it costs. In ResNet-50, "
        "with many more normalization layers one after the other, it adds up to several points; "
        "in a small network trained for a few epochs it may be less than the half point that "
        "would matter. The last fifth of so few epochs is short for a network to get used to "
        "fixed statistics."
    ),
)
