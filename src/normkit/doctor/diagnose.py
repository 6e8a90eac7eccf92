"""Examine a model and say what is wrong with its normalization: :func:`diagnose`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.examination import Examination, Options, examine
from normkit.doctor.finding import SEVERITIES, Finding
from normkit.doctor.profile import profile_of
from normkit.doctor.treatments import RECALIBRATE
from normkit.doctor.trials import all_gains, gain_of, with_gains
from normkit.errors import StatisticsError, TypeMismatchError, message
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import (
    check_batches,
    check_function,
    check_has_values,
    check_model,
    check_samples,
)
from normkit.statistics.layers.find import unwrap
from normkit.statistics.layers.preserve import preserve_rng
from normkit.statistics.outputs.losses import Loss
from normkit.statistics.printing.describe import describe, some

if TYPE_CHECKING:
    from normkit.doctor.rules import Rule

__all__ = ["diagnose"]


def diagnose(
    model: nn.Module,
    train: Iterable[Any] | None = None,
    evaluation: Iterable[Any] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    samples: int | None = 10_000,
    forward: Forward | None = None,
    loss: Loss | None = None,
    note: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Say what is wrong with a model's normalization, what mending it brings, and mend it.

    Without data the model itself is examined; with training batches, its statistics too; with
    labelled evaluation batches, what mending brings: it is tried, scored on the same samples, and
    undone. Nothing in the model changes.

    ``print`` the result. Each of its ``.findings`` has a rule ("NK290"), a severity ("error",
    "warning", "note"), its places, what was measured, the cause, what to do, and what that brings;
    ``finding.mend()`` does it and returns a handle with ``undo()``.
    ``normkit doctor --explain NK290`` prints a rule.

    Args:
        model: any module, in any mode; a parallel, compiled or averaging wrapper is unwrapped.
        train: training batches, as for :func:`normkit.recalibrate`: in training's order and sizes,
            as the rules about batches look at these. Of an iterator as many are kept as needed.
        evaluation: evaluation batches, likewise, with labels.
        optimizer: the one that trains the model, for the rules about weight decay and rates.
        samples: read up to so many of each; None for all there are.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.
        loss: called as ``loss(output, batch)``: score by it and not by accuracy.
        note: called with a few words at each stage.

    Returns:
        A :class:`normkit.doctor.Diagnosis`.

    Raises:
        TypeMismatchError, OptionError, DataError: as :func:`normkit.recalibrate` does, in the same
            words. Layers whose input is not finite are a finding.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.Linear(8, 2))
    >>> [(one.rule, one.places) for one in diagnose(model).findings if one.severity != "note"]
    [('NK104', ('1',))]
    """
    # Dozens of files, which only this call needs.
    from normkit.doctor.rules import RULES

    start = time.perf_counter()
    _check(model, train, evaluation, optimizer, samples, forward, loss)
    inner = unwrap(model)
    options = Options(samples, forward, loss)
    # A loader that shuffles draws its order from the generator of the program.
    with preserve_rng():
        exam = examine(
            inner, model, train, evaluation, optimizer, options, note or (lambda _: None)
        )
        findings = with_gains(exam, _without_implied(_findings(exam, RULES), RULES))
    findings.sort(key=_rank)
    result = None if exam.evaluation is None else exam.evaluation.score
    return Diagnosis(
        tuple(findings),
        result.value if result is not None and result.exists else None,
        result.unit if result is not None and result.exists else None,
        gain_of(exam, RECALIBRATE),
        _examined(exam, len(RULES)),
        tuple(_notes(exam)),
        len(RULES),
        time.perf_counter() - start,
        all_gains(exam),
        profile_of(exam),
    )


def _rank(one: Finding) -> tuple[int, bool, float, str]:
    """Order by severity, causes before what follows from them (NK.90 on), and by gain."""
    brings = one.gain.change if one.gain is not None and one.gain.helps else 0.0
    return SEVERITIES.index(one.severity), one.rule[-2:] >= "90", -brings, one.rule


def _check(
    model: object,
    train: object,
    evaluation: object,
    optimizer: object,
    samples: object,
    forward: object,
    loss: object,
) -> None:
    check_model(model, "diagnose", train)
    assert isinstance(model, nn.Module)
    check_has_values(unwrap(model))
    for batches in (train, evaluation):
        if batches is not None:
            check_batches(batches)
    if train is not None or evaluation is not None:
        _check_not_lazy(unwrap(model))
    check_function(forward, "forward", "forward(model, batch)")
    check_function(loss, "loss", "loss(output, batch)")
    check_samples(samples)
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeMismatchError(
            message("an optimizer of torch.optim", describe(optimizer), "pass the optimizer itself")
        )


def _check_not_lazy(model: nn.Module) -> None:
    """Raise if a layer has not had its first input, which would change it.

    Raises:
        StatisticsError: one has not.
    """
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()  # type: ignore[misc]
    ]
    if lazy:
        raise StatisticsError(
            message(
                "lazy layers to be initialized, as their first input sets their channels",
                f"{some(lazy)}, without an input so far",
                "run the model once on any batch",
            )
        )


def _findings(exam: Examination, rules: Sequence[Rule]) -> list[Finding]:
    findings: list[Finding] = []
    for rule in rules:
        try:
            findings += [dataclasses.replace(one, rule=rule.code) for one in rule.check(exam)]
        except Exception as error:  # a rule that fails stops nobody
            findings.append(_failed(rule, error))
    return findings


def _failed(rule: Rule, error: Exception) -> Finding:
    return Finding(
        "note",
        (),
        f"This rule could not be checked: {type(error).__name__}: {error}",
        "nothing in your model; please report it with this line",
        rule=rule.code,
    )


def _without_implied(findings: list[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """Leave out what a more specific rule names at the same places."""
    yields = {rule.code: rule.yields_to for rule in rules}
    remaining = []
    for one in findings:
        specific = [
            other
            for other in findings
            if other.rule in yields[one.rule]
            and SEVERITIES.index(other.severity) <= SEVERITIES.index(one.severity)
        ]
        named = {place for other in specific for place in other.places or one.places}
        places = tuple(place for place in one.places if place not in named)
        if places or not (one.places or specific):
            remaining.append(dataclasses.replace(one, places=places))
    return remaining


def _examined(exam: Examination, rules: int) -> str:
    parts = [f"{len(exam.norms)} normalization layer{'s' * (len(exam.norms) != 1)}"]
    for name, part in (("training", exam.training), ("evaluation", exam.evaluation)):
        if part is not None:
            parts.append(f"{part.survey.samples:,} {name} samples")
    return f"{rules} rules on {', '.join(parts)}"


def _notes(exam: Examination) -> list[str]:
    notes = []
    if not exam.norms:
        notes.append("The model has no normalization layer that the rules know.")
    elif exam.training is not None and not exam.trained:
        notes.append("No γ or β has moved: the model looks untrained. Load its weights first.")
    if exam.training is None:
        notes.append("Pass training batches to examine the statistics of the layers.")
    if exam.evaluation is None:
        notes.append("Pass labelled evaluation batches to measure what mending brings.")
    elif not exam.evaluation.score.exists:
        notes.append(
            "No score: the evaluation batches have no labels that fit the output, and the model "
            "returns no loss; pass loss=lambda output, batch: ..."
        )
    return notes
