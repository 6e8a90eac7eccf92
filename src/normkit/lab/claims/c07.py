"""C7: γ and β give back the capacity that normalising takes.

Capacity is what a network can fit, so LeNet-5 sees few images many times, at a rate that falls to
nothing, and its training loss decides. The source argues with a sigmoid, whose linear part bare BN
would confine its inputs to; ReLU, which passes a positive factor on, stands beside it.

Pilot runs (seed 100, not used for the verdict): eight. The first four, of 10,000 images in six
epochs at a constant rate, measured the speed of learning, hence fewer images and more epochs.
"""

from __future__ import annotations

from normkit.lab.claims.sources import ARTICLE, FRANKLE, IOFFE
from normkit.lab.claims.study import (
    BN,
    NATS,
    NUMBER,
    TEST,
    TRAIN_LOSS,
    ByArm,
    Curves,
    Endpoint,
    Measure,
    Plan,
    Scale,
    Seeds,
    Series,
    define,
    last,
)
from normkit.lab.runs import Run

AFFINE, BARE, PLAIN = "γ and β", "no γ, no β", "ReLU, no BN"
FORMS = {AFFINE: {}, BARE: {"model_options": (("affine", False),)}}
ACTS = {"sigmoid": {"act": "sigmoid", "lr": 0.1}, "ReLU": {"act": "relu", "lr": 0.05}}
LOOKS = {"quick": 20, "full": 60, "paper": 6_000}  # steps from one to the next
LOSS = last("epoch_train_loss", "training loss", NATS)


def width(run: Run) -> float | None:
    """Standard deviation of what the first two nonlinearities are given, at the last look."""
    first, second = (run.last(f"activation{site}_std") for site in (1, 2))
    return None if first is None or second is None else (first + second) / 2


WIDTH = Measure("standard deviation of the inputs", width, NUMBER)


def fits(act: str) -> Endpoint:
    """Ask how much better a network with this activation fits with γ and β."""
    return Endpoint(
        f"With {act}: how much do γ and β lower the last epoch's training loss?",
        TRAIN_LOSS.at(f"{act}, {BARE}") - TRAIN_LOSS.at(f"{act}, {AFFINE}"),
        matters=0.01,
    )


CLAIM = define(
    key="C7",
    title="γ and β give back capacity that normalising takes",
    topic="architecture",
    statement="Normalising a layer's output limits what the network can represent: a sigmoid whose "
    "inputs have mean 0 and variance 1 stays in its linear part. γ and β give that capacity back.",
    sources=(
        IOFFE.says(
            "an argument: normalising the inputs of a sigmoid would constrain it to its linear "
            "regime; γ and β let the transformation represent the identity; no figures are given",
            "§3",
        ),
        ARTICLE.says("a layer with learnable γ and β; no figures without them", "§2.1"),
    ),
    prediction="With γ and β a network that sees few images many times reaches a lower training "
    "loss than without, with sigmoid; with ReLU by less, if at all.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=2_000, test=1_000, epochs=8),
            "full": Scale(seeds=6, train=3_000, test=2_000, epochs=16),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=100),
        },
        arms={
            **{f"{act}, {form}": ACTS[act] | FORMS[form] for act in ACTS for form in FORMS},
            PLAIN: ACTS["ReLU"] | {"norm": "none"},  # with sigmoid it hardly learns: C5
        },
        base={
            "model": "lenet5",
            "norm": BN,
            "momentum": 0.9,
            "schedule": "cosine",
            "batch_size": 100,
            "probes": lambda at: (("activations", LOOKS[at.preset]),),
        },
        seeds={PLAIN: {"quick": 0}},
    ),
    decides={"sigmoid": fits("sigmoid")},
    information={
        "ReLU": fits("ReLU"),
        **{
            f"{act} test": Endpoint(
                f"How much higher is test accuracy with γ and β, {act}?",
                TEST.at(f"{act}, {AFFINE}") - TEST.at(f"{act}, {BARE}"),
                matters=1,
            )
            for act in ACTS
        },
        "wider": Endpoint(
            "How much wider do γ and β make the sigmoids' inputs?",
            WIDTH.at(f"sigmoid, {AFFINE}") - WIDTH.at(f"sigmoid, {BARE}"),
            matters=0.1,
            unit="standard deviation",
        ),
        "takes": Endpoint(
            "How much higher is the training loss with bare BN than with none, ReLU?",
            TRAIN_LOSS.at(f"ReLU, {BARE}") - TRAIN_LOSS.at(PLAIN),
            matters=0.01,
        ),
    },
    sentence="The last epoch's training loss without γ and β minus that with them is {sigmoid} "
    "nats with sigmoid and {ReLU} with ReLU",
    source_setup={
        "network": "none: an argument about a sigmoid",
        "data": "none",
        "steps": "none",
        "figures": "none given",
    },
    figures="training loss of the last epoch, without γ and β minus with: {sigmoid} nats with "
    "sigmoid, {ReLU} with ReLU",
    at_scale=(
        FRANKLE.agrees(
            "γ and β add 0.5 to 2 points of accuracy on CIFAR-10 and 2 on ImageNet",
            "ResNets, figure 1",
        ),
        FRANKLE.agrees(
            "as to what γ and β can do: trained alone, with all other weights random and frozen, "
            "they reach 82 % on CIFAR-10",
            "deep ResNets",
        ),
    ),
    holds="With sigmoid, leaving γ and β out changes the training loss by {sigmoid} nats, and "
    "having them changes the width of the sigmoid's inputs by {wider} standard deviations. With "
    "ReLU, where the next layer's weights can do what γ does, leaving them out changes the loss by "
    "{ReLU} nats, and BN without them minus no BN is {takes}.",
    practice="Keep γ and β before a sigmoid. Leave out only the bias of the layer before, which β "
    "replaces.",
    charts=[
        Curves(
            f"loss-{act.lower()}",
            f"Training loss with {act}, with and without γ and β",
            "epoch",
            "cross-entropy",
            NATS,
            series=[Series(f"{act}, {form}", LOSS.curve) for form in (AFFINE, BARE, "no BN")],
            y_log=True,  # late, the losses differ by hundredths
        )
        for act in ACTS
    ],
    tables=(
        ByArm(
            (TRAIN_LOSS, last("epoch_train_accuracy", "training accuracy"), TEST, WIDTH),
            "What each network fits, last epoch (the source gives no figures)",
        ),
        Seeds((TRAIN_LOSS, TEST, WIDTH)),
    ),
    setup=(("inputs", "of the nonlinearities after the two convolutions, after γ and β"),),
    demo=False,
    differs="The source speaks of what a layer can represent, which is not the same as what "
    "training finds. After each normalizer comes another layer with weights and a bias: with ReLU, "
    "which passes a positive factor on, the next weights can do all that γ does, which leaves β. "
    "And a normalised input is not confined to a sigmoid's linear part: its tails reach beyond.",
)
