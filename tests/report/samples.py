"""Findings as the lab makes them, made up: for the tests, and for looking at the page.

The curves are drawn from formulas that behave like training, with a fixed seed. No number here
was measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from normkit.lab.config import RunConfig
from normkit.lab.findings import AtScale, Chart, Comparison, Finding, Line, Reference, Table

ABOUT = {
    "date": "2025-03-14 16:02 UTC",
    "preset": "full",
    "versions": "normkit 0.1.0, PyTorch 2.12.0, Python 3.12.3, NumPy 2.2.1",
    "machine": "8 cores, 32 GB, no accelerator",
    "total_time": "3 h 12 min",
    "notice": "The shipped subset of Fashion-MNIST was used (10,000 training images of 60,000), "
    "because the full set could not be fetched. Scores are lower than on the full set.",
}
_IOFFE = Reference(
    "Ioffe & Szegedy 2015",
    "ImageNet, steps to 72.2 %: Inception 31.0 M, with BN 13.3 M; best 72.2 against 72.7",
    "https://arxiv.org/abs/1502.03167",
)
_WU = Reference(
    "Wu & Johnson 2021",
    "ResNet-50 on ImageNet, error at batch 2 against 32: EMA 35.5 against 23.7",
    "https://arxiv.org/abs/2105.07576",
)
Curve = Callable[[np.ndarray], np.ndarray]


def runs(curve: Curve, x: Sequence[float], spread: float, seeds: int, seed: int) -> np.ndarray:
    """One row for each seed: the curve, an offset of the run's own, and noise that shrinks."""
    chance = np.random.default_rng(seed)
    places = np.asarray(x, dtype=float)
    offset = chance.normal(0, spread, (seeds, 1))
    noise = chance.normal(0, spread, (seeds, len(places))) * (0.4 + 1.2 / np.arange(1, len(x) + 1))
    return curve(places) + offset + noise


def line(label: str, x: Sequence[float], values: np.ndarray, arm: str = "") -> Line:
    """The mean of the runs with its 95 % band."""
    mean = values.mean(axis=0)
    half = 2.26 * values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return Line(
        label,
        tuple(map(float, x)),
        tuple(mean.tolist()),
        tuple((mean - half).tolist()),
        tuple((mean + half).tolist()),
        arm=arm or label,
    )


def records(**arms: np.ndarray) -> tuple[dict[str, object], ...]:
    """The rows behind a chart, one for each run."""
    return tuple(
        {"arm": arm, "seed": seed, "test_accuracy": [round(float(value), 4) for value in row]}
        for arm, values in arms.items()
        for seed, row in enumerate(values)
    )


def beside(*rows: tuple[str, str]) -> Table:
    """Network, data, steps and figures, here and in the source."""
    names = ("network", "data", "steps", "figures")
    return Table(
        "here",
        "Here and in the source",
        ("", "here", "in the source"),
        tuple((name, *row) for name, row in zip(names, rows, strict=True)),
    )


