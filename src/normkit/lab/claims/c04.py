"""C4: batch normalization generalises better.

Late test accuracy decides. The gap between training and test is shown beside it: it compares a
training accuracy of nearly 100 % with one that dropout holds back, and is narrow for that alone.

That both networks know their images, as the claim says, is no condition of the part: where dropout
holds its arm back, the effect is of test accuracy alone, and test loss says something else.
"""

from __future__ import annotations

from normkit.lab.claims.measures import alexnet
from normkit.lab.claims.sources import BJORCK, IOFFE
from normkit.lab.claims.study import Endpoint, Seeds, define, learned

CLAIM = define(
    key="C4",
    title="Batch normalization generalises better",
    topic="training",
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
    "higher.",
    plan=alexnet.plan,
    decides={
        "better": Endpoint(
            "How much higher is late test accuracy with BN than with dropout?",
            alexnet.LATE_TEST.at(alexnet.ONLY_BN) - alexnet.LATE_TEST.at(alexnet.DROPOUT),
            matters=1,
            provided=learned(alexnet.DROPOUT),
        ),
    },
    information={
        "generalises": Endpoint(
            "How much narrower with BN is the late gap, training minus test accuracy?",
            alexnet.LATE_GAP.at(alexnet.DROPOUT) - alexnet.LATE_GAP.at(alexnet.ONLY_BN),
            matters=1,
        ),
        "loss": Endpoint(
            "How much lower is late test loss with BN?",
            alexnet.LATE_LOSS.at(alexnet.DROPOUT) - alexnet.LATE_LOSS.at(alexnet.ONLY_BN),
            matters=0.05,
        ),
        "learns": Endpoint(
            "How much higher is late training accuracy with BN?",
            alexnet.LATE_TRAINED.at(alexnet.ONLY_BN) - alexnet.LATE_TRAINED.at(alexnet.DROPOUT),
            matters=1,
        ),
    },
    sentence="Late in training, test accuracy with BN minus that with dropout is {better} points. "
    "The gap between training and test accuracy with dropout minus that with BN is {generalises}. "
    "Training accuracy is: {training}",
    say={"training": alexnet.training},
    source_setup={
        "network": "AlexNet: plain with dropout, with BN without",
        "data": "CIFAR-100, 50,000 training images",
        "steps": "100 epochs",
        "figures": "test accuracy about 58 % with BN and 40 % with dropout; training .999 and .973",
    },
    figures="late test accuracy, BN minus dropout: {better} points; gap, dropout minus BN: "
    "{generalises}",
    at_scale=(
        IOFFE.agrees(
            "with BN, and without dropout, with less weight decay and at five and thirty times the "
            "rate, Inception ends at 73.0 and 74.8 %, against 72.2 without BN",
            "Inception on ImageNet, §4.2",
        ),
        BJORCK.contradicts(
            "as to one rate for both, as here: at matching rates networks with and without BN "
            "reach comparable test accuracy; with the larger rates that BN allows it is higher",
            "ResNet with 110 layers on CIFAR-10, figure 1",
        ),
    ),
    holds="On few images, seen many times, BN without dropout differs from dropout without BN by "
    "{better} points of test accuracy. Their training accuracies differ by {learns} points: the "
    "claim is about networks that both know their training images. Late test loss with dropout "
    "minus that with BN is {loss} nats.",
    practice="Try batch normalization without dropout first. Compare test accuracies and not "
    "gaps, because a network that learns less has a narrower gap.",
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
