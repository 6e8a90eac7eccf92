"""Describe a training; a case is a healthy plan and the same plan with one part replaced."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from faults.fitting import fit, sgd

__all__ = ["Case", "Plan", "Training"]


@dataclasses.dataclass
class Training:
    """Training and what it works with: what a tool is asked about.

    Attributes:
        model: as the training leaves it, in the mode in which it leaves it.
        optimizer: the one that trains it.
        train_batches: those that it learned from, in training's order and sizes.
        evaluation_batches: labelled images that it did not learn from.
    """

    model: nn.Module
    optimizer: Optimizer
    train_batches: DataLoader[Any]
    evaluation_batches: DataLoader[Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Parts of a training, each a function.

    Attributes:
        network: makes the model.
        train_batches, evaluation_batches: make the loaders.
        optimizer: makes the optimizer of a model; it may change the model's layers as well.
        fit: trains, ``fit(model, optimizer, batches)``.
        after: what happens to the trained model, ``after(model, batches)``; returns the model.
    """

    network: Callable[[], nn.Module]
    train_batches: Callable[[], DataLoader[Any]]
    evaluation_batches: Callable[[], DataLoader[Any]]
    optimizer: Callable[[nn.Module], Optimizer] = sgd
    fit: Callable[[nn.Module, Optimizer, DataLoader[Any]], None] = fit
    after: Callable[[nn.Module, DataLoader[Any]], nn.Module] = lambda model, batches: model

    def start(self, seed: int = 0) -> Training:
        """Make everything and train nothing; the same for every call with one seed."""
        torch.manual_seed(seed)
        model = self.network()
        optimizer = self.optimizer(model)
        return Training(model, optimizer, self.train_batches(), self.evaluation_batches())

    def train(
        self,
        watch: Callable[[Training], contextlib.AbstractContextManager[Any]] | None = None,
        seed: int = 0,
    ) -> Training:
        """Make everything and train it.

        Args:
            seed: of the weights and of the order of images; the global generator's, too.
            watch: entered with the training before its first step and left after its last, for
                tools that observe one.
        """
        training = self.start(seed)
        with watch(training) if watch is not None else contextlib.nullcontext():
            self.fit(training.model, training.optimizer, training.train_batches)
        training.model = self.after(training.model, training.train_batches)
        return training


@dataclasses.dataclass(frozen=True)
class Case:
    """Normalization fault in a training, and a healthy twin that differs in nothing else.

    Attributes:
        name: short and unique.
        cause: in one sentence.
        codes: rules of normkit's doctor that name this cause exactly.
        healthy: the twin.
        fault: the one part that is replaced, by its name in :class:`Plan`.
        note: True if the fault costs little or nothing here: worth a note.
        torch_audit: rules of torch-audit that name this cause.
    """

    name: str
    cause: str
    codes: tuple[str, ...]
    healthy: Plan
    fault: dict[str, Callable[..., Any]]
    note: bool = False
    torch_audit: tuple[str, ...] = ()

    @property
    def faulty(self) -> Plan:
        """Return the plan with the fault."""
        return dataclasses.replace(self.healthy, **self.fault)  # type: ignore[arg-type]

    def build(self, faulty: bool, seed: int = 0) -> Training:
        """Train the case with its fault, or its twin."""
        return (self.faulty if faulty else self.healthy).train(seed=seed)