def c1() -> Finding:
    """A clear effect, published curves beside ours."""
    x = range(1, 6)
    bn = runs(lambda e: 0.902 - 0.03 * np.exp(-(e - 1) / 1.2), x, 0.0035, 10, 1)
    plain = runs(lambda e: 0.889 - 0.055 * np.exp(-(e - 1) / 2.0), x, 0.005, 10, 2)
    steps = np.linspace(0, 5, 101)
    published = (
        (0.8859, 0.8976, 0.9013, 0.904, 0.9023),
        (0.8592, 0.8734, 0.8751, 0.881, 0.8895),
    )
    accuracy = Chart(
        "accuracy",
        "Test accuracy after each epoch",
        "Epoch",
        "Test accuracy",
        (
            line("with BN", x, bn, "BN"),
            line("without BN", x, plain, "plain"),
            Line("with BN", (1, 2, 3, 4, 5), published[0], role="published", arm="BN"),
            Line("without BN", (1, 2, 3, 4, 5), published[1], role="published", arm="plain"),
        ),
        "Both arms climb over five epochs. The network with BN starts higher and stays above the "
        "plain one at every epoch; the distance shrinks from 3.9 to 1.6 points. The published "
        "curves lie within our bands for BN and slightly below them without.",
        markers=True,
    )
    loss = Chart(
        "loss",
        "Training loss",
        "Epoch",
        "Cross-entropy, logarithmic",
        (
            line(
                "with BN",
                steps,
                runs(lambda e: 0.24 + 2 * np.exp(-e * 3.2), steps, 0.008, 10, 3),
                "BN",
            ),
            line(
                "without BN",
                steps,
                runs(lambda e: 0.33 + 2 * np.exp(-e * 1.6), steps, 0.012, 10, 4),
                "plain",
            ),
        ),
        "On a logarithmic scale the loss falls from 2.3; with BN it passes 0.5 within half an "
        "epoch, without after more than one.",
        y_log=True,
    )
    return Finding(
        key="C1",
        topic="training",
        title="Batch normalization converges faster and lower",
        statement="With batch normalization after each convolution and dense layer, a network "
        "reaches a given accuracy in fewer epochs, and ends with a lower loss.",
        sources=(
            Reference(
                "Article, §3.1",
                "LeNet-5, Fashion-MNIST, test accuracy after epochs 1–5: with BN .8859 .8976 "
                ".9013 .9040 .9023, without .8592 .8734 .8751 .8810 .8895",
            ),
            _IOFFE,
        ),
        prediction="BN ahead by one to three points after epoch 5, and by more after epoch 1.",
        word="confirmed",
        sentence="After five epochs the network with BN is 1.6 points more accurate on the test "
        "images (95 % interval 1.2 to 2.1), and it reaches 87 % two epochs earlier.",
        comparisons=(
            Comparison(
                "Is test accuracy higher after epoch 5?",
                "percentage points",
                1.62,
                1.18,
                2.06,
                10,
                "confirmed",
                smallest=0.5,
                p=0.0003,
                decides=True,
                survives=True,
                images=10_000,
            ),
            Comparison(
                "Is 87 % reached in fewer epochs?",
                "epochs",
                2.1,
                1.4,
                2.8,
                10,
                "confirmed",
                p=0.0121,
                decides=True,
            ),
            Comparison(
                "Is the last training loss lower?",
                "nats",
                0.09,
                0.07,
                0.11,
                10,
                "confirmed",
                p=0.0004,
            ),
        ),
        charts=(accuracy, loss),
        tables=(
            Table(
                "epochs",
                "Test accuracy by epoch, mean over 10 seeds, beside the published figures",
                ("Epoch", "with BN", "published", "without BN", "published", "difference"),
                tuple(
                    (
                        e,
                        round(float(bn[:, e - 1].mean()), 4),
                        published[0][e - 1],
                        round(float(plain[:, e - 1].mean()), 4),
                        published[1][e - 1],
                        round(float((bn - plain)[:, e - 1].mean()), 4),
                    )
                    for e in x
                ),
            ),
        ),
        setup=(
            ("model", "LeNet-5 with ReLU, 61,706 parameters; with BN 61,930"),
            ("optimizer", "SGD, learning rate 0.1, batch 256"),
            ("epochs", "5"),
            ("seeds", "0 to 9, the same in both arms: same initial weights, same order of images"),
        ),
        data="Fashion-MNIST, 10,000 + 10,000 images (shipped subset)",
        runs=20,
        diverged=0,
        seconds=1312.4,
        records=records(BN=bn, plain=plain),
        confirmed=2,
        parts=2,
        here=beside(
            ("LeNet-5, ReLU, BN after each layer", "LeNet-5, ReLU, BN after each layer"),
            ("Fashion-MNIST, 10,000 images", "Fashion-MNIST, 60,000 images"),
            ("195, of 256 images", "1,170, of 256 images"),
            ("after epoch 5: 90.1 % with BN, 88.5 % without", "90.2 % with BN, 89.0 % without"),
        ),
        at_scale=(
            AtScale(
                "agrees",
                "ImageNet, Inception: 72.2 % after 13.3 M images with BN, 31.0 M without.",
                "Ioffe & Szegedy 2015",
                "https://arxiv.org/abs/1502.03167",
            ),
            AtScale(
                "contradicts",
                "Residual networks train as well without BN where their first weights are scaled "
                "for it.",
                "Zhang et al. 2019, Fixup",
                "https://arxiv.org/abs/1901.09321",
            ),
        ),
        holds="At one learning rate for both; at the best of each the lead shrinks to 0.4 points.",
        practice="Put BN after each convolution where batches have 32 images or more, and try a "
        "larger learning rate with it.",
    )


