"""C8: batch normalization regularises, but does not replace dropout late in training.

Late test loss decides on BN, for it rises where a network overfits though accuracy stays; late test
accuracy on dropout, which lowers the loss by making the network less sure as well. The gap decides
nothing: it narrows by learning less, too.
"""

from __future__ import annotations

import functools

from normkit.lab.claims.measures import alexnet
from normkit.lab.claims.sources import IOFFE, NOTES, WU_JOHNSON
from normkit.lab.claims.study import (
    TEST,
    TEST_LOSS,
    Endpoint,
    Seeds,
    along,
    define,
    learned,
    quarter,
)

EARLY_TEST = quarter(TEST, "early test accuracy", late=False)

CLAIM = define(
    key="C8",
    title="Batch normalization regularises, but does not replace dropout late in training",
    topic="training",
    statement="Batch normalization narrows the gap between training and test. In a large network "
    "that trains for long it is not enough: late in training dropout still helps.",
    sources=(
        NOTES.says(
            "BN acts as a regulariser; in a large network late in training it does not replace "
            "dropout; no figures of the four arms are given"
        ),
        alexnet.SOURCE,
        IOFFE.says(
            "with BN, dropout can be removed or reduced in strength; without dropout, modified "
            "BN-Inception does not overfit more",
            "§3.4 and §4.2.1",
        ),
    ),
    prediction="Late in training test loss is lower with BN than with neither, and "
    "test accuracy is higher with BN and dropout than with BN alone.",
    plan=functools.partial(alexnet.plan, arms=tuple(alexnet.PLAN.arms)),
    decides={
        "regularises": Endpoint(
            "Regularises: how much lower is late test loss with BN than with neither?",
            alexnet.LATE_LOSS.at(alexnet.NEITHER) - alexnet.LATE_LOSS.at(alexnet.ONLY_BN),
            matters=0.05,
            provided=learned(alexnet.ONLY_BN),
        ),
        "helps": Endpoint(
            "Does not replace dropout: how much does dropout add to BN's late test accuracy?",
            alexnet.LATE_TEST.at(alexnet.BOTH) - alexnet.LATE_TEST.at(alexnet.ONLY_BN),
            matters=0.5,
            provided=learned(alexnet.ONLY_BN),
        ),
    },
    information={
        "last": Endpoint(
            "Behind the last normalization alone, before the output: how much does dropout add to "
            "BN's late test accuracy?",
            alexnet.LATE_TEST.at(alexnet.LAST) - alexnet.LATE_TEST.at(alexnet.ONLY_BN),
            matters=0.5,
        ),
        "accuracy": Endpoint(
            "How much higher is late test accuracy with BN than with neither?",
            alexnet.LATE_TEST.at(alexnet.ONLY_BN) - alexnet.LATE_TEST.at(alexnet.NEITHER),
            matters=0.5,
        ),
        "gap": Endpoint(
            "How much narrower is the late gap between training and test accuracy with BN than "
            "with neither?",
            alexnet.LATE_GAP.at(alexnet.NEITHER) - alexnet.LATE_GAP.at(alexnet.ONLY_BN),
            matters=0.5,
        ),
        "early": Endpoint(
            "How much does it add early, in the first quarter of the epochs?",
            EARLY_TEST.at(alexnet.BOTH) - EARLY_TEST.at(alexnet.ONLY_BN),
            matters=0.5,
        ),
        "narrows": Endpoint(
            "How much does dropout narrow BN's late gap?",
            alexnet.LATE_GAP.at(alexnet.ONLY_BN) - alexnet.LATE_GAP.at(alexnet.BOTH),
            matters=0.5,
        ),
        "loss": Endpoint(
            "By how much does dropout lower BN's late test loss?",
            alexnet.LATE_LOSS.at(alexnet.ONLY_BN) - alexnet.LATE_LOSS.at(alexnet.BOTH),
            matters=0.05,
        ),
    },
    sentence="Late in training, with neither minus with BN: test loss {regularises} nats, gap "
    "between training and test accuracy {gap} points. Dropout changes BN's late test accuracy by "
    "{helps} points (early in training {early}), and behind the last normalization alone by "
    "{last}. Late training accuracy is: {training}",
    say={"training": alexnet.training},
    source_setup={
        "network": "“a large network”",
        "data": "not named",
        "steps": "“late in training”",
        "figures": "none of the four arms",
    },
    figures="late test loss, neither minus BN: {regularises} nats; late test accuracy, BN and "
    "dropout minus BN: {helps} points",
    at_scale=(
        IOFFE.contradicts(
            "as to dropout: modified BN-Inception does without it and does not overfit more",
            "Inception on ImageNet, §4.2.1",
        ),
        WU_JOHNSON.agrees(
            "as to regularising: from normalization batch sizes of 128 to 1024, where BN's noise "
            "gets small, training error falls from 9.1 to 8.5 % and validation error rises from "
            "23.4 to 23.7",
            "ResNet-50 on ImageNet",
        ),
    ),
    holds="On few images, seen many times, late test loss with neither minus that with BN is "
    "{regularises} nats. Adding dropout to BN changes late test accuracy by {helps} points, and "
    "early in training by {early}; test loss with BN alone minus that with both is {loss} nats. "
    "Li et al. 2018 warn of dropout before a normalization, as it stands there; behind the last "
    "one, before the output, it changes late test accuracy by {last} points. With BN minus with "
    "neither it is {accuracy}.",
    practice="With batch normalization, add dropout only if a comparison on validation data shows "
    "that it helps, and try it behind the last normalization: before one, the variance in "
    "training is not that in evaluation (Li et al. 2018).",
    charts=(
        along(
            TEST_LOSS,
            "Test loss after each epoch: where it rises, the network overfits",
            "cross-entropy",
            "loss",
            band="range",
            y_log=True,
        ),
        alexnet.TEST_CHART,
        alexnet.GAP_CHART,
    ),
    tables=(
        alexnet.LATE_TABLE,
        Seeds((alexnet.LATE_TRAINED, alexnet.LATE_TEST, alexnet.LATE_GAP, alexnet.LATE_LOSS)),
    ),
    colours=alexnet.COLOURS,
    setup=alexnet.SETUP,
    demo=False,
    differs="Of the large network and the long training that the source speaks of, quick and full "
    "are a small stand-in: a thousand images or fewer, and a quarter of AlexNet's channels. Where "
    "all arms know their training images, the gap says the same as test accuracy; and BN alone may "
    "leave little for dropout to add.",
)
