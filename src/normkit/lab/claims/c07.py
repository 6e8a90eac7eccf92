"""C7: γ and β give back the capacity that normalising takes.

The source's argument: normalising a layer's output changes what the layer can represent. A sigmoid
whose inputs all have mean 0 and variance 1 works in its linear part, and a network of linear
layers is one linear layer. γ and β let the layer undo the normalisation where that is better.

LeNet-5 is trained with BN, with γ and β and without (``affine=False``), with sigmoid and with ReLU.
Capacity is what a network can fit, so it sees few images (3,000; 2,000 in quick), many times, with
a learning rate that falls to nothing (cosine), and the measure is its training loss. SGD at 0.1
with sigmoid and 0.05 with ReLU, momentum 0.9, batches of 100.

Both parts must hold for *supported*, as the source says it of BN and not of sigmoid alone.
Endpoint of each, fixed before any seed of the claim was run:

* mean training loss of the last epoch, as the network saw its batches while it learned from them,
  without γ and β less with them, seed by seed; the smallest difference that would matter is 0.01
  nats.

For information: test accuracy after the last epoch; by how much γ and β make the inputs of the
first two sigmoids wider than the standard deviation of 1 that normalising leaves; and, in the full
preset only, the same network with ReLU and without BN, which says whether normalising takes
capacity at all (with sigmoid it hardly learns, as C5 shows, so its loss would say nothing).

Eight runs with seed 100, none of the claim's, were made before. The first four, of 10,000 images in
six epochs at a constant rate, measured how fast a network learns rather than what it can fit, so
fewer images, more epochs and the falling rate were chosen. The endpoint was not changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import fmean

from normkit.lab.claims.claim import Arms, Available, Claim, Evidence, Judgement, Preset, Scale
from normkit.lab.claims.parts import BN, differences, figures, final_loss, metric_chart, seed_table
from normkit.lab.claims.sweeps import mean_of
from normkit.lab.config import RunConfig
from normkit.lab.findings import Chart, Comparison, Reference, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import paired_test

SMALLEST = 0.01
RELU, SIGMOID = "ReLU", "sigmoid"
AFFINE, BARE, PLAIN = "γ and β", "no γ, no β", "no BN"
RATES = {SIGMOID: 0.1, RELU: 0.05}

SCALES: dict[Preset, Scale] = {
    "quick": Scale(seeds=5, train=2_000, test=1_000, epochs=8),
    "full": Scale(seeds=6, train=3_000, test=2_000, epochs=16),
    "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=100),
}
LOOKS: dict[Preset, int] = {"quick": 20, "full": 60, "paper": 6_000}
"""Every how many steps the sigmoids' inputs are looked at; the last step is one of them."""

Value = Callable[[Run], float | None]


def arm(act: str, form: str) -> str:
    """The name of an arm.

    >>> arm(SIGMOID, AFFINE)
    'sigmoid, γ and β'
    """
    return f"{act}, {form}"


def plan(preset: Preset, available: Available) -> Arms:
    """LeNet-5 with sigmoid and with ReLU, affine on and off, seed by seed."""
    scale = SCALES[preset]
    forms = [(act, form) for act in RATES for form in (AFFINE, BARE)]
    if preset != "quick":
        forms.append((RELU, PLAIN))
    return [
        (
            arm(act, form),
            RunConfig(
                model="lenet5",
                norm="none" if form == PLAIN else BN,
                act=act.lower(),
                model_options=(("affine", False),) if form == BARE else (),
                lr=RATES[act],
                momentum=0.9,
                schedule="cosine",
                batch_size=100,
                epochs=scale.epochs,
                seed=seed,
                probes=(("activations", LOOKS[preset]),),
                **available.at_most(scale.train, scale.test),
            ),
        )
        for seed in range(scale.seeds)
        for act, form in forms
    ]


def accuracy(run: Run) -> float | None:
    """Test accuracy after the last epoch."""
    return run.last("test_accuracy")


def width(run: Run) -> float | None:
    """Standard deviation of what the first two nonlinearities are given, at the last look."""
    found = [run.last(f"activation{site}_std") for site in (1, 2)]
    values = [value for value in found if value is not None]
    return fmean(values) if len(values) == len(found) else None


