"""C6: batch normalization slows the decay of gradients through layers, for ReLU too.

The source argues, and gives neither a network nor figures. Here four convolutions and three dense
layers, one after the other, are trained with the optimizer of the same source's recipe for Caffe.
In the training step itself each weight layer is read: the norm of the loss's gradient with respect
to its output (before BN), the Frobenius norm of its weight, and the root mean square of its input.
What matters is a factor of two over the whole network, 0.05 decades per layer.

Effect and mechanism are parts of their own: that gradients decay less, for both activations; and
that weights and inputs are smaller, for ReLU alone, about which the source says so.

Pilot runs (seed 100, not used for the verdict): fourteen short ones, for image size, rate, batch
size and epochs, such that ReLU without BN leaves guessing within the quick preset.
"""

from __future__ import annotations

from normkit.lab.claims.measures import layers
from normkit.lab.claims.sources import BAYES_NOTES, IOFFE, YANG
from normkit.lab.claims.study import (
    ON_AND_OFF,
    TEST,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    ByArm,
    Endpoint,
    Measure,
    Plan,
    Scale,
    Seeds,
    define,
)

RELU, SIGMOID = "ReLU", "sigmoid"
DECAY, DECAY_AT_END = layers.DECAY, layers.DECAY_AT_END
WEIGHTS, INPUTS = layers.WEIGHTS, layers.INPUTS


def smaller(question: str, measure: Measure, act: str) -> Endpoint:
    """Ask how much smaller a measure is with BN."""
    change = measure.at(f"{act} {WITHOUT}") - measure.at(f"{act} {WITH}")
    return Endpoint(question, change, matters=0.05)


