"""C25: batch normalization smooths the loss, and need not steady the inputs of layers.

The source's two experiments. Along training, loss and gradient are read at ½, 1, 2 and 4 learning
rates along the gradient, on the batch of the step itself. And noise that is drawn anew at each
step, with a mean and a scale of its own for each channel, stands behind every BN: its inputs are
less stable than without BN, and what matters is whether training keeps its lead. Training accuracy
decides, with the noise on, which counts against it: the question is the speed of training, and
running statistics gathered under such noise say nothing about test images.

That the noise makes inputs less stable than they are without BN is true by construction, if there
is enough of it. So it is no part of the claim but the condition on which the speed says something:
it is shown, and where it is not met the question stays open.

Plain SGD, so that a step goes along the gradient. He's first weights, with which the network trains
without BN; the arms with PyTorch's show what the measures say of one that does not.

Pilot runs (seed 100, not used for the verdict): sixteen of 5 s, of four arms at learning rates of
0.05 and 0.1 (taken) with He's and PyTorch's first weights. Range of the loss 2.0 without and 0.3
with BN, change of the gradient 17 and 3.5, training accuracy 68 and 80 %, with noise 77 %. From
PyTorch's weights the network without BN had a range of 0.004 and did not learn.
"""

from __future__ import annotations

import dataclasses

from normkit.lab.claims.claim import Evidence, Preset
from normkit.lab.claims.measures import landscape
from normkit.lab.claims.sources import BJORCK, KOHLER, SANTURKAR, YANG
from normkit.lab.claims.study import (
    BN,
    TRAIN,
    WITH,
    WITHOUT,
    ByArm,
    Endpoint,
    Measure,
    Plan,
    Scale,
    Seeds,
    along,
    define,
    mean_of_epochs,
)

NOISY, NOISE = "with BN, noise after it", landscape.NOISE
FLAT, FLAT_BN = "without BN, PyTorch's weights", "with BN, PyTorch's weights"
HE = {"model_options": (("init", "kaiming"),)}
FEWER: dict[Preset, int] = {"quick": 3, "full": 4, "paper": 5}
SPEED = mean_of_epochs(TRAIN, "mean training accuracy")


UNSTABLE = landscape.SHIFT.at(NOISY) - landscape.SHIFT.at(WITHOUT)


def less_stable(evidence: Evidence) -> bool:
    """Require that the noise makes the inputs less stable than they are without BN."""
    return sum(UNSTABLE.by_seed(evidence).values()) > 0


def smaller(question: str, measure: Measure) -> Endpoint:
    """Ask how many times smaller something of the landscape is with BN."""
    return Endpoint(question, measure.at(WITHOUT) - measure.at(WITH), matters=0.5)


def faster(question: str, arm: str, against: str) -> Endpoint:
    """Ask how much faster an arm learns than another."""
    return Endpoint(question, SPEED.at(arm) - SPEED.at(against), matters=1)


