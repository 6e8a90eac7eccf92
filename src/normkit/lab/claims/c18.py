"""C18: with several domains, SGD, population and test statistics must agree on what they share.

Two domains of the same labels: the images, and their negatives. A network sees every image in
both. In SGD the two may share a mean and a variance, being normalized together, or have specific
ones; so may they in the population statistics that the test uses. γ and β may be shared or
specific too, which makes six ways; the source has all six, with the five levels of a detector's
feature pyramid as its domains. Three networks are trained, and each is tested with both kinds of
population statistics; GroupNorm and no normalization, which have no phases, are trained besides.

Endpoints, fixed before any run of the claim's seeds: test accuracy after the last epoch, mean of
both domains. All must hold for *supported*; each matters from one point (0.01):

* SGD shared: population statistics shared less specific;
* SGD specific, γ and β shared: specific less shared;
* all of SGD, γ and β specific: specific less shared.

Tried before, on seed 100, which is no seed of the claim: eight single runs, of LeNet-5 at 28
and 16 pixels and ResNet-18 of width 4, with negatives and with faded images (a third of the
contrast, lighter). Faded images made no difference: normalizing each domain by itself undoes such
a change in the first layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import band, figures, narrow_resnet, seed_table
from normkit.lab.claims.sweeps import mean_of, percent
from normkit.lab.conditions import Condition, named
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Comparison, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

TOGETHER = "SGD shared"
APART = "SGD specific"
ALL_APART = "SGD and affine specific"
GROUPNORM = "GroupNorm"
NONE = "without"
SHARED, SPECIFIC = "shared", "specific"
SMALLEST = 0.01
SAMPLES = 2_048
BATCH_SIZE = 128


class Way(NamedTuple):
    """One row of the published table: our arm, what its statistics are, and the source's AP."""

    arm: str
    sgd: str
    population: str
    affine: str
    published: float

    @property
    def agrees(self) -> bool:
        """Whether the population statistics are shared as SGD's are."""
        return self.population == self.sgd

    @property
    def name(self) -> str:
        """As charts call it: SGD / population / affine, or the arm where there are no phases."""
        if self.population == "none":
            return self.arm
        return f"{self.sgd} / {self.population} / {self.affine}"


WAYS = (
    Way(TOGETHER, SHARED, SHARED, SHARED, 39.1),
    Way(TOGETHER, SHARED, SPECIFIC, SHARED, 2.1),
    Way(APART, SPECIFIC, SHARED, SHARED, 34.1),
    Way(APART, SPECIFIC, SPECIFIC, SHARED, 39.1),
    Way(ALL_APART, SPECIFIC, SHARED, SPECIFIC, 35.5),
    Way(ALL_APART, SPECIFIC, SPECIFIC, SPECIFIC, 39.2),
    Way(GROUPNORM, "none", "none", SHARED, 39.5),
    Way(NONE, "none", "none", "none", 38.7),
)
ARMS = tuple(dict.fromkeys(way.arm for way in WAYS))
PHASED = ARMS[:3]

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=5_120, test=2_000, epochs=5),
    "full": Scale(seeds=5, train=5_120, test=2_000, epochs=5),
    "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=50),
}


def plan(preset: Preset, available: Available) -> Arms:
    """ResNet-18 of width 4 at 16 pixels, SGD at 0.05 with momentum, images and negatives."""
    scale = SCALES[preset]

    def make(seed: int, norm: str, **options: bool | int) -> RunConfig:
        phased = norm in ("batch", "domain")
        return RunConfig(
            **narrow_resnet(preset),
            norm=norm,
            norm_options=tuple(options.items()),
            domains="negatives",
            lr=0.05,
            momentum=0.9,
            batch_size=BATCH_SIZE,
            epochs=scale.epochs,
            seed=seed,
            evaluations=(_condition(SHARED), _condition(SPECIFIC)) if phased else (),
            **available.at_most(scale.train, scale.test),
        )

    return [
        arm
        for seed in range(scale.seeds)
        for arm in (
            (TOGETHER, make(seed, "batch")),
            (APART, make(seed, "domain", domains=2)),
            (ALL_APART, make(seed, "domain", domains=2, share_affine=False)),
            (GROUPNORM, make(seed, "group")),
            (NONE, make(seed, "none")),
        )
    ]


def _condition(population: str) -> Condition:
    return (f"domains-{population}", SAMPLES, BATCH_SIZE)


def metric(population: str) -> str:
    """The metric's name for these population statistics; for "none", that of every run."""
    plain = population == "none"
    return "test_accuracy" if plain else named("test_accuracy", _condition(population))


def accuracy(population: str) -> Callable[[Run], float | None]:
    """Test accuracy after the last epoch, mean of both domains, with these statistics."""
    return functools.partial(Run.last, name=metric(population))


def populations(arm: str) -> tuple[str, str]:
    """The population statistics that agree with the arm's SGD, and those that do not."""
    first, second = sorted((w for w in WAYS if w.arm == arm), key=lambda w: not w.agrees)
    return first.population, second.population