def c2() -> Finding:
    """Densities over the normal one; a small effect against the claim in one layer."""
    x = np.linspace(-4, 4, 81)
    normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def density(mean: float, deviation: float, skew: float) -> tuple[float, ...]:
        z = (x - mean) / deviation
        bell = np.exp(-(z**2) / 2) / (deviation * math.sqrt(2 * math.pi))
        return tuple((bell * (1 + np.tanh(skew * z))).tolist())

    shapes = {
        "BN": [(0.0, 1.0, 0.15), (0.05, 0.97, 0.25), (-0.1, 1.02, 0.3), (0, 1.0, 0.35)],
        "plain": [(-0.2, 0.55, 0.4), (-0.5, 1.2, 0.8), (-0.9, 1.7, 1.1), (-1.2, 2.3, 1.4)],
    }
    return Finding(
        key="C2",
        topic="training",
        title="Batch normalization keeps each layer’s input close to N(0, 1), and steady",
        statement="Activations before the nonlinearity stay close to a standard normal "
        "distribution in every layer, and do not drift while training goes on.",
        sources=(_IOFFE,),
        prediction="With BN each layer within 0.1 of mean 0 and deviation 1; without, not.",
        word="confirmed",
        sentence="The distance to N(0, 1) is 0.71 smaller with BN (0.64 to 0.78); skewness, which "
        "BN does not touch, remains.",
        comparisons=(
            Comparison(
                "Is the distance to N(0, 1) smaller?",
                "Wasserstein",
                0.71,
                0.64,
                0.78,
                10,
                "confirmed",
                p=0.00001,
                decides=True,
                survives=True,
            ),
            Comparison("Is skewness smaller?", "", -0.02, -0.08, 0.04, 10, "open"),
        ),
        charts=tuple(
            Chart(
                f"density{layer}",
                f"Input of the nonlinearity after convolution {layer}, end of training",
                "Activation",
                "Density",
                (
                    *(
                        Line(arm, tuple(x.tolist()), density(*four[i]), arm=arm, note="mean of 10")
                        for arm, four in shapes.items()
                    ),
                    Line("N(0, 1)", tuple(x.tolist()), tuple(normal.tolist()), role="theory"),
                ),
                "The density with BN lies almost on the normal curve, slightly skewed; the one "
                "without is wider or narrower and moves to the left from layer to layer.",
            )
            for i, layer in enumerate((1, 2, 3, 4))
        ),
        tables=(),
        setup=(("model", "4-layer convolutional network"), ("epochs", "10")),
        data="Fashion-MNIST, 10,000 + 10,000 images (shipped subset)",
        runs=1,
        diverged=0,
        seconds=2210.0,
        records=({"arm": "BN", "layer": 1, "mean": 0.01, "deviation": 1.0},),
        confirmed=1,
        parts=1,
        here=beside(
            ("4 convolutions", "13 layers of Inception"),
            ("Fashion-MNIST, 10,000 images", "ImageNet, 1.2 M images"),
            ("390, of 256 images", "31 M images"),
            ("0.08 from N(0, 1) with BN, 0.79 without", "drawn, without figures"),
        ),
        at_scale=(
            AtScale(
                "too small to show here",
                "Steadiness is not why BN helps: noise that makes the inputs of a BN network "
                "wander more than the plain one’s leaves it as fast (VGG, CIFAR-10).",
                "Santurkar et al. 2018",
                "https://arxiv.org/abs/1805.11604",
            ),
        ),
        holds="In all four layers; skewness, which BN does not touch, remains.",
        practice="Do not choose BN for steady inputs: look at the loss.",
    )