CLAIM = define(
    key="C25",
    title="Batch normalization smooths the loss; it need not steady the inputs",
    topic="training",
    statement="From first weights from which both train, loss and gradient change less along the "
    "gradient with batch normalization, so that a step does what the gradient says. Stable "
    "distributions of the layers' inputs are not what makes it fast: with noise after BN that "
    "makes them less stable than they are without BN, training is still faster.",
    sources=(
        SANTURKAR.says(
            "curves, no figures in the text: with BN the loss and the gradient vary less along the "
            "gradient; BN with noise after it trains as fast as BN, and much faster than without "
            "BN, though its inputs are less stable; the same noise without BN prevents training",
            "§2 and §3, VGG on CIFAR-10",
        ),
        KOHLER.says(
            "another reason: BN lets the length and the direction of a weight be found apart, "
            "which provably speeds up some problems",
        ),
    ),
    prediction="Without BN the range of the loss and the change of the gradient along it are more "
    "than 1.4 times those with BN; with noise after BN the inputs shift more than without BN, and "
    "training accuracy is still higher by a point or more.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=3, train=10_000, test=2_000, epochs=2),
            "full": Scale(seeds=8, train=10_000, test=2_000, epochs=3),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=20),
        },
        arms={
            WITHOUT: {"norm": "none", **HE},
            WITH: {"norm": BN, **HE},
            NOISY: {"norm": "noisy-batch", **HE},
            NOISE: {"norm": "noise", **HE},
            FLAT: {"norm": "none"},
            FLAT_BN: {"norm": BN},
        },
        base={
            "model": "convnet4",
            "size": 16,
            "lr": 0.1,
            "batch_size": 128,
            "probes": (("landscape", 20), ("channels", 20)),
        },
        presets={
            "paper": {"size": 28, "probes": (("landscape", 100), ("channels", 100))},
        },
        seeds=dict.fromkeys((NOISE, FLAT, FLAT_BN), FEWER),
    ),
    decides={
        "loss": smaller(
            "Smooth: how much smaller is the loss's range along the gradient with BN?",
            landscape.RANGE,
        ),
        "gradient": smaller(
            "Predictable: how much less does the gradient change along it with BN?",
            landscape.CHANGE,
        ),
        "faster": dataclasses.replace(
            faster(
                "Faster, though unstable: how much higher is training accuracy, averaged over the "
                "epochs, with noise after BN than without BN?",
                NOISY,
                WITHOUT,
            ),
            provided=less_stable,
        ),
    },
    information={
        "unstable": Endpoint(
            "With noise after BN, how much more do the inputs' means move from look to look than "
            "without BN?",
            UNSTABLE,
            matters=0.05,
        ),
        "smoothness": smaller(
            "How much smaller is the effective smoothness, the gradient's change per distance?",
            landscape.SMOOTHNESS,
        ),
        "relative": smaller(
            "How much less does the gradient change in proportion to its norm?",
            landscape.RELATIVE,
        ),
        "clean": faster("How much higher is training accuracy with BN alone?", WITH, WITHOUT),
        "cost": faster("How much does the noise cost with BN?", WITH, NOISY),
        "alone": faster("How much does the same noise cost without BN?", WITHOUT, NOISE),
        "flat": Endpoint(
            "With PyTorch's first weights, how much wider is the loss's range with BN?",
            landscape.RANGE.at(FLAT_BN) - landscape.RANGE.at(FLAT),
            matters=0.5,
        ),
        "stuck": faster(
            "With PyTorch's first weights, how much higher is training accuracy with BN?",
            FLAT_BN,
            FLAT,
        ),
    },
    sentence="Along the gradient, without BN the loss's range is {loss:x2} times that with BN and "
    "the gradient's change {gradient:x2} times (in proportion to distance {smoothness:x2} times). "
    "With noise after BN minus without BN: how far the inputs' means move from look to look "
    "{unstable} standard deviations, training accuracy {faster} points",
    source_setup={
        "network": "VGG, ReLU",
        "data": "CIFAR-10",
        "steps": "as in its figures; the text quoted here gives no number",
        "figures": "curves only: with BN smoother; with noise after it as fast as with BN",
    },
    figures="without BN over with: range of the loss {loss:x2}, change of the gradient "
    "{gradient:x2}; training accuracy with noise after BN minus without BN {faster} points, BN "
    "alone minus BN with noise {cost}",
    at_scale=(
        SANTURKAR.agrees(
            "BN and BN with noise train alike, both much faster than no BN, which the noise keeps "
            "from training; figures as curves",
            "VGG on CIFAR-10",
        ),
        BJORCK.agrees(
            "without BN large updates make the loss diverge and activations grow with depth; BN's "
            "gain is that it allows larger learning rates",
        ),
        YANG.contradicts(
            "as to great depth: at the first weights of networks without shortcuts BN itself makes "
            "gradients grow exponentially with depth, and very deep ones cannot be trained",
            "dense networks, theory and simulations",
        ),
    ),
    holds="From He's first weights, from which the network without BN trains, the loss's range "
    "along the gradient is {loss:x2} times as wide without BN as with it. From PyTorch's smaller "
    "ones, from which in pilot runs it hardly learned, the range with BN is {flat:x2} times that "
    "without, and training accuracy with BN minus without is {stuck} points. How smooth the loss "
    "is does not by itself decide how fast a network trains. The noise costs BN {cost} points.",
    practice="Use batch normalization for the larger steps that it allows, not to keep activations "
    "steady. Compare it with a network without it whose first weights suit its nonlinearity.",
    charts=(
        *landscape.CHARTS,
        along(TRAIN, "Training accuracy of each epoch, with the noise on", "training accuracy"),
    ),
    tables=(
        ByArm(
            (*landscape.FACTORS, landscape.SHIFT, SPEED),
            "Along the gradient (geometric means), and how fast each arm learns",
            digits=(3, 2, 2, 1, 3, 1),
        ),
        Seeds((landscape.RANGE, landscape.CHANGE, landscape.SHIFT, SPEED, TRAIN)),
    ),
    setup=(
        ("along the gradient", "at ½, 1, 2 and 4 learning rates, on the batch of the step"),
        (
            "noise",
            "anew at each step: by channel a mean within ±0.5 and a scale of 1 to 1.25; by sample "
            "±0.1 around the mean, deviation 0.1 around the scale; none in evaluation",
        ),
    ),
    demo=False,
    differs="The source's network is deeper and its images are in colour; it shows curves. How far "
    "the loss reaches along the gradient depends on the scale of the weights, which behind BN "
    "changes no output, so these measures compare two parametrizations as much as two losses. The "
    "next BN also takes out much of the noise's shift, and without BN nothing does. That "
    "smoothness is the cause of the speed is not tested; others name other causes, such as that BN "
    "separates the length of a weight from its direction (Kohler et al. 2018).",
)
