"""C4: batch normalization generalises better.

A network that merely learned its training images better would score better as well, hence the gap.
"""

from __future__ import annotations

from normkit.lab.claims.measures import alexnet
from normkit.lab.claims.sources import IOFFE
from normkit.lab.claims.study import Endpoint, Seeds, define

CLAIM = define(
    key="C4",
    title="Batch normalization generalises better",
    statement="Trained until both know their training images, AlexNet with batch normalization and "
    "no dropout scores higher on unseen images than plain AlexNet with dropout.",
    sources=(
        alexnet.SOURCE,
        IOFFE.says(
            "a training example is seen with the others of its batch, and the network no longer "
            "gives a fixed value for it, which is good for generalisation",
            "§3.4",
        ),
    ),
    prediction="Both arms come near a training accuracy of 100 %; with BN test accuracy is points "
    "higher and the gap as much narrower.",
    plan=alexnet.plan,
    decides={
        "better": Endpoint(
            "Better: how much higher is late test accuracy with BN than with dropout?",
            alexnet.LATE_TEST.at(alexnet.ONLY_BN) - alexnet.LATE_TEST.at(alexnet.DROPOUT),
            matters=1,
        ),
        "generalises": Endpoint(
            "Generalises: how much narrower with BN is the late gap, training less test accuracy?",
            alexnet.LATE_GAP.at(alexnet.DROPOUT) - alexnet.LATE_GAP.at(alexnet.ONLY_BN),
            matters=1,
        ),
    },
    information={
        "learns": Endpoint(
            "How much higher is late training accuracy with BN?",
            alexnet.LATE_TRAINED.at(alexnet.ONLY_BN) - alexnet.LATE_TRAINED.at(alexnet.DROPOUT),
            matters=1,
        ),
    },
    sentence="Late in training test accuracy is higher with BN than with dropout by {better} "
    "points, and the gap between training and test accuracy narrower by {generalises}; training "
    "accuracy is: {training}",
    say={"training": alexnet.training},
    charts=(alexnet.TEST_CHART, alexnet.TRAINED_CHART, alexnet.GAP_CHART),
    tables=(
        alexnet.LATE_TABLE,
        Seeds(
            (alexnet.LATE_TRAINED, alexnet.LATE_TRAINED_LOSS, alexnet.LATE_TEST, alexnet.LATE_GAP)
        ),
    ),
    colours=alexnet.COLOURS,
    also=("cifar-100",),
    setup=alexnet.SETUP,
    demo=False,
    differs="An arm that does not come near a training accuracy of 100 %, as the claim "
    "presupposes, has a narrow gap for that reason alone: see what each arm's was. The source "
    "trains on all of CIFAR-100; quick and full have a thousand images or fewer of Fashion-MNIST "
    "(of CIFAR-100 five times as many), and an AlexNet with a quarter of its channels. How much "
    "dropout costs or gains depends on how long it is trained and with which optimizer, which the "
    "source does not say.",
)