def judge(evidence: Evidence) -> Judgement:
    """Compare without and with γ and β, seed by seed, for each activation."""
    off_on = {act: evidence.pairs(arm(act, BARE), arm(act, AFFINE)) for act in RATES}
    on_off = {act: evidence.pairs(arm(act, AFFINE), arm(act, BARE)) for act in RATES}

    lower = "With {} (decides): how much lower do γ and β bring the last epoch's training loss?"
    losses = {
        act: paired_test(
            lower.format(act),
            differences(pairs, final_loss),
            unit="cross-entropy, nats",
            smallest=SMALLEST,
        )
        for act, pairs in off_on.items()
    }
    scores = [
        paired_test(
            f"For information: how much higher is test accuracy with γ and β, {act}?",
            differences(pairs, accuracy),
            unit="accuracy",
            smallest=SMALLEST,
        )
        for act, pairs in on_off.items()
    ]
    wider = paired_test(
        "For information: how much wider do γ and β make the sigmoids' inputs?",
        differences(on_off[SIGMOID], width),
        unit="standard deviation",
        smallest=0.1,
    )
    count = evidence.coverage(min(map(len, off_on.values())))
    return Judgement(
        sentence=(
            f"With γ and β the training loss of the last epoch is lower by "
            f"{figures(losses[SIGMOID], digits=3)} nats with sigmoid and "
            f"{figures(losses[RELU], digits=3)} with ReLU (negative: higher; {count}, 95 % "
            "intervals)."
        ),
        decides=[losses[SIGMOID], losses[RELU]],
        information=[*scores, wider, _takes(evidence)],
        charts=[chart for chart in (_chart(evidence, act) for act in RATES) if chart],
        tables=(
            _arms_table(evidence),
            seed_table(
                evidence,
                (
                    ("last training loss", final_loss),
                    ("last test accuracy", accuracy),
                    ("standard deviation of the inputs", width),
                ),
            ),
        ),
    )


def _takes(evidence: Evidence) -> Comparison | None:
    """What normalising alone takes or gives; None in a preset without the plain network."""
    return paired_test(
        "For information: how much higher is the training loss with bare BN than with none, ReLU?",
        differences(evidence.pairs(arm(RELU, BARE), arm(RELU, PLAIN)), final_loss),
        unit="cross-entropy, nats",
        smallest=SMALLEST,
    )


def _chart(evidence: Evidence, act: str) -> Chart | None:
    """Training loss by epoch, of the arms with this activation."""
    chart = metric_chart(
        dataclasses.replace(
            evidence, planned=tuple(p for p in evidence.planned if p.arm.startswith(act))
        ),
        "epoch_train_loss",
        key=f"loss-{act.lower()}",
        title=f"Training loss with {act}, with and without γ and β",
        y_label="cross-entropy (nats)",
    )
    # Late in training, where capacity shows, the losses differ by hundredths.
    return chart and dataclasses.replace(chart, y_log=True)


def _arms_table(evidence: Evidence) -> Table:
    """Each arm's figures; the source has none to print beside them."""
    columns = (
        ("training loss, last epoch", final_loss),
        ("training accuracy", lambda run: run.last("epoch_train_accuracy")),
        ("test accuracy", accuracy),
        ("standard deviation of the inputs", width),
    )
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in evidence.arms:
        means = [mean_of(evidence.of(name), value) for _, value in columns]
        rows.append((name, *(None if mean is None else round(mean, 4) for mean in means)))
    return Table(
        "arms",
        "What each network fits (the source gives no figures)",
        ("arm", *(name for name, _ in columns)),
        tuple(rows),
    )


CLAIM = Claim(
    key="C7",
    title="γ and β give back capacity that normalising takes",
    statement=(
        "Normalising what a layer gives out limits what the network can represent: a sigmoid whose "
        "inputs have mean 0 and variance 1 stays in its linear part. The learned γ and β give that "
        "capacity back."
    ),
    sources=(
        Reference(
            "Ioffe & Szegedy 2015, Batch Normalization, §3",
            "an argument: normalising the inputs of a sigmoid would constrain it to its linear "
            "regime; γ and β let the transformation represent the identity; no figures are given",
            "https://arxiv.org/abs/1502.03167",
        ),
        Reference(
            "An implementation of batch normalization in PyTorch (article), §2.1",
            "a layer with learnable γ and β; no figures without them",
        ),
    ),
    prediction=(
        "With γ and β a network that sees few images many times reaches a lower training loss than "
        "without, with sigmoid and with ReLU."
    ),
    decision=(
        "Both: mean training loss of the last epoch, without γ and β less with, for sigmoid and "
        "for ReLU (each matters from 0.01 nats); 95 % t intervals of the paired differences."
    ),
    plan=plan,
    judge=judge,
    setup=(("inputs", "of the nonlinearities after the two convolutions, after γ and β"),),
    demo=False,
    differs=(
        "The source speaks of what a layer can represent, which is not the same as what training "
        "finds. After each normalizer here comes another layer with weights and a bias of its own: "
        "with ReLU, which passes a positive factor on, the next weights can do all that γ does, "
        "and what is left of the argument is β. And a normalised input is not confined to a "
        "sigmoid's linear part: its tails reach beyond it."
    ),
)
