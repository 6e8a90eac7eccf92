"""C24: noisy test scores are the moving average's fault, and recalibration fixes them.

The book's LeNet and recipe. Each network is evaluated after each epoch with the moving average, as
any framework does, and, with the same weights, with population statistics. The book's pixels go
from 0 to 1 and ours are standardized, which normalization after the first convolution undoes.

The full preset also trains, for information, the book's LeNet without BN at the book's rate for it,
and a DenseNet that is smaller than the book's.

Pilot runs (seeds 100 to 102, not used for the verdict) gave the cost of a run. The points averaged
over all epochs were added after the first six runs had been seen.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Arms, Available, Preset
from normkit.lab.claims.measures import builds
from normkit.lab.claims.measures.builds import DENSENET, LENET, PLAIN, PUBLISHED, RECALIBRATED
from normkit.lab.claims.measures.spread import halved, one_image
from normkit.lab.claims.sources import D2L, RESNET_NOTES, WU_JOHNSON, figures
from normkit.lab.claims.study import (
    TEST,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    define,
    mean_of_epochs,
    population,
)

BOOK = {
    "model": "lenet5",
    "act": "sigmoid",
    "model_options": (("padding", 0), ("pool", "avg"), ("init", "xavier")),
    "batch_size": 256,
}
SMALL = {"model_options": (("growth", 8), ("stem", 16))}
EVALUATED = {"norm": "batch", "batch_size": 256, "evaluations": population(10_000, 256)}


def _scales(quick: int, full: int, train: int = 60_000, test: int = 10_000) -> dict[Preset, Scale]:
    return {
        "quick": Scale(quick, train, test, epochs=10),
        "full": Scale(full, train, test, epochs=10),
        "paper": Scale(85, 60_000, 10_000, epochs=10),
    }


PLANS = (
    Plan(_scales(10, 10), {LENET: {**EVALUATED, "lr": 1.0}}, BOOK),
    Plan(_scales(0, 3), {PLAIN: {"norm": "none", "lr": 0.9}}, BOOK),
    Plan(
        _scales(0, 5, 3_000, 2_000),
        {DENSENET: {**EVALUATED, "lr": 0.1}},
        {"model": "densenet"},
        {"quick": SMALL, "full": SMALL, "paper": {"size": 96}},
    ),
)


def plan(preset: Preset, available: Available) -> Arms:
    """Return the runs of the book's LeNet with BN and without, and of the small DenseNet."""
    return [run for each in PLANS for run in each(preset, available)]


def points(arm: str) -> Endpoint:
    """Ask how many points population statistics give back."""
    return Endpoint(
        f"Points: how much higher is the last test accuracy of {arm} with population statistics?",
        RECALIBRATED.at(arm) - TEST.at(arm),
        matters=3,
    )


def noise(arm: str) -> Endpoint:
    """Ask how much of the spread over the seeds they remove."""
    return Endpoint(
        f"Noise: how many times is the standard deviation of {arm} over the seeds halved?",
        halved([(TEST.at(arm), RECALIBRATED.at(arm))], one_image(arm)),
        matters=1,
    )


CLAIM = define(
    key="C24",
    title="Noisy test scores are the moving average's fault, and recalibration fixes them",
    statement="The textbook's LeNet with batch normalization has test scores that jump from epoch "
    "to epoch and from build to build, while its training accuracy does not. The weights are good; "
    "what is wrong is the moving average that evaluation normalizes with. Population statistics of "
    "the same weights give the points back and take most of the noise away.",
    sources=(
        D2L.says(
            "test accuracy, %, after the last epoch, least, median, greatest and standard "
            f"deviation: {figures(PUBLISHED[LENET])}, with a training accuracy of 90–91 each time; "
            f"without BN {figures(PUBLISHED[PLAIN])}; DenseNet {figures(PUBLISHED[DENSENET])}",
            "batch normalization, 85 published builds",
            D2L.url + "batch-norm.html",
        ),
        RESNET_NOTES.says("the same networks; no figures of the spread are given"),
        WU_JOHNSON.says(
            "population statistics computed for the final weights (PreciseBN) instead of a moving "
            "average taken along training",
            "§3",
        ),
    ),
    prediction="With the moving average, test accuracy after the last epoch lies some points below "
    "that with population statistics, and spreads at least twice as much over the seeds.",
    plan=plan,
    decides={"gain": points(LENET), "spread": noise(LENET)},
    information={
        "average": Endpoint(
            "How much higher is it, averaged over all epochs?",
            mean_of_epochs(RECALIBRATED, "").at(LENET) - mean_of_epochs(TEST, "").at(LENET),
            matters=3,
        ),
        "densenet": points(DENSENET),
        "densenet_noise": noise(DENSENET),
    },
    rule="95 % t intervals of the paired differences; of the ratio of spreads by the jackknife",
    sentence="The same weights score {gain} points more on the test images with population "
    "statistics than with the moving average, and their standard deviation over the seeds goes "
    "from {deviations}, which is {spread:number} halvings",
    say={"deviations": builds.deviations},
    charts=(builds.chart(LENET), builds.chart(DENSENET)),
    tables=(builds.table, Seeds((TEST, RECALIBRATED, builds.TRAINED))),
    colours={PLAIN: "without BN"},
    setup=(
        (
            "more networks",
            "the full preset trains LeNet without BN too, and a DenseNet with growth 8, stem 16, "
            "28×28 pixels and 3,000 images an epoch, where the book has growth 32, 96×96 and "
            "60,000, which would take days here",
        ),
    ),
    differs="The source has 85 builds on machines of its own, and so many show rare failures that "
    "few seeds do not. How far the moving average is off in the last epoch depends on how much the "
    "last steps move the weights; and a standard deviation over few seeds is itself uncertain, by "
    "a good part of its size.",
)
