"""C2: batch normalization keeps each layer's inputs close to N(0, 1), and steady over training.

Every few steps, in the training step itself, the input of the nonlinearity after each convolution
is described by its quantiles, after γ and β: what the layer is really given. Both runs of a pair
see the same batch at each step.

The source does not give its optimizer. The first setting (rate 0.1, no momentum, batch size 256,
two epochs in quick) was given up after a pilot run of the network without BN (seed 100, not used
for the verdict), because a network that does not learn would be steady for the wrong reason.
"""

from __future__ import annotations

from normkit.lab.claims.claim import Preset
from normkit.lab.claims.measures.densities import DISTANCE, LAYERS, WANDERING, density_chart
from normkit.lab.claims.sources import ARTICLE, IOFFE, SANTURKAR
from normkit.lab.claims.study import (
    MAGNITUDE,
    ON_AND_OFF,
    TEST,
    WITH,
    WITHOUT,
    Curves,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    along_steps,
    define,
)

EVERY: dict[Preset, int] = {"quick": 12, "full": 40, "paper": 50}
"""Every how many steps the inputs are read."""

CLAIM = define(
    key="C2",
    title="Batch normalization keeps each layer's inputs near N(0, 1)",
    topic="training",
    statement="With batch normalization, what each layer's nonlinearity is given keeps mean 0 and "
    "standard deviation 1, and changes little while the network trains.",
    sources=(
        ARTICLE.says(
            "histograms of the activations of the four convolutions against the normal density, "
            "with and without BN; no figures are given",
            "4-layer convolutional network",
        ),
        IOFFE.says(
            "on MNIST, the quantiles of a sigmoid's inputs stay put with BN and wander without",
            "§4.1 and figure 1",
        ),
    ),
    prediction="With BN the distance to N(0, 1) is small and flat along training; without, it is "
    "large and grows or wanders.",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=10_000, test=2_000, epochs=3),
            "full": Scale(seeds=6, train=10_000, test=2_000, epochs=4),
            "paper": Scale(seeds=20, train=60_000, test=10_000, epochs=5),
        },
        arms=ON_AND_OFF,
        base={
            "model": "convnet4",
            "lr": 0.02,
            "momentum": 0.9,
            "batch_size": 128,
            "probes": lambda at: (("activations", EVERY[at.preset]),),
        },
    ),
    decides={
        "close": Endpoint(
            "Close: how much nearer to N(0, 1) are the inputs of the nonlinearities with BN, "
            "averaged over layers and training?",
            DISTANCE.at(WITHOUT) - DISTANCE.at(WITH),
            matters=0.05,
            unit="Wasserstein-1 distance",
        ),
        "steady": Endpoint(
            "Steady: how much less do they wander with BN, over training, around their layer's "
            "average?",
            WANDERING.at(WITHOUT) - WANDERING.at(WITH),
            matters=0.02,
            unit="standard deviations of the layer's average distribution",
        ),
    },
    sentence="Without BN minus with, for the inputs of the four nonlinearities: distance to "
    "N(0, 1) {close}; wandering over training {steady} of their standard deviation",
    source_setup={
        "network": "4-layer convolutional network",
        "data": "Fashion-MNIST, 60,000 training images",
        "steps": "not given",
        "figures": "histograms beside the normal density; no numbers",
    },
    figures="without BN minus with: distance to N(0, 1) {close}, wandering {steady}",
    at_scale=(
        IOFFE.agrees(
            "the quantiles of a sigmoid's inputs stay put with BN and wander without, over 50,000 "
            "steps",
            "three dense layers on MNIST, §4.1",
        ),
        SANTURKAR.contradicts(
            "as to steady: with BN the inputs' distributions are hardly steadier than without; and "
            "with noise after BN, which makes them less steady, training is as fast as with BN",
            "VGG on CIFAR-10, §2",
        ),
    ),
    holds="Of what each nonlinearity is given, after γ and β and averaged over training, the "
    "network without BN has a distance to N(0, 1) that differs by {close} from that with BN, and "
    "a wandering that differs by {steady} (positive: BN is nearer, or steadier). Why networks "
    "with BN train better is another question (C25).",
    practice="Do not take steady activations for the reason why batch normalization helps (C25), "
    "and do not take unsteady ones for a fault.",
    charts=(
        Curves(
            "distance",
            "Distance of the nonlinearities' inputs to N(0, 1)",
            "step",
            "Wasserstein-1 distance, mean of four layers",
            MAGNITUDE,
            DISTANCE.curve,
            markers=False,
        ),
        *map(density_chart, LAYERS),
        *(
            along_steps(
                f"activation{layer}_std",
                f"Standard deviation of what follows convolution {layer}",
                "standard deviation",
                MAGNITUDE,
            )
            for layer in LAYERS
        ),
    ),
    tables=(Seeds((DISTANCE, WANDERING, TEST)),),
    setup=(
        (
            "chosen after a trial",
            "learning rate, momentum, batch size, epochs and reading interval, on the network "
            "without BN alone, so that it learns at all; the endpoints were not changed",
        ),
    ),
    differs="The source shows histograms and gives no figures. The inputs are read after γ and β, "
    "which move them away from mean 0 and standard deviation 1 on purpose, and how far depends on "
    "learning rate and length of training. That BN keeps them near is certain only of what γ and β "
    "are given.",
)
