"""C6: batch normalization slows the decay of gradients through layers, for ReLU too.

The source's argument: backpropagation multiplies a gradient by the weights and by the slope of the
nonlinearity, layer after layer. Batch normalization keeps a sigmoid away from its flat ends, and
it slows the decay for ReLU too, which has none, because it keeps weights and inputs small. The
source argues and gives neither a network nor figures.

Here a network of four convolutions and three dense layers, all seven one after the other, is
trained with ReLU and with sigmoid, with and without BN, on images of 16×16 pixels (28×28 in the
paper preset), with the optimizer of the same source's recipe for Caffe: momentum 0.9, weight decay
0.004, and a rate of 0.02. In the training step itself, at the first step and at every so many,
each weight layer is read: the norm of the loss's gradient with respect to its output (that is
before BN), the Frobenius norm of its weight, and the root mean square of its input.

Four parts, all of which must hold for *supported*. Endpoints, fixed before any seed of the claim
was run; all are decimal logarithms per layer, paired by seed, and what matters is a factor of two
over the whole network, 0.05 decades per layer:

* decay, ReLU, and decay, sigmoid: the slope of log10 of the gradient's norm over the layer's
  number (least squares), which is positive where gradients decay on their way to the first layer,
  averaged over all looks; without BN less with. Sizes of layers differ, but alike in both arms;
* weights: mean over the seven layers of log10 of the weight's norm at the last look, that is the
  product of the norms, per layer; ReLU without BN less ReLU with;
* inputs: the same of the root mean square of the inputs of layers 2 to 7 (the first is given the
  images).

The last two are of ReLU, about which the source says so: a sigmoid's inputs lie between 0 and 1
with and without, and without BN this network does not learn, so its weights stay where they
started. For sigmoid they are shown for information, as is the decay at the last look alone. A look
at which a gradient is exactly zero or not finite has no slope and is left out.

Fourteen short runs with seed 100, none of the claim's, were made before: image size, rate, batch
size and epochs are from them, such that the ReLU network without BN leaves guessing within the
quick preset, since weights that never learned would say nothing. Without weight decay the figures
went the same ways. The endpoints stood before these runs and were not changed.
"""

from __future__ import annotations

from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.layers import (
    Value,
    at,
    layer_chart,
    looks,
    slope,
    smaller_by,
    step_chart,
)
from normkit.lab.claims.parts import BN, WITH, WITHOUT, differences, figures, seed_table
from normkit.lab.claims.sweeps import mean_of
from normkit.lab.config import RunConfig
from normkit.lab.findings import Comparison, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

SMALLEST = 0.05
UNIT = "decades (log10) per layer"
LAYERS = tuple(range(1, 8))
RELU, SIGMOID = "ReLU", "sigmoid"
ACTS = {RELU: "relu", SIGMOID: "sigmoid"}
NORMS = {WITH: BN, WITHOUT: "none"}

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=5_000, test=1_000, epochs=4),
    "full": Scale(seeds=6, train=10_000, test=2_000, epochs=5),
    "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=20),
}
EVERY: dict[Preset, int] = {"quick": 20, "full": 40, "paper": 1_000}
"""Every how many steps the layers are read; the last step is one of them."""

SIZES: dict[Preset, int] = {"quick": 16, "full": 16, "paper": 28}


def arm(act: str, norm: str) -> str:
    """The name of an arm.

    >>> arm(RELU, WITH)
    'ReLU with BN'
    """
    return f"{act} {norm}"


def plan(preset: Preset, available: Available) -> Arms:
    """Seven layers with ReLU and with sigmoid, with and without BN, seed by seed."""
    scale = SCALES[preset]
    return [
        (
            arm(act, norm),
            RunConfig(
                model="convnet4",
                norm=NORMS[norm],
                act=ACTS[act],
                size=SIZES[preset],
                lr=0.02,
                momentum=0.9,
                weight_decay=0.004,
                batch_size=50,
                epochs=scale.epochs,
                seed=seed,
                probes=(("layers", EVERY[preset]),),
                **available.at_most(scale.train, scale.test),
            ),
        )
        for seed in range(scale.seeds)
        for act in ACTS
        for norm in NORMS
    ]


def decay(run: Run) -> float | None:
    """Decades by which the gradient's norm falls per layer on its way back, mean of all looks."""
    found = looks(run, "gradient", LAYERS).values()
    return fmean(map(slope, found)) if found else None


first_decay = at(min, "gradient", slope, LAYERS)
last_decay = at(max, "gradient", slope, LAYERS)
weights = at(max, "weight", fmean, LAYERS)
inputs = at(max, "input", fmean, LAYERS[1:])