def agreeing(evidence: Evidence, arm: str) -> list[float]:
    """By seed: accuracy with the population statistics that agree less with those that do not."""
    good, bad = populations(arm)
    return [
        first - second
        for run in evidence.of(arm)
        for first, second in [(accuracy(good)(run), accuracy(bad)(run))]
        if first is not None and second is not None
    ]


def judge(evidence: Evidence) -> Judgement:
    """Compare both kinds of population statistics on each network, seed by seed."""
    found: dict[str, Comparison | None] = {}
    for arm in PHASED:
        good, bad = populations(arm)
        found[arm] = paired_test(
            f"{arm} (decides): how much higher is test accuracy with {good} population "
            f"statistics than with {bad}?",
            agreeing(evidence, arm),
            unit="accuracy, mean of both domains",
            smallest=SMALLEST,
        )
    costs = "; ".join(
        f"{arm}: {figures(comparison, scale=100, digits=1)}" for arm, comparison in found.items()
    )
    drawn = _chart(evidence)
    return Judgement(
        sentence=(
            f"Points of test accuracy lost where the population statistics do not agree with SGD: "
            f"{costs} ({evidence.coverage(len(agreeing(evidence, TOGETHER)))}, 95 % intervals)."
        ),
        decides=list(found.values()),
        charts=[drawn] if drawn else [],
        tables=(
            _table(evidence),
            seed_table(
                evidence,
                (
                    ("shared population statistics", accuracy(SHARED)),
                    ("specific population statistics", accuracy(SPECIFIC)),
                    ("remembered, or none", accuracy("none")),
                ),
            ),
        ),
    )


def _chart(evidence: Evidence) -> Chart | None:
    lines: list[Line] = []
    # Of two curves with one colour the first is solid: that whose phases agree.
    for way in sorted(WAYS, key=lambda way: (ARMS.index(way.arm), not way.agrees)):
        name = metric(way.population)
        runs = [run for run in evidence.of(way.arm) if name in run.metrics]
        epochs = range(max((len(run.metrics[name]) for run in runs), default=0))
        x = [epoch + 1 for epoch in epochs]
        line = band(way.name, way.arm, x, [run.by_epoch(name) for run in runs])
        if line is not None:
            lines.append(line)
    if not lines:
        return None
    ends = "; ".join(
        f"{line.label}: {line.y[-1]:.3f}" for line in lines if line.y and line.y[-1] is not None
    )
    return Chart(
        key="ways",
        title="Test accuracy by statistics: SGD / population / affine",
        x_label="epoch",
        y_label="test accuracy, mean of both domains",
        lines=tuple(lines),
        text=(
            "Test accuracy after each epoch, mean of the images and their negatives, for each way "
            f"of sharing statistics; broken lines are those whose phases do not agree. At the end: "
            f"{ends}. The band is the 95 % interval of the mean."
        ),
        markers=True,
    )


def _table(evidence: Evidence) -> Table:
    rows = []
    for way in WAYS:
        ours = percent(mean_of(evidence.of(way.arm), accuracy(way.population)))
        rows.append((way.arm, way.sgd, way.population, way.affine, ours, way.published))
    return Table(
        "ways",
        "Ours (accuracy, mean over seeds and both domains) and published (RetinaNet, five levels)",
        ("network", "SGD", "population and test", "affine", "ours: test accuracy, %",
         "published: AP"),
        tuple(rows),
    )  # fmt: skip


CLAIM = Claim(
    key="C18",
    title="Statistics of several domains must be shared alike in all phases",
    statement=(
        "A network that sees several domains works if their statistics are shared in SGD, in the "
        "population statistics and in the test, or specific in all three. Where the phases do not "
        "agree, accuracy is lost."
    ),
    sources=(
        Reference(
            'Rethinking "Batch" in BatchNorm (article)',
            "statistics of several domains have to be treated alike in SGD, population and test",
        ),
        Reference(
            'Wu & Johnson 2021, Rethinking "Batch" in BatchNorm, §5, RetinaNet with BN in a head '
            "shared by five feature levels, COCO",
            "AP by SGD/population/affine: shared/shared/shared 39.1; shared/specific/shared 2.1; "
            "specific/shared/shared 34.1; specific/specific/shared 39.1; specific/shared/specific "
            "35.5; all specific 39.2; GN 39.5; none 38.7",
            "https://arxiv.org/abs/2105.07576",
        ),
    ),
    prediction=(
        "Each network has its best accuracy with the population statistics that are shared as in "
        "SGD, and loses a point or more with the others."
    ),
    decision=(
        "All, test accuracy after the last epoch, mean of both domains: population statistics that "
        "agree with SGD less those that do not, for SGD shared, SGD specific, and SGD and affine "
        "specific (each matters from 0.01); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=(
        ("domains", "the images, and their negatives; every image is seen in both"),
        ("population statistics", f"of {SAMPLES:,} training images in each domain"),
    ),
    demo=False,
    differs=(
        "The source's domains are five levels of a feature pyramid, whose statistics differ by "
        "much. An image and its negative may become alike after the first layers, and then it "
        "matters less which statistics the later ones use. What the affine parameters of each "
        "domain make up for may be small as well."
    ),
)
