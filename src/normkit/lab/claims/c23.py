"""C23: half instance normalization helps restoration.

A small U-Net takes noise off Fashion-MNIST: one subnetwork of HINet, with its blocks, its
activation, its loss and its optimizer (Adam with a cosine). After the first convolution of each
block on the way down stands nothing, instance normalization, batch normalization, or half instance
normalization, as HINet has it; all else is the same. The noise is Gaussian, of a standard
deviation of 0.1 where white is 1 (25.5 of 255); test images have one noise, the same for all
runs. PSNR is of restored images clipped to [0, 1], the mean over the test images, as remembered
statistics give it.

Endpoint, fixed before any run of the claim's seeds: test PSNR after the last epoch with half
instance normalization less that without any, seed by seed. A tenth of a decibel is the smallest
difference that would matter: HINet is ahead of the work before it by 0.11 dB and 0.28 dB on SIDD,
at two sizes. The source says that its block boosts networks for restoration, so the network without
it is what decides; how it does against instance and batch normalization is for information.

Tried before, on seed 100, which is no seed of the claim: six single runs, without a normalizer and
with half instance normalization, at learning rates of 0.002, 0.008 and 0.02 (2,000 images, four
epochs). The middle one was the best for both and was taken. The gain went with the rate: 0.12 dB
at the lowest, where both had further to go, -0.04 at the middle one, 2.4 at the highest, where both
lost and the network without a normalizer lost more. A seventh, of IN, was for its time only.
"""

from __future__ import annotations

import math
from statistics import stdev

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import (
    differences,
    figures,
    metric_chart,
    seed_table,
    under,
)
from normkit.lab.claims.sweeps import mean_of
from normkit.lab.conditions import Condition
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Comparison, Line, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

HALF, NONE, IN, BN = "half-IN", "none", "IN", "BN"
NORMS = {NONE: "none", IN: "instance", BN: "batch", HALF: "half-instance"}
NOISE = 0.1
NOISY = -20 * math.log10(NOISE)
"""PSNR of the noisy image, not clipped, in dB."""

SMALLEST = 0.1
UNIT = "dB"
SAMPLES = 10_000
PUBLISHED = (
    ("HINet, SIDD (noise of phone cameras), published", 39.99),
    ("HINet, GoPro (motion blur), published", 32.71),
)

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=1_000, test=500, epochs=2),
    "full": Scale(seeds=5, train=1_500, test=500, epochs=4),
    "paper": Scale(seeds=5, train=60_000, test=10_000, epochs=426),
}
WIDTHS: dict[Preset, tuple[int, int]] = {"quick": (8, 2), "full": (12, 2), "paper": (64, 3)}
"""Channels of the first level, and levels. HINet's subnetworks have 64 and 5; images of 28 pixels
can be halved twice."""

STEPS: dict[Preset, tuple[int, float]] = {
    "quick": (16, 8e-3),
    "full": (16, 8e-3),
    "paper": (64, 2e-4),
}
"""Batch size and the first learning rate: HINet's in paper, where 426 epochs are its 400,000
steps."""


def plan(preset: Preset, available: Available) -> Arms:
    """The denoiser with Adam and a cosine, each normalizer."""
    scale = SCALES[preset]
    width, depth = WIDTHS[preset]
    batch_size, lr = STEPS[preset]
    images = available.at_most(scale.train, scale.test)
    samples = min(SAMPLES, images["train_images"])
    population: Condition = ("population", samples, min(250, samples))

    def make(norm: str, seed: int) -> RunConfig:
        return RunConfig(
            task="denoising",
            noise=NOISE,
            model="denoiser",
            model_options=(("width", width), ("depth", depth)),
            norm=norm,
            act="leaky_relu_0.2",
            optimizer="adam",
            lr=lr,
            schedule="cosine",
            size=available.side,
            batch_size=batch_size,
            epochs=scale.epochs,
            seed=seed,
            final_evaluations=(population,) if norm == NORMS[BN] else (),
            **images,
        )

    return [(arm, make(norm, seed)) for seed in range(scale.seeds) for arm, norm in NORMS.items()]


def psnr(run: Run) -> float | None:
    """Test PSNR after the last epoch, in dB."""
    return run.last("test_psnr")


def repaired(run: Run) -> float | None:
    """The same with population statistics; None for a run that has none."""
    for condition in run.config.final_evaluations:
        return under("test_psnr", condition)(run)
    return None


