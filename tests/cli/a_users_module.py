"""What a user has: a module of their own with a LeNet, its data, and some things that are neither.

Tests copy it into a folder of the user's and call the command line there.
"""

import itertools
import time
from pathlib import Path

from torch import nn

from normkit.lab import data

print("a line that the user's own module prints")


def lenet(classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120),
        nn.BatchNorm1d(120),
        nn.Sigmoid(),
        nn.Dropout(),
        nn.Linear(120, classes),
    )


def wider():
    return lenet(20)


def other():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8))


def without():
    return nn.Sequential(nn.Conv2d(1, 6, 5))


def needs(argument):
    return argument


def loader():
    split = data.load("fashion-mnist", offline=True).train
    return list(itertools.islice(data.batches(split, 100, seed=0), 20))


def slow():
    for number, batch in enumerate(loader() * 100):
        if number == 3:
            Path("begun").touch()
        time.sleep(0.05)
        yield batch


instance = lenet()
number = 3
nothing = []
