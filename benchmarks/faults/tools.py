"""Tools that are asked about a training: normkit's doctor, and torch-audit."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch.nn.functional as F

from faults.plan import Case, Plan, Training

__all__ = ["TOOLS", "Answer", "Found", "available", "judge"]

TOOLS = ("normkit", "torch-audit")
SPEED = {"TA200", "TA201", "TA202", "TA203"}
"""Hints of torch-audit about hardware, which it gives for healthy models on a CPU as well."""


class Found(NamedTuple):
    """Finding of a tool; ``rank`` 0 is the worst, ``matters`` is True above a mere note."""

    code: str
    severity: str
    rank: int
    matters: bool
    text: str


class Answer(NamedTuple):
    """Judgement of a tool's findings on a fault and on its twin.

    Attributes:
        detected: a finding above a note that the twin does not have; of any severity where the
            fault is only worth a note.
        exact: the first of these names the cause.
        named: any of these names the cause.
        alarms: codes of findings above a note on the twin.
    """

    detected: bool
    exact: bool
    named: bool
    alarms: tuple[str, ...]


def available(tool: str) -> bool:
    """Return True if the tool can be imported."""
    return importlib.util.find_spec(tool.replace("-", "_")) is not None


def ask(tool: str, plan: Plan, seed: int = 0) -> tuple[Training, list[Found]]:
    """Train the plan, ask the tool, and return its findings, the worst first."""
    if tool == "normkit":
        training = plan.train(seed=seed)
        return training, _doctor(training)
    return _torch_audit(plan, seed)


def _doctor(training: Training) -> list[Found]:
    import normkit

    result = normkit.diagnose(
        training.model,
        training.train_batches,
        training.evaluation_batches,
        optimizer=training.optimizer,
    )
    ranks = {"error": 0, "warning": 1, "note": 2}
    return [
        Found(one.rule, one.severity, ranks[one.severity], one.severity != "note", one.says)
        for one in result.findings
    ]


def _torch_audit(plan: Plan, seed: int) -> tuple[Training, list[Found]]:
    """Watch each step of the training from the first, then look once more at what came of it."""
    import torch_audit

    seen: list[Any] = []

    @contextlib.contextmanager
    def watch(training: Training) -> Iterator[None]:
        auditor = torch_audit.autopatch(
            training.model, optimizer=training.optimizer, every_n_steps=1, ignore_rules=SPEED
        )
        # Its patch is a function, and PyTorch's schedulers want a method.
        step = training.optimizer.step
        bound = types.MethodType(lambda self, *args: step(*args), training.optimizer)
        training.optimizer.step = bound  # type: ignore[method-assign]
        try:
            yield
        finally:
            seen.extend(auditor.finish(report=False).findings)
            auditor.unpatch()

    training = plan.train(watch, seed)
    seen.extend(_one_more_epoch(training))
    ranks = {"FATAL": 0, "ERROR": 1, "WARN": 2, "INFO": 3}
    unlike = {one.rule_id: one for one in sorted(seen, key=lambda one: -ranks[one.severity.value])}
    found = [
        Found(one.rule_id, one.severity.value, ranks[one.severity.value],
              one.severity.value != "INFO", one.message)
        for one in unlike.values()
    ]  # fmt: skip
    return training, sorted(found, key=lambda one: one.rank)


def _one_more_epoch(training: Training) -> list[Any]:
    """Audit a copy of the trained model in three phases, on training and on evaluation batches."""
    import torch_audit

    model, optimizer = copy.deepcopy((training.model, training.optimizer))
    auditor = torch_audit.Auditor(model, optimizer=optimizer, every_n_steps=1, ignore_rules=SPEED)
    with auditor:
        auditor.audit_static()
        auditor.audit_init()
        for images, labels in training.train_batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(auditor.forward(images).float(), labels)
            auditor.backward(loss)
            auditor.optimizer_step()
        model.eval()
        for images, _ in itertools.islice(training.evaluation_batches, 5):
            auditor.forward(images)
    return list(auditor.finish(report=False).findings)


def judge(case: Case, tool: str, fault: list[Found], twin: list[Found]) -> Answer:
    """Judge what a tool says of a fault and of its twin.

    normkit ranks, so its first finding counts; torch-audit does not order findings of one
    severity, so any of its worst ones counts.
    """
    codes = case.codes if tool == "normkit" else case.torch_audit
    also = {(one.code, one.severity) for one in twin}
    new = [one for one in fault if (one.code, one.severity) not in also]
    new = [one for one in new if one.matters or case.note]
    first = new[:1] if tool == "normkit" else [one for one in new if one.rank == new[0].rank]
    return Answer(
        bool(new),
        any(one.code in codes for one in first),
        any(one.code in codes for one in new),
        tuple(sorted({one.code for one in twin if one.matters})),
    )