def judge(evidence: Evidence) -> Judgement:
    """Compare PSNR, seed by seed."""
    gains = {arm: differences(evidence.pairs(HALF, arm), psnr) for arm in NORMS if arm != HALF}
    helps = paired_test(
        f"{HALF} helps (decides): how much higher is test PSNR than without a normalizer?",
        gains[NONE],
        unit=UNIT,
        smallest=SMALLEST,
    )
    others = {
        arm: paired_test(
            f"For information: how much higher is test PSNR with {HALF} than with {arm}?",
            gains[arm],
            unit=UNIT,
            smallest=SMALLEST,
        )
        for arm in (IN, BN)
    }
    runs = evidence.of(BN)
    memory = paired_test(
        "For information: how much higher is BN's test PSNR with population statistics than with "
        "the remembered?",
        differences([(run, run) for run in runs], repaired, psnr),
        unit=UNIT,
        smallest=SMALLEST,
    )
    drawn = [_gains(evidence), _epochs(evidence)]
    return Judgement(
        sentence=(
            f"With half instance normalization the restored images have {figures(helps)} dB of "
            f"PSNR more than without a normalizer ({_level(evidence, HALF)} against "
            f"{_level(evidence, NONE)}); against IN it is {figures(others[IN])} dB, against BN "
            f"{figures(others[BN])} dB ({evidence.coverage(len(gains[NONE]))}, 95 % intervals)."
        ),
        decides=[helps],
        information=[*others.values(), memory],
        charts=[chart for chart in drawn if chart],
        tables=(
            _table(evidence),
            seed_table(
                evidence,
                (
                    ("test PSNR, dB", psnr),
                    ("training PSNR, dB", lambda run: run.last("epoch_train_psnr")),
                    ("with population statistics, dB", repaired),
                ),
                digits=3,
            ),
        ),
    )


def _level(evidence: Evidence, arm: str) -> str:
    mean = mean_of(evidence.of(arm), psnr)
    return "not yet known" if mean is None else f"{mean:.2f} dB"


def _epochs(evidence: Evidence) -> Chart | None:
    return metric_chart(
        evidence,
        "test_psnr",
        key="epochs",
        title="How well noise is taken off test images, by epoch",
        y_label="test PSNR, dB",
    )


def _gains(evidence: Evidence) -> Chart | None:
    """What each normalizer gains over none, with the interval of the paired differences."""
    arms = (HALF, IN, BN)
    lines, words = [], []
    for place, arm in enumerate(arms):
        found: Comparison | None = paired_test(
            arm, differences(evidence.pairs(arm, NONE), psnr), unit=UNIT
        )
        if found is None:
            continue
        lines.append(Line(arm, (place,), (found.effect,), (found.low,), (found.high,), arm=arm))
        words.append(f"{arm} {figures(found)} dB")
    if not lines:
        return None
    return Chart(
        key="gains",
        title="What each normalizer gains in test PSNR over the network without any",
        x_label="normalizer",
        y_label="test PSNR less that without a normalizer, dB",
        lines=tuple(lines),
        text=(
            f"Gain in test PSNR over the network without a normalizer: {'; '.join(words)}. "
            f"Whiskers are 95 % intervals of the paired differences; from {SMALLEST} dB on a gain "
            "matters."
        ),
        kind="dots",
        rows=arms,
    )


def _table(evidence: Evidence) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm in NORMS:
        runs = evidence.of(arm)
        values = [value for run in runs for value in [psnr(run)] if value is not None]
        means = [
            mean_of(runs, value)
            for value in (psnr, lambda run: run.last("epoch_train_psnr"), repaired)
        ]
        test, train, population = (None if m is None else round(m, 2) for m in means)
        spread = round(stdev(values), 3) if len(values) > 1 else None
        rows.append((arm, len(values), test, spread, train, population))
    rows.append(("the noisy image itself, not clipped", None, round(NOISY, 2), None, None, None))
    rows += [(name, None, figure, None, None, None) for name, figure in PUBLISHED]
    return Table(
        "arms",
        "PSNR in dB, ours (Fashion-MNIST, Gaussian noise) and published (other data and networks: "
        "not to be compared in size)",
        (
            "normalizer",
            "seeds",
            "test",
            "standard deviation over seeds",
            "training, last epoch",
            "test, population statistics",
        ),
        tuple(rows),
    )


CLAIM = Claim(
    key="C23",
    title="Half instance normalization helps restoration",
    statement=(
        "A network that restores images does so better if half of the channels of its encoder "
        "are instance-normalized, and the other half keeps what normalization would throw away."
    ),
    sources=(
        Reference(
            'Notes on Rethinking "Batch" in BatchNorm (article), new methods',
            "names half instance normalization among them; no figures of its own are given",
        ),
        Reference(
            "Chen et al. 2021, HINet: Half Instance Normalization Network for Image Restoration",
            "PSNR of HINet: SIDD (denoising) 39.99 dB, GoPro (deblurring) 32.71 dB",
            "https://arxiv.org/abs/2105.06086",
        ),
    ),
    prediction=(
        "Test PSNR is higher by a tenth of a decibel or more with half instance normalization "
        "than without a normalizer."
    ),
    decision=(
        "Test PSNR after the last epoch, half instance normalization less none (matters from "
        "0.1 dB); 95 % t interval of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=(
        ("loss", "less PSNR of each image, as in the source"),
        ("normalizers stand", "after the first convolution of each block on the way down"),
        ("restored images", "clipped to [0, 1] for PSNR, not for the loss"),
    ),
    demo=False,
    differs=(
        "HINet's gain is on photographs of phone cameras and of moving scenes, whose contrast and "
        "noise differ from image to image. Here the noise is the same everywhere, and the images "
        "are small and alike. The network is a small part of HINet, outside the paper preset "
        "trained for seconds, and what it gains depends on the learning rate."
    ),
)