def c3() -> Finding:
    """Diverged runs: gaps in a curve."""
    rates = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 3.0)
    bn = runs(lambda r: 0.90 - 0.02 * np.log10(r / 0.2) ** 2, rates, 0.004, 10, 5)
    plain = runs(
        lambda r: np.where(r < 0.4, 0.885 - 0.03 * np.log10(r / 0.1) ** 2, 0.1),
        rates,
        0.004,
        10,
        6,
    )
    broken = line("without BN", rates, plain, "plain")

    def cut(values: Sequence[float | None]) -> tuple[float | None, ...]:
        return (*values[:4], None, None, None)

    broken = dataclasses.replace(
        broken, y=cut(broken.y), low=cut(broken.low), high=cut(broken.high), failed=rates[4:]
    )
    return Finding(
        key="C3",
        topic="training",
        title="Batch normalization bears larger learning rates",
        statement="A network with BN trains at learning rates at which the plain one diverges.",
        sources=(Reference("Article, §3.3", "At 0.5 the plain network stops near loss 2.25"),),
        prediction="The plain network fails at 0.5 and above; with BN it trains up to at least 1.",
        word="confirmed",
        sentence="At a learning rate of 0.5 all ten plain runs diverged; all ten with BN trained.",
        comparisons=(
            Comparison(
                "Is accuracy higher at learning rate 0.5?",
                "percentage points",
                79.4,
                78.9,
                float("inf"),
                10,
                "confirmed",
                decides=True,
                p=0.001,
                survives=True,
            ),
        ),
        charts=(
            Chart(
                "rates",
                "Test accuracy by learning rate",
                "Learning rate, logarithmic",
                "Test accuracy",
                (line("with BN", rates, bn, "BN"), broken),
                "With BN accuracy stays near 0.9 over two decades of learning rate. Without, it "
                "ends at 0.3: beyond, no run trained.",
                x_log=True,
                markers=True,
            ),
        ),
        tables=(),
        setup=(("model", "LeNet-5"), ("epochs", "5")),
        data="Fashion-MNIST, 10,000 + 10,000 images (shipped subset)",
        runs=20,
        diverged=3,
        confirmed=1,
        parts=1,
        seconds=5120.0,
        records=records(BN=bn, plain=plain),
    )


def c11() -> Finding:
    """Noise: open, with a wide interval."""
    return dataclasses.replace(
        c1(),
        key="C11",
        topic="statistics",
        title="ε = 1e-5 is too large on CIFAR-10, 1e-10 is better",
        statement="A smaller ε, and γ and β started just off 1 and 0, train better.",
        prediction="No difference that ten seeds can show.",
        word="open",
        sentence="The effect is 0.05 points with an interval from -0.4 to 0.5: ten seeds can not "
        "tell it from nothing.",
        sources=(),
        comparisons=(
            Comparison(
                "Is 1e-10 better than 1e-5?",
                "percentage points",
                0.05,
                -0.41,
                0.51,
                10,
                "open",
                smallest=0.2,
                p=0.41,
                decides=True,
                needed=(46, None),
            ),
        ),
        differs="The source tells of single runs, whose scores differ by more than this.",
        charts=(),
        tables=(),
        runs=20,
        seconds=803.0,
        confirmed=0,
        parts=1,
        at_scale=(),
    )


def c4() -> Finding:
    """Of three parts one of each kind, with a margin and one that does not survive the page."""
    base = c1()

    def part(question: str, *numbers: float, **more: object) -> Comparison:
        effect, low, high = numbers
        return Comparison(question, "points", effect, low, high, 5, decides=True, **more)

    return dataclasses.replace(
        base,
        key="C4",
        title="Batch normalization generalises better than dropout",
        statement="A network with BN and without dropout reaches a higher test accuracy than with "
        "dropout and without BN, and its gap is not wider.",
        prediction="Test accuracy a point higher; the gap no wider than two points.",
        word="partly",
        sentence="Late test accuracy is higher by 1.5 [0.2, 2.8] points; calibration differs by "
        "less than what matters, and the gap is wider by 5.9 [3.4, 8.4] points.",
        comparisons=(
            part("How much higher is late test accuracy with BN than with dropout?", 1.5, 0.2, 2.8,
                 word="confirmed", smallest=1.0, p=0.018, images=10_000),
            part("Calibrated: how much lower is the expected calibration error?", -0.1, -0.5, 0.3,
                 word="too small to matter", smallest=1.0, p=0.7),
            part("No wider gap: how much narrower is training less test accuracy?", -5.9, -8.4,
                 -3.4, word="opposite", margin=2.0, p=1.0),
            part("Later: how much higher is it ten epochs on?", 2.1, -0.9, 5.1, word="open",
                 smallest=1.0, p=0.08, needed=(8, 41)),
            dataclasses.replace(
                part("And with both?", 1.9, 0.7, 3.1, word="confirmed", smallest=1.0),
                decides=False,
            ),
        ),
        differs="The source trains for a hundred epochs; both nets overfit later here.",
        charts=(),
        tables=(),
        confirmed=1,
        parts=4,
        holds="On all 10,000 test images after twenty epochs; with 1,000 the parts stay open.",
        practice="With BN, leave dropout out of the convolutions and tune weight decay.",
    )  # fmt: skip


