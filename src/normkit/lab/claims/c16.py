"""C16: the normalization batch size sets training noise and the inconsistency of train and test.

The source reads three things off one sweep: with few images to a mean, training is noisy (its
error is high), and population statistics no longer fit what the network learned; with very many,
the noise that regularised is gone. The runs are those of :mod:`normkit.lab.claims.normsizes`.

Endpoints, fixed before any run of the claim's seeds. All must hold for *supported*:

* noisy: training error at a normalization batch size of 2 less that at 256; it matters from one
  point (0.01);
* inconsistent: test error with population statistics less that with batch statistics, at 2, less
  the same at 256; it matters from half a point (0.005);
* regularises less: test error with population statistics less training error, at 256, less the
  same at 16; it matters from half a point (0.005).
"""

from __future__ import annotations

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset
from normkit.lab.claims.normsizes import (
    BATCH,
    BN,
    POPULATION,
    SMALL,
    TRAIN,
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
from normkit.lab.findings import Reference
from normkit.lab.verdicts import paired_test

LARGE = 256
MIDDLE = 16
NOISY = 0.01
INCONSISTENT = 0.005
REGULARISES = 0.005
CURVES: tuple[Curve, ...] = ((BN, TRAIN), (BN, BATCH), (BN, POPULATION))


def plan(preset: Preset, available: Available) -> Arms:
    """BN at each normalization batch size."""
    return plan_sizes(preset, available, (BN,))


def gap(evidence: Evidence, first: str, second: str, size: int) -> dict[int, float]:
    """By seed: the error with one kind of statistics less that with another, at one size."""
    one, other = (by_seed(evidence, (BN, kind), size) for kind in (first, second))
    return less(one, other)


def less(first: dict[int, float], second: dict[int, float]) -> dict[int, float]:
    """First less second, for the seeds that have both."""
    return {seed: value - second[seed] for seed, value in first.items() if seed in second}


def judge(evidence: Evidence) -> Judgement:
    """Compare the ends of the sweep, seed by seed."""
    noise = less(*(by_seed(evidence, (BN, TRAIN), size) for size in (SMALL, LARGE)))
    noisy = paired_test(
        f"Noisy (decides): how much higher is training error at {SMALL} than at {LARGE}?",
        list(noise.values()),
        unit="error",
        smallest=NOISY,
    )
    inconsistent = paired_test(
        "Inconsistent (decides): how much more does test error rise from batch to population "
        f"statistics at {SMALL} than at {LARGE}?",
        list(
            less(
                gap(evidence, POPULATION, BATCH, SMALL), gap(evidence, POPULATION, BATCH, LARGE)
            ).values()
        ),
        unit="error",
        smallest=INCONSISTENT,
    )
    regularises = paired_test(
        "Regularises less (decides): how much wider is the gap from training to test error at "
        f"{LARGE} than at {MIDDLE}?",
        list(
            less(
                gap(evidence, POPULATION, TRAIN, LARGE), gap(evidence, POPULATION, TRAIN, MIDDLE)
            ).values()
        ),
        unit="error",
        smallest=REGULARISES,
    )
    worse = paired_test(
        f"For information: how much higher is test error at {LARGE} than at {MIDDLE}, with "
        "population statistics?",
        list(
            less(*(by_seed(evidence, (BN, POPULATION), size) for size in (LARGE, MIDDLE))).values()
        ),
        unit="error",
        smallest=REGULARISES,
    )
    drawn = chart(
        evidence, CURVES, key="sizes", title="Error after training by normalization batch size"
    )
    return Judgement(
        sentence=(
            f"Points of error, at a normalization batch size of {SMALL} against {LARGE}: training "
            f"{figures(noisy, scale=100)}; what population statistics cost against batch "
            f"statistics in the test {figures(inconsistent, scale=100)}. The gap between training "
            f"and test, at {LARGE} against {MIDDLE}: {figures(regularises, scale=100)}, of which "
            f"test error {figures(worse, scale=100)} "
            f"({evidence.coverage(len(noise))}, 95 % intervals)."
        ),
        decides=[noisy, inconsistent, regularises],
        information=[worse],
        charts=[drawn] if drawn else [],
        tables=(
            table(evidence, CURVES),
            seed_table(
                evidence,
                (
                    ("normalization batch size", size_of),
                    ("training error", lambda run: error(run, TRAIN)),
                    ("test, batch statistics", lambda run: error(run, BATCH)),
                    ("test, population statistics", lambda run: error(run, POPULATION)),
                ),
            ),
        ),
    )


CLAIM = Claim(
    key="C16",
    title="The normalization batch size sets noise and inconsistency",
    statement=(
        "How many images share a mean decides how noisy training is and how well population "
        "statistics fit it: few are noisy and inconsistent, very many regularise less."
    ),
    sources=(
        Reference(
            'Rethinking "Batch" in BatchNorm (article)',
            "the normalization batch size sets training noise and the inconsistency of train and "
            "test",
        ),
        WU,
    ),
    prediction=(
        "Training error falls with the normalization batch size. At 2 population statistics do "
        "worse than batch statistics in the test; at 256 the gap between training and test is "
        "wider than at 16."
    ),
    decision=(
        "All: training error at 2 less at 256 (matters from 0.01); test error with population less "
        "with batch statistics, at 2 less at 256 (from 0.005); test less training error, at 256 "
        "less at 16 (from 0.005); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=(("normalization", "ghost batches; their size is the normalization batch size"),),
    demo=False,
    differs=(
        "Training error is read while training, with its noise, so a wider gap may be a training "
        "error that fell and no test error that rose: which of the two it was is told with the "
        "result. "
        "The source has ResNet-50, 100 epochs and a task on which it overfits. A small network "
        "that is trained for a few epochs hardly overfits, and what noise regularises is then not "
        "to be seen. Small images matter as well: how noisy the mean of two images is depends on "
        "how many pixels each layer has."
    ),
)