def judge(evidence: Evidence) -> Judgement:
    """Compare without and with BN, seed by seed, for each activation."""
    pairs = {act: evidence.pairs(arm(act, WITHOUT), arm(act, WITH)) for act in ACTS}

    def ask(question: str, act: str, value: Value) -> Comparison | None:
        return paired_test(
            question.format(act=act), differences(pairs[act], value), unit=UNIT, smallest=SMALLEST
        )

    slower = "Decay, {act} (decides): how much less do gradients decay from layer to layer?"
    decays = {act: ask(slower, act, decay) for act in ACTS}
    smaller = ask("Weights, {act} (decides): how much smaller are they with BN?", RELU, weights)
    given = ask("Inputs, {act} (decides): how much smaller are they with BN?", RELU, inputs)
    other = "For information: how much smaller are the {} with BN, {{act}}?"
    last = "For information: how much less do gradients decay at the last look, {act}?"
    count = evidence.coverage(min(map(len, pairs.values())))
    charts = [
        *(layer_chart(evidence, LAYERS, first=first) for first in (True, False)),
        step_chart(evidence, "weight", LAYERS, "norm of a layer's weight"),
        step_chart(evidence, "input", LAYERS[1:], "root mean square of a layer's input"),
    ]
    return Judgement(
        sentence=(
            f"From layer to layer gradients decay less with BN by {figures(decays[RELU])} decades "
            f"with ReLU (per layer {_levels(evidence, RELU)}; negative: they grow) and "
            f"{figures(decays[SIGMOID])} with sigmoid ({_levels(evidence, SIGMOID)}). "
            "At the end of training of the ReLU network its weights are "
            f"{smaller_by(smaller)} with BN and the inputs of its layers {smaller_by(given)}, "
            f"by the geometric mean ({count}, 95 % intervals)."
        ),
        decides=[decays[RELU], decays[SIGMOID], smaller, given],
        information=[
            *(ask(last, act, last_decay) for act in ACTS),
            ask(other.format("weights"), SIGMOID, weights),
            ask(other.format("inputs"), SIGMOID, inputs),
        ],
        charts=[chart for chart in charts if chart],
        tables=(
            _arms_table(evidence),
            seed_table(
                evidence,
                (
                    ("decay", decay),
                    ("decay, last look", last_decay),
                    ("weights, log10", weights),
                    ("inputs, log10", inputs),
                    ("last training loss", lambda run: run.last("epoch_train_loss")),
                    ("last test accuracy", lambda run: run.last("test_accuracy")),
                ),
                digits=3,
            ),
        ),
    )


def _levels(evidence: Evidence, act: str) -> str:
    """The mean decay of both arms, which their difference does not tell."""
    means = [(norm, mean_of(evidence.of(arm(act, norm)), decay)) for norm in (WITHOUT, WITH)]
    return ", ".join(
        f"{norm} {'unknown' if mean is None else f'{mean:+.2f}'}" for norm, mean in means
    )


def _arms_table(evidence: Evidence) -> Table:
    """Each arm's figures; the source has none to print beside them."""
    columns: tuple[tuple[str, Value, int], ...] = (
        ("decay per layer (log10), first step", first_decay, 2),
        ("mean of training", decay, 2),
        ("last look", last_decay, 2),
        ("product of the weights' norms, end", _power(weights, len(LAYERS)), 0),
        ("inputs' root mean square, end", _power(inputs), 2),
        ("test accuracy", lambda run: run.last("test_accuracy"), 3),
    )
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in evidence.arms:
        means = [(mean_of(evidence.of(name), value), digits) for _, value, digits in columns]
        cells = (None if mean is None else round(mean, digits) for mean, digits in means)
        rows.append((name, *cells))
    return Table(
        "arms",
        "How gradients decay, and what weights and inputs become (the source gives no figures)",
        ("arm", *(name for name, _, _ in columns)),
        tuple(rows),
    )


def _power(value: Value, times: int = 1) -> Value:
    """The number of which a value is the logarithm, or of so many times the value."""

    def of(run: Run) -> float | None:
        level = value(run)
        return None if level is None else 10 ** (times * level)

    return of


CLAIM = Claim(
    key="C6",
    title="Batch normalization slows the decay of gradients, for ReLU too",
    statement=(
        "A gradient that goes back through many layers is multiplied by each layer's weights and "
        "by the slope of its nonlinearity, and decays. Batch normalization slows the decay, not "
        "only for a sigmoid, which it keeps away from its flat ends, but for ReLU too, because it "
        "keeps weights and inputs small."
    ),
    sources=(
        Reference(
            "Notes on batch normalization from a Bayesian view (article)",
            "an argument: gradients are products of weights and slopes, and BN keeps both from "
            "decaying by making weights and inputs smaller; no figures are given",
        ),
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §3.3",
            "an argument: with BN the scale of a layer's weights does not change the gradients "
            "handed down, larger weights get smaller gradients, and their growth is stabilised; no "
            "figures are given",
            "https://arxiv.org/abs/1502.03167",
        ),
    ),
    prediction=(
        "The gradient's norm falls by less per layer with BN, for ReLU and for sigmoid; after "
        "training, weights and inputs of the ReLU network are smaller with BN."
    ),
    decision=(
        "All four, without BN less with BN, in log10 per layer, each mattering from 0.05 (a factor "
        "of two over the network): slope of the gradient's norm over the layers, mean of training, "
        "for ReLU and for sigmoid; Frobenius norms of the weights at the end, ReLU; root mean "
        "square of the inputs of layers 2 to 7 at the end, ReLU. 95 % t intervals of the paired "
        "differences."
    ),
    plan=plan,
    judge=judge,
    setup=(("gradients", "with respect to each weight layer's output, before any normalizer"),),
    demo=False,
    differs=(
        "The source argues without an experiment. How fast gradients decay without BN depends on "
        "the first weights; here they are PyTorch's own, under which signals and gradients shrink "
        "from layer to layer. Behind BN the size of a weight changes no output: nothing but weight "
        "decay makes it smaller, and a step along the gradient, which stands at right angles to "
        "it, makes it larger. Smaller weights would also make a plain product of weights decay "
        "faster, not more slowly; what BN hands down is divided by the standard deviation of the "
        "layer's output."
    ),
)
