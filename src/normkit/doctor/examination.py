"""Measure once all that the rules look at: the model, and what its batches show."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from normkit.doctor.finding import Treatment
from normkit.doctor.flow import Flow, traced_flow, watched_flow
from normkit.doctor.norms import Norm, find_norms, have_trained
from normkit.doctor.scores import Score, score
from normkit.doctor.survey import Survey, keep, survey
from normkit.doctor.treatments import (
    RECALIBRATE,
    RECALIBRATE_ON_EVALUATION,
    movable,
    recalibration,
)
from normkit.errors import DataError, StatisticsError, message
from normkit.statistics.batches.detached_loader import DetachedLoader
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.consistency import consistency
from normkit.statistics.layers.find import NormLayer, find_norm_layers, layers_by_bank
from normkit.statistics.outputs.losses import Loss
from normkit.statistics.results.consistency import Consistency
from normkit.statistics.results.recalibration import Recalibration

__all__ = ["Evaluation", "Examination", "Options", "Training", "examine"]

COMPARED = 2_000
"""Samples on which the two modes are compared."""

FEW = 2_000
"""Samples of recalibration where batches are so small that it takes many passes, and on which the
statistics of evaluation batches are tried."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a measurement, as of :func:`normkit.diagnose`."""

    samples: int | None
    forward: Forward | None
    loss: Loss | None