def begun() -> Finding:
    """A study under way: some of its runs are done, of one part there is nothing yet."""
    base = c1()
    first = dataclasses.replace(
        base.comparisons[0], low=-0.2, high=3.4, seeds=3, word="open", survives=False
    )
    return dataclasses.replace(
        base,
        key="C16",
        topic="small batches",
        title="The normalization batch size sets noise and inconsistency",
        word="open",
        sentence="So far 7 of 20 runs are done (13 missing). Training error is higher by 1.6 "
        "[-0.2, 3.4] points.",
        comparisons=(first,),
        charts=base.charts[:1],
        runs=7,
        confirmed=0,
        parts=3,
    )


def planned() -> Finding:
    """A study of which no run is done."""
    return dataclasses.replace(
        begun(), key="C24", topic="statistics",
        title="The textbook’s noisy test scores are the moving average’s fault", comparisons=(),
        charts=(), tables=(), runs=0, here=None, holds="", seconds=0.0,
        sentence="So far 0 of 20 runs are done (20 missing).",
    )  # fmt: skip


def c13() -> Finding:
    """Against the claim; several arms."""
    x = range(1, 21)
    ends = {"none": 0.872, "conv": 0.898, "fc": 0.889, "both": 0.905}
    arms = {
        name: runs(
            lambda e, end=end: end - 0.07 * np.exp(-(e - 1) / 3), x, 0.004, 10, 20 + i
        )
        for i, (name, end) in enumerate(ends.items())
    }  # fmt: skip
    return Finding(
        key="C13",
        topic="architecture",
        title="BN after dense layers adds little where BN follows the convolutions",
        statement="Once the convolutions are normalised, normalising the dense layers too changes "
        "next to nothing.",
        sources=(),
        prediction="Less than half a point between the two.",
        word="refuted",
        sentence="BN on the dense layers as well is worth 0.7 points more (0.4 to 1.0).",
        comparisons=(
            Comparison(
                "How much higher is test accuracy without BN on the dense layers?",
                "percentage points",
                -0.71,
                -0.86,
                -0.56,
                10,
                "opposite",
                p=0.99,
                decides=True,
                margin=0.5,
            ),
        ),
        differs="AlexNet’s dense layers hold most of its weights; the source’s hold few.",
        charts=(
            Chart(
                "placement",
                "Test accuracy by where BN stands",
                "Epoch",
                "Test accuracy",
                tuple(
                    line(f"BN: {n}", x, v, {"both": "BN", "none": "plain"}.get(n, n))
                    for n, v in arms.items()
                ),
                "Four curves rise together. BN everywhere ends highest, then after convolutions, "
                "then after dense layers, then none.",
            ),
            gains(arms),
        ),
        tables=(),
        setup=(("model", "AlexNet for 28 × 28"), ("epochs", "20")),
        data="Fashion-MNIST, 10,000 + 10,000 images (shipped subset)",
        runs=40,
        parts=1,
        diverged=1,
        seconds=4023.0,
        records=records(**arms),
    )


def gains(arms: dict[str, np.ndarray]) -> Chart:
    """Dots: what each place of BN gains over none, one row each; one of them failed."""
    rows = ("after convolutions", "after dense layers", "after both", "before the first layer")
    found = [100 * (arms[name] - arms["none"])[:, -1:] for name in ("conv", "fc", "both")]
    dots = line("ours", (0, 1, 2), np.concatenate(found, axis=1), "BN")
    dots = dataclasses.replace(
        dots, x=(0, 1, 2, 3), y=(*dots.y, None), low=(*dots.low, None), high=(*dots.high, None)
    )
    return Chart(
        "gains",
        "Dense layers gain least",
        "where BN stands",
        "points of test accuracy gained over no BN",
        (
            dataclasses.replace(dots, failed=(3,)),
            Line("ours, second data set", (0, 2), (1.4, 1.5), (0.9, 0.8), (1.9, 2.2), arm="both"),
            Line("another's", (0,), (2.1,), role="published", arm="BN"),
        ),
        "BN after convolutions gains two to three points, after dense layers half as much, after "
        "both a little more than after convolutions. Before the first layer no run learned.",
        kind="dots",
        rows=rows,
    )