CLAIM = define(
    key="C6",
    title="Batch normalization slows the decay of gradients, for ReLU too",
    topic="training",
    statement="A gradient that goes back through many layers is multiplied by each layer's weights "
    "and by the slope of its nonlinearity, and decays. Batch normalization slows the decay, not "
    "only for a sigmoid, which it keeps away from its flat ends, but for ReLU too. It does so, the "
    "source says, by keeping weights and inputs small.",
    sources=(
        BAYES_NOTES.says(
            "an argument: gradients are products of weights and slopes, and BN keeps both from "
            "decaying by making weights and inputs smaller; no figures are given"
        ),
        IOFFE.says(
            "an argument: with BN the scale of a layer's weights does not change the gradients "
            "handed down, larger weights get smaller gradients, and their growth is stabilised; no "
            "figures are given",
            "§3.3",
        ),
    ),
    prediction="The gradient's norm falls by less per layer with BN, for ReLU and for sigmoid; "
    "after training, weights and inputs of the ReLU network are smaller with BN. (The first "
    "edition saw no smaller weights.)",
    plan=Plan(
        scales={
            "quick": Scale(seeds=5, train=5_000, test=1_000, epochs=4),
            "full": Scale(seeds=6, train=10_000, test=2_000, epochs=5),
            "paper": Scale(seeds=10, train=60_000, test=10_000, epochs=20),
        },
        arms={
            f"{act} {on}": {**fields, "act": act.lower()}
            for act in (RELU, SIGMOID)
            for on, fields in ON_AND_OFF.items()
        },
        base={
            "model": "convnet4",
            "lr": 0.02,
            "momentum": 0.9,
            "weight_decay": 0.004,
            "batch_size": 50,
        },
        presets={
            "quick": {"size": 16, "probes": (("layers", 20),)},
            "full": {"size": 16, "probes": (("layers", 40),)},
            "paper": {"size": 28, "probes": (("layers", 1_000),)},
        },
    ),
    decides={
        "relu": smaller("Effect, ReLU: how much less do gradients decay with BN?", DECAY, RELU),
        "sigmoid": smaller(
            "Effect, sigmoid: how much less do gradients decay with BN?", DECAY, SIGMOID
        ),
        "weights": smaller(
            "Mechanism, ReLU: how much smaller are the weights at the end?", WEIGHTS, RELU
        ),
        "inputs": smaller(
            "Mechanism, ReLU: how much smaller are the layers' inputs at the end?", INPUTS, RELU
        ),
    },
    information={
        "relu_end": smaller("Decay at the last step, ReLU: how much less?", DECAY_AT_END, RELU),
        "sigmoid_end": smaller(
            "Decay at the last step, sigmoid: how much less?", DECAY_AT_END, SIGMOID
        ),
        "weights_sigmoid": smaller("Weights, sigmoid: how much smaller?", WEIGHTS, SIGMOID),
        "inputs_sigmoid": smaller("Inputs, sigmoid: how much smaller?", INPUTS, SIGMOID),
    },
    sentence="Decay of the gradient, in decades per layer, without BN minus with: {relu} with ReLU "
    "({relu_levels}; negative: it grows) and {sigmoid} with sigmoid ({sigmoid_levels}). At the "
    "end of training the ReLU network's weights without BN are {weights:x10} times those with BN, "
    "and the inputs of its layers {inputs:x10} times, by the geometric mean",
    say={"relu_levels": layers.decays(RELU), "sigmoid_levels": layers.decays(SIGMOID)},
    source_setup={
        "network": "none: an argument",
        "data": "none",
        "steps": "none",
        "figures": "none given",
    },
    figures="without BN minus with, in decades per layer: decay {relu} with ReLU and {sigmoid} "
    "with sigmoid; in decades: weights {weights}, inputs {inputs}",
    at_scale=(
        YANG.contradicts(
            "as to the first step: behind BN gradients grow exponentially with depth, whatever the "
            "variance of the first weights, so that deep networks with BN and without shortcuts "
            "cannot be trained",
            "theory of wide dense networks, tried on MNIST",
        ),
    ),
    holds="In seven layers that start from PyTorch's weights, under which gradients shrink "
    "without BN, their decay without BN minus that with BN is {relu} decades a layer with ReLU "
    "and {sigmoid} with sigmoid. Of the mechanism, without BN minus with: inputs {inputs} "
    "decades, weights {weights} (negative: larger with BN); with sigmoid inputs {inputs_sigmoid}, "
    "weights {weights_sigmoid}. That is at the end of training; at its first step, where "
    "gradients decay most, inputs are larger with BN.",
    practice="Where gradients vanish, normalize. Look at the gradients layer by layer, not at the "
    "weights.",
    charts=(
        layers.along_layers("gradient-first", "first step", min),
        layers.along_layers("gradient-last", "end of training", max),
        layers.along_training("weight", "norm of a layer's weight"),
        layers.along_training("input", "root mean square of a layer's input"),
    ),
    tables=(
        ByArm(
            (
                layers.DECAY_AT_START,
                DECAY,
                DECAY_AT_END,
                layers.power(WEIGHTS, "product of the weights' norms, end", 7),
                layers.power(INPUTS, "inputs' root mean square, end"),
                TEST,
            ),
            "How gradients decay, and what weights and inputs become (the source gives no figures)",
            digits=(2, 2, 2, 0, 2, 1),
        ),
        Seeds((DECAY, DECAY_AT_END, WEIGHTS, INPUTS, TRAIN_LOSS, TEST)),
    ),
    setup=(("gradients", "with respect to each weight layer's output, before any normalizer"),),
    demo=False,
    differs="The source argues without an experiment. How fast gradients decay without BN depends "
    "on the first weights; here they are PyTorch's own, under which signals and gradients shrink "
    "from layer to layer. Behind BN the size of a weight changes no output: nothing but weight "
    "decay makes it smaller, and a step along the gradient, which stands at right angles to it, "
    "makes it larger. Smaller weights would also make a plain product of weights decay faster, not "
    "more slowly; what BN hands down is divided by the standard deviation of the layer's output.",
)