@dataclasses.dataclass(frozen=True)
class Training:
    """Facts about training batches.

    Attributes:
        batches: they themselves, which can be read again.
        survey: their sizes, labels and inputs.
        measured: the recalibration on them, undone: statistics under the current weights, and how
            far the remembered ones are from them; None without a layer to measure.
        consistency: the two modes compared; None likewise.
        problem: why the layers could not be measured, such as an input that is not finite.
    """

    batches: Iterable[Any]
    survey: Survey
    measured: Recalibration | None
    consistency: Consistency | None
    problem: StatisticsError | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Facts about evaluation batches.

    Attributes:
        batches, survey: as of :class:`Training`.
        score: of the model as it is.
        by_batch: of the model with the statistics of each evaluation batch; None if not measured.
        tried: by the key of a treatment, the score with it.
        measured: the recalibration on the evaluation batches, undone; None if there is none.
    """

    batches: Iterable[Any]
    survey: Survey
    score: Score
    by_batch: Score | None
    tried: dict[str, Score]
    measured: Recalibration | None


@dataclasses.dataclass(frozen=True)
class Examination:
    """A model and what was measured of it.

    Attributes:
        model: inside any wrapper.
        passed: as the caller passed it.
        norms: its normalization layers, in its order.
        flow: which module made which input.
        optimizer: as passed, or None.
        training, evaluation: what the batches showed; None without them.
        layers: those whose statistics could be measured, by name (of a bank, of several).
        options: how it was measured.
    """

    model: nn.Module
    passed: nn.Module
    norms: tuple[Norm, ...]
    flow: Flow
    optimizer: torch.optim.Optimizer | None
    training: Training | None
    evaluation: Evaluation | None
    layers: Mapping[str, NormLayer]
    options: Options

    def norm(self, name: str) -> Norm | None:
        """Return the normalization layer of this name, also of one of its banks."""
        name = name.partition("[")[0]
        return next((one for one in self.norms if name in one.places), None)

    @property
    def trained(self) -> bool:
        """True if some γ or β is not as layers are made: all 1 or all 0."""
        return have_trained(self.norms)

    def recalibrate(self) -> Treatment | None:
        """Recalibration on the training batches, the treatment of many findings."""
        if self.training is None or self.training.measured is None:
            return None
        return _recalibration(self.model, self.training.batches, self.training.survey, self.options)

    def recalibrate_on_evaluation(self) -> Treatment | None:
        """Recalibration on the evaluation batches."""
        if self.evaluation is None or self.evaluation.measured is None:
            return None
        return _recalibration(
            self.model, self.evaluation.batches, self.evaluation.survey, self.options,
            RECALIBRATE_ON_EVALUATION,
        )  # fmt: skip


def examine(
    model: nn.Module,
    passed: nn.Module,
    train: Iterable[Any] | None,
    evaluation: Iterable[Any] | None,
    optimizer: torch.optim.Optimizer | None,
    options: Options,
    note: Callable[[str], None],
) -> Examination:
    """Measure all that the rules need; nothing in the model changes.

    Args:
        note: called with what is being done, for those who watch.
    """
    norms = find_norms(model)
    layers = _measurable(model)
    training: Training | None = None
    if train is None:
        flow = traced_flow(model)
    else:
        train = keep(train, options.samples)
        note("reading the training batches")
        surveyed = survey(train, options.samples)
        flow = watched_flow(model, _first(train, "training"), options.forward)
        note("measuring the layers")
        training = _training(model, train, surveyed, options, bool(layers))
    tested: Evaluation | None = None
    if evaluation is not None:
        evaluation = keep(evaluation, options.samples)
        _first(evaluation, "evaluation")
        note("scoring the evaluation batches")
        tested = _evaluation(model, evaluation, training, options, bool(layers), note)
    return Examination(model, passed, norms, flow, optimizer, training, tested, layers, options)


def _first(batches: Iterable[Any], kind: str) -> Any:
    """Return the first batch.

    Raises:
        DataError: there is none.
    """
    for batch in DetachedLoader(batches):
        return batch
    raise DataError(message(f"{kind} batches", "none", "pass at least one batch that is not empty"))


def _at_most(limit: int, samples: int | None) -> int:
    return limit if samples is None else min(limit, samples)


def _measurable(model: nn.Module) -> dict[str, NormLayer]:
    """The layers that can be measured, by bank; none is no error here."""
    try:
        with movable(model):
            return dict(layers_by_bank(find_norm_layers(model)[0]))
    except StatisticsError:
        return {}


def _recalibration(
    model: nn.Module,
    batches: Iterable[Any],
    surveyed: Survey,
    options: Options,
    key: str = RECALIBRATE,
) -> Treatment:
    samples = options.samples
    if surveyed.batch_size < 10:
        samples = _at_most(FEW, samples)
    return recalibration(model, batches, samples=samples, forward=options.forward, key=key)


def _training(
    model: nn.Module, batches: Iterable[Any], surveyed: Survey, options: Options, layers: bool
) -> Training:
    if not layers:
        return Training(batches, surveyed, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            with _recalibration(model, batches, surveyed, options).apply() as measured:
                pass
            with movable(model):
                compared = consistency(
                    model, batches, samples=COMPARED, forward=options.forward,
                    loss=options.loss, progress=False,
                )  # fmt: skip
        except StatisticsError as error:
            return Training(batches, surveyed, None, None, error)
    return Training(batches, surveyed, measured, compared)


def _evaluation(
    model: nn.Module,
    batches: Iterable[Any],
    training: Training | None,
    options: Options,
    layers: bool,
    note: Callable[[str], None],
) -> Evaluation:
    few = dataclasses.replace(options, samples=_at_most(FEW, options.samples))

    def scored(options: Options, by_batch: bool = False) -> Score:
        return score(
            model, batches, samples=options.samples, forward=options.forward, loss=options.loss,
            batch_statistics=by_batch,
        )  # fmt: skip

    surveyed = survey(batches, options.samples)
    as_it_is = scored(options)
    tried: dict[str, Score] = {}
    by_batch: Score | None = None
    on_evaluation: Recalibration | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if layers and training is not None and training.measured is not None:
            note("trying population statistics")
            with _recalibration(model, training.batches, training.survey, options).apply():
                tried[RECALIBRATE] = scored(options)
        if layers:
            note("trying the statistics of the evaluation batches")
            try:
                by_batch = scored(few, by_batch=True)
            except (StatisticsError, ValueError, RuntimeError):  # one value per channel
                by_batch = None
            try:
                treatment = _recalibration(model, batches, surveyed, few, RECALIBRATE_ON_EVALUATION)
                with treatment.apply() as on_evaluation:
                    tried[RECALIBRATE_ON_EVALUATION] = scored(few)
            except StatisticsError:
                on_evaluation = None
    return Evaluation(batches, surveyed, as_it_is, by_batch, tried, on_evaluation)