def c20() -> Finding:
    """Over batch size, logarithmic, with published curves of other arms."""
    sizes = (2, 4, 8, 16, 32)
    bn = runs(lambda b: 11.5 + 9 / b, sizes, 0.3, 10, 30)
    gn = runs(lambda b: 11.9 + 0 * b, sizes, 0.25, 10, 31)
    ln = runs(lambda b: 12.6 + 0 * b, sizes, 0.25, 10, 32)
    return Finding(
        key="C20",
        topic="small batches",
        title="At small batches GroupNorm keeps its accuracy and BatchNorm does not",
        statement="BN’s error grows as the batch shrinks below 8; that of GroupNorm, LayerNorm and "
        "InstanceNorm does not depend on the batch.",
        sources=(
            Reference(
                "Wu & He 2018",
                "ImageNet ResNet-50, error % at batch 32, 16, 8, 4, 2: BN 23.6 23.7 24.8 27.3 "
                "34.7; GN 24.1 24.2 24.0 24.2 24.1",
                "https://arxiv.org/abs/1803.08494",
            ),
            _WU,
        ),
        prediction="BN worse than GN below 8, no worse at 32.",
        word="confirmed",
        sentence="At batch 2, BN errs on 4.1 points more of the test images than GN (3.6 to 4.6).",
        comparisons=(
            Comparison(
                "Does BN lose to GN at batch 2?",
                "percentage points",
                4.1,
                3.6,
                4.6,
                10,
                "confirmed",
                decides=True,
                p=0.0001,
                survives=True,
            ),
        ),
        charts=(
            Chart(
                "batch",
                "Test error by batch size",
                "Batch size, logarithmic",
                "Test error, %",
                (
                    line("BatchNorm", sizes, bn, "BN"),
                    line("GroupNorm", sizes, gn, "GN"),
                    line("LayerNorm", sizes, ln, "LN"),
                    Line(
                        "BatchNorm, ImageNet",
                        (32, 16, 8, 4, 2),
                        (23.6, 23.7, 24.8, 27.3, 34.7),
                        role="published",
                        arm="BN",
                    ),
                    Line(
                        "GroupNorm, ImageNet",
                        (32, 16, 8, 4, 2),
                        (24.1, 24.2, 24, 24.2, 24.1),
                        role="published",
                        arm="GN",
                    ),
                ),
                "BN’s error grows from 11.8 to 16 % as the batch shrinks from 32 to 2; the others "
                "stay level. The published ImageNet curves lie higher and have the same shape.",
                x_log=True,
                markers=True,
            ),
        ),
        tables=(),
        setup=(("model", "ResNet-18, narrow"), ("epochs", "8")),
        data="Fashion-MNIST, 10,000 + 10,000 images (shipped subset)",
        runs=30,
        diverged=0,
        confirmed=1,
        parts=1,
        seconds=7321.0,
        records=records(BN=bn, GN=gn, LN=ln),
    )


def study(count: int = 24, runs: int = 80) -> list[Finding]:
    """As many claims as the lab has, with as many runs each as a full study, recorded as it does.

    A record is what ``normkit.lab.judge`` writes of a run: what it was, and every score by epoch.
    """
    chance = np.random.default_rng(0)
    shapes = realistic()
    made = []
    for index in range(count):
        base = shapes[index % len(shapes)]
        config = RunConfig(
            model="resnet18",
            model_options=(("norm_at", "conv"),),
            norm="batch",
            lr=0.1,
            train_images=20_000,
            test_images=10_000,
            batch_size=128,
            epochs=12,
            seed=0,
        )
        rows = []
        for run in range(runs):
            scores = {
                name: [float(value) for value in chance.random(12)]
                for name in ("epoch_train_loss", "epoch_train_accuracy", "test_accuracy",
                             "test_loss", "test_accuracy@population:10000:256")
            }  # fmt: skip
            about = json.loads(dataclasses.replace(config, seed=run).to_json())
            rows.append({"claim": f"C{index + 1}", "arm": f"arm {run % 4}", "status": "done",
                         "seconds": 12.34, "key": f"{run:064x}", **about, **scores})  # fmt: skip
        made.append(dataclasses.replace(base, key=f"C{index + 1}", runs=runs, records=tuple(rows)))
    return made


def realistic() -> list[Finding]:
    """A page as a reader would meet it."""
    return [c1(), c2(), c3(), c4(), c11(), c13(), c20()]


def tour() -> list[Finding]:
    """The same while a study runs: one claim judged, one begun, one planned."""
    return [c1(), begun(), planned()]
