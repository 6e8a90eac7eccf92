"""C1: batch normalization converges faster and lower.

Both arms use one learning rate, the source's; what each does at its own best rate is C3's question.
The moving average decides, since that is what the source evaluated with; population statistics of
the same weights stand beside it.
"""

from __future__ import annotations

from normkit.lab.claims.sources import ARTICLE, BJORCK, IOFFE, figures
from normkit.lab.claims.study import (
    BN,
    NATS,
    TEST,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    Series,
    along,
    along_steps,
    define,
    last,
    mean_of_epochs,
    population,
    published,
    while_training,
)

ACCURACY = mean_of_epochs(TEST, "mean test accuracy")
RECALIBRATED = last("test_accuracy", "with population statistics", under=while_training)
MEAN_RECALIBRATED = mean_of_epochs(RECALIBRATED, "mean, population statistics")
EVALUATED = {"norm": BN, "evaluations": population(10_000, 256)}
PUBLISHED = {
    WITH: (88.59, 89.76, 90.13, 90.40, 90.23),
    WITHOUT: (85.92, 87.34, 87.51, 88.10, 88.95),
}
PLAN = Plan(
    scales={
        "quick": Scale(seeds=5, train=20_000, test=10_000, epochs=5),
        "full": Scale(seeds=10, train=30_000, test=10_000, epochs=5),
        "paper": Scale(seeds=20, train=60_000, test=10_000, epochs=5),
    },
    arms={WITH: EVALUATED, WITHOUT: {"norm": "none"}},
    base={"model": "lenet5", "lr": 0.1, "batch_size": 256},
)

CLAIM = define(
    key="C1",
    title="Batch normalization converges faster and lower",
    topic="training",
    statement="A network with batch normalization learns in fewer steps, and reaches a lower loss, "
    "than the same network without it.",
    sources=(
        ARTICLE.says(
            f"test accuracy, %, after epochs 1–5: with BN {figures(PUBLISHED[WITH])}, without "
            f"{figures(PUBLISHED[WITHOUT])}",
            "LeNet-5 on Fashion-MNIST",
        ),
        IOFFE.says(
            "steps to 72.2 % and best accuracy: without 31.0 M, 72.2; with BN 13.3 M, 72.7; at "
            "five times the learning rate 2.1 M, 73.0; at thirty times 2.7 M, 74.8",
            "Inception on ImageNet",
        ),
    ),
    headline=True,
    prediction="Test accuracy is higher in each of the first epochs, and the training loss of the "
    "last epoch is lower.",
    plan=PLAN.touring(Scale(seeds=3, train=10_000, test=3_000, epochs=5)),
    decides={
        "faster": Endpoint(
            "Faster: how much higher is test accuracy with BN, averaged over the epochs?",
            ACCURACY.at(WITH) - ACCURACY.at(WITHOUT),
            matters=0.5,
        ),
        "lower": Endpoint(
            "Lower: how much lower is the training loss of the last epoch with BN?",
            TRAIN_LOSS.at(WITHOUT) - TRAIN_LOSS.at(WITH),
            matters=0.01,
        ),
    },
    information={
        "final": Endpoint(
            "How much higher is test accuracy with BN after the last epoch?",
            TEST.at(WITH) - TEST.at(WITHOUT),
            matters=0.5,
        ),
        "population": Endpoint(
            "How much higher is test accuracy with BN, averaged over the epochs, with population "
            "statistics?",
            MEAN_RECALIBRATED.at(WITH) - ACCURACY.at(WITHOUT),
            matters=0.5,
        ),
    },
    sentence="With BN minus without: test accuracy averaged over the epochs {faster} points. "
    "Without BN minus with: training loss of the last epoch {lower} nats",
    source_setup={
        "network": "LeNet-5",
        "data": "Fashion-MNIST, 60,000 training images",
        "steps": "5 epochs",
        "figures": "test accuracy, mean of the epochs: +2.26 points; after the last +1.28 "
        "(one run of each)",
    },
    figures="test accuracy, with BN minus without, mean of the epochs: {faster} points; after the "
    "last {final}",
    at_scale=(
        IOFFE.agrees(
            "Inception reaches 72.2 % after 13.3 M steps with BN and 31.0 M without",
            "Inception on ImageNet",
        ),
        BJORCK.contradicts(
            "as to one learning rate for both, as here: at matching rates networks with and "
            "without BN reach comparable test accuracy; what BN brings is the larger rates",
            "ResNet with 110 layers on CIFAR-10, figure 1",
        ),
    ),
    holds="At one learning rate for both networks, BN changes test accuracy by {faster} points "
    "averaged over five epochs, and by {final} after the last; evaluated with population "
    "statistics in place of the moving average, by {population} averaged. Compare with the "
    "source's figures: much of so large a gain is the slow start of the network without BN at "
    "this rate.",
    practice="Use batch normalization where the number of steps counts and batches are not small. "
    "Compare networks at the learning rate that is best for each.",
    charts=(
        along(
            TEST,
            "Test accuracy after each epoch",
            "test accuracy",
            series=(
                Series(WITH, TEST.curve),
                Series(WITHOUT, TEST.curve),
                Series(WITH, RECALIBRATED.curve, "with BN, population statistics"),
            ),
            extra=[published(arm, values) for arm, values in PUBLISHED.items()],
        ),
        along_steps("train_loss", "Training loss", "cross-entropy", NATS),
    ),
    tables=(Seeds((ACCURACY, MEAN_RECALIBRATED, TEST, TRAIN_LOSS)),),
    differs="The source reports one run of each arm, which cannot show the effect of chance. How "
    "much BN gains depends on the learning rate, which is the same in both arms, and on the number "
    "of steps: at a rate that suits the plain network, or with more epochs, the gap may narrow.",
)
