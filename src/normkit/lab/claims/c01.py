"""C1: batch normalization converges faster and lower.

Both arms use one learning rate, the source's; what each does at its own best rate is C3's question.
"""

from __future__ import annotations

from normkit.lab.claims.sources import ARTICLE, IOFFE, figures
from normkit.lab.claims.study import (
    NATS,
    ON_AND_OFF,
    TEST,
    TRAIN_LOSS,
    WITH,
    WITHOUT,
    Endpoint,
    Plan,
    Scale,
    Seeds,
    along,
    along_steps,
    define,
    mean_of_epochs,
    published,
)

ACCURACY = mean_of_epochs(TEST, "mean test accuracy")
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
    arms=ON_AND_OFF,
    base={"model": "lenet5", "lr": 0.1, "batch_size": 256},
)

CLAIM = define(
    key="C1",
    title="Batch normalization converges faster and lower",
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
    prediction="Test accuracy is higher in each of the first epochs, and the training loss of the "
    "last epoch is lower.",
    plan=PLAN,
    decides={
        "faster": Endpoint(
            "Faster: how much higher is test accuracy, averaged over the epochs?",
            ACCURACY.at(WITH) - ACCURACY.at(WITHOUT),
            matters=0.5,
        ),
        "lower": Endpoint(
            "Lower: how much lower is the training loss of the last epoch?",
            TRAIN_LOSS.at(WITHOUT) - TRAIN_LOSS.at(WITH),
            matters=0.01,
        ),
    },
    information={
        "final": Endpoint(
            "How much higher is test accuracy after the last epoch?",
            TEST.at(WITH) - TEST.at(WITHOUT),
            matters=0.5,
        ),
    },
    sentence="With BN, test accuracy averaged over the epochs is higher by {faster} points, and "
    "the last epoch's training loss is lower by {lower} nats",
    charts=(
        along(
            TEST,
            "Test accuracy after each epoch",
            "test accuracy",
            extra=[published(arm, values) for arm, values in PUBLISHED.items()],
        ),
        along_steps("train_loss", "Training loss", "cross-entropy", NATS),
    ),
    tables=(Seeds((ACCURACY, TEST, TRAIN_LOSS)),),
    differs="The source reports one run of each arm, which cannot show the effect of chance. How "
    "much BN gains depends on the learning rate, which is the same in both arms, and on the number "
    "of steps: at a rate that suits the plain network, or with more epochs, the gap narrows.",
)
