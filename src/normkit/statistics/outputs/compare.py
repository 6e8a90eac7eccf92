"""Compare the outputs of two modes over all batches: in value, in prediction and in loss.

Everything is a sum over samples, positions or labels, whatever batches they come in, so that
neither the order of the samples nor their division into batches matters.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.core.moments import Moments
from normkit.errors import DataError, TypeMismatchError, message
from normkit.statistics.estimates.estimate import Estimate, statistics
from normkit.statistics.outputs.read import (
    IGNORED_LABEL,
    Output,
    fitting_axes,
    is_class_labels,
    labels_of,
    read_output,
)
from normkit.statistics.outputs.values import ValueSums, parts, wide
from normkit.statistics.printing.describe import describe
from normkit.statistics.results.consistency import OutputComparison

__all__ = ["Loss", "OutputSums"]

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, batch)``: the mean loss over a batch."""


class OutputSums:
    """Sums over batches of how their two outputs differ.

    Attributes:
        samples, batches: of all that was added.
        left_out: samples of batches that could not be added.
    """

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._values = ValueSums()
        self._losses = {source: _Losses() for source in ("given", "returned", "labels")}
        self._fitting = {axis: _Scores() for axis in (1, -1)}
        self._logits, self._classes = _Scores(), _Scores()
        self._labels: Counter[str] = Counter()  # batches by the kind of their labels
        self._not_compared: Counter[str] = Counter()  # batches by why
        self._kinds: Counter[str] = Counter()  # types that had neither a tensor nor a loss
        self.samples = self.batches = self.left_out = 0

    def read(self, output: Any, batch: Any) -> Output:
        """Read an output, and copy its values: a model may write the next ones over them.

        Raises:
            TypeMismatchError: ``loss`` returned something else than one number.
        """
        read = read_output(output)
        values = None if read.values is None else read.values.clone()
        if self._loss is None:
            return read._replace(values=values)
        return read._replace(values=values, loss=_loss_of(self._loss, output, batch))

    def add(self, a: Output, b: Output, batch: Any, count: int) -> None:
        """Add the two outputs of a batch of ``count`` samples, as :meth:`read` returned them."""
        self.batches += 1
        self.samples += count
        labels = labels_of(batch)
        if self._loss is not None and a.loss is not None and b.loss is not None:
            self._losses["given"].add([a.loss, b.loss], count)
        elif a.loss is not None and b.loss is not None:
            weight = count
            if labels is not None and is_class_labels(labels):
                weight = int(labels.ne(IGNORED_LABEL).sum())
            self._losses["returned"].add([a.loss, b.loss], weight)
        if a.values is None or b.values is None:
            kind = a.kind if a.loss is None or a.tensors else "nothing but a loss"
            self._not_compared[f"the model returned {kind}"] += 1
            if a.loss is None and not a.tensors:
                self._kinds[a.kind] += 1
        elif a.values.shape != b.values.shape:
            self._not_compared["the outputs of the two modes have other shapes"] += 1
        else:
            self._compare(a.values, b.values, labels, a.logits)

    def _compare(self, a: Tensor, b: Tensor, labels: Tensor | None, logits: bool) -> None:
        """Add values of one shape."""
        self._values.batches += 1
        axes = [] if labels is None else fitting_axes(a, labels)
        kind = "none" if labels is None else "classes" if is_class_labels(labels) else "numbers"
        self._labels[kind] += 1
        # Hugging Face's models have the classes of tokens last, those of pixels first.
        axis = -1 if a.dim() == 3 else 1
        logits = logits and a.dim() > 1 and a.shape[axis] > 1
        self._logits.batches += logits
        chosen = a.dtype in (torch.int64, torch.bool)
        self._classes.batches += chosen
        for fitting in axes:
            self._fitting[fitting].begin()
        for some in parts(a):
            p, q = wide(a[some]), wide(b[some])
            if chosen:
                self._classes.add_same(p == q)
                continue
            self._values.add(p, q)
            if logits:
                self._logits.add(p, q, axis, None)
            for fitting in axes:
                assert labels is not None
                self._fitting[fitting].add(p, q, fitting, labels[some].to(p.device))
        for fitting in axes:
            self._fitting[fitting].end()

    def result(self) -> OutputComparison:
        """Compare over all batches.

        Raises:
            DataError: no output had a tensor, and there is no loss.
        """
        if self._kinds.total() == self.batches:
            raise DataError(
                message(
                    "a model that returns a tensor, to compare the outputs of the two modes",
                    ", ".join(self._kinds),
                    "pass forward=lambda model, batch: ... that returns the output to compare",
                )
            )
        scores, axis = self._scores()
        if scores is not None and axis is not None:
            self._losses["labels"] = scores.losses
        difference, note = self._values.difference(axis)
        if self._classes.batches == self._values.batches > 0:
            note = "the model returned classes, which are compared as predictions alone"
        losses = max(self._losses.values(), key=lambda one: one.batches + one.left_out)
        return OutputComparison(
            difference,
            scores.agreement if scores else None,
            losses.means(),
            losses.step(),
            self._notes(note, scores, losses),
        )

    def _scores(self) -> tuple[_Scores | None, int | None]:
        """Return the predictions to count, and the axis of the classes; None if unknown."""
        compared, labelled = self._values.batches, self._labels["classes"]
        # Where both axes fit, the one that the classes of logits lie along.
        for axis in sorted(self._fitting, key=lambda axis: axis != self._logits.axis):
            if self._fitting[axis].batches == labelled > 0:
                return self._fitting[axis], axis
        if self._logits.batches == compared > 0 and not self._labels["numbers"]:
            return self._logits, self._logits.axis
        if self._classes.batches == compared > 0:
            return self._classes, None
        return None, None

    def _notes(self, values: str, scores: _Scores | None, losses: _Losses) -> tuple[str, ...]:
        """Say what is missing from the comparison, in how many batches, and why."""
        notes = [
            f"values not compared in {n} of {self.batches} batches: {why}"
            for why, n in self._not_compared.items()
        ]
        if values and not notes:
            notes.append(f"values: {values}")
        missing = [
            name
            for name, value in (
                ("predictions", scores.agreement if scores else None),
                ("loss", losses.means()),
            )
            if value is None
        ]
        if losses.left_out:
            notes.append(losses.note(self.batches))
            missing = [name for name in missing if name != "loss"]
        if missing and self._values.batches:
            notes.append(f"no {' and no '.join(missing)}: {self._why_missing(scores)}")
        elif 0 < losses.batches < self.batches - losses.left_out:
            notes.append(f"no loss in {self.batches - losses.batches} of {self.batches} batches")
        return tuple(notes)

    def _why_missing(self, scores: _Scores | None) -> str:
        labelled = self._labels["classes"]
        if labelled:
            fitting = max(one.batches for one in self._fitting.values())
            if fitting == labelled:
                return "no label counts"
            return (
                f"the labels of {labelled - fitting} of {self.batches} batches are no classes of "
                "the output; loss= takes others"
            )
        if self._labels["numbers"]:
            return "the labels are no classes; pass loss= to compare losses"
        return "the batches have no labels (inputs, labels) that show the output to be scores"


class _Scores:
    """Predictions of the two modes, and the cross-entropies of their scores.

    Attributes:
        batches: number of batches.
        axis: of the classes.
        losses: cross-entropies, a label that counts weighing one.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.axis: int | None = None
        self.losses = _Losses()
        self._same = self._count = 0
        self._sums, self._counted = [0.0, 0.0], 0

    @property
    def agreement(self) -> float | None:
        """Share of predictions that are the same; None without any."""
        return self._same / self._count if self._count else None

    def begin(self) -> None:
        """Begin a batch."""
        self.batches += 1
        self._sums, self._counted = [0.0, 0.0], 0

    def add(self, a: Tensor, b: Tensor, axis: int, labels: Tensor | None) -> None:
        """Add a part of the scores of a batch; labels that are ignored weigh nothing."""
        self.axis = axis
        same = a.argmax(axis) == b.argmax(axis)
        same &= ~(a.isnan() | b.isnan()).any(axis)  # which predict nothing
        if labels is None:
            self.add_same(same)
            return
        counts = labels != IGNORED_LABEL
        self.add_same(same[counts])
        self._counted += int(counts.sum())
        for i, scores in enumerate((a, b)):
            self._sums[i] += float(
                F.cross_entropy(
                    scores.movedim(axis, 1), labels, ignore_index=IGNORED_LABEL, reduction="sum"
                )
            )

    def add_same(self, same: Tensor) -> None:
        """Add predictions by whether they are the same."""
        self._same += int(same.sum())
        self._count += same.numel()

    def end(self) -> None:
        """End a batch."""
        self.losses.add([total / max(self._counted, 1) for total in self._sums], self._counted)


class _Losses:
    """Losses of batches in both modes, weighed by what counts in them.

    Attributes:
        batches: number of batches that have a loss.
        left_out: number of batches whose loss is not finite in one of the modes.
    """

    def __init__(self) -> None:
        self.batches = self.left_out = 0
        self._not_finite = [0, 0]
        self._sums, self._weight = [0.0, 0.0], 0
        self._steps = Estimate(1)

    def add(self, pair: list[float], weight: int) -> None:
        """Add the mean losses of a batch."""
        if not weight:  # nothing counts in it; a mean of nothing is NaN
            self.batches += 1
            return
        if not all(map(math.isfinite, pair)):
            self.left_out += 1
            for i, value in enumerate(pair):
                self._not_finite[i] += not math.isfinite(value)
            return
        self.batches += 1
        self._weight += weight
        for i, value in enumerate(pair):
            self._sums[i] += weight * value
        step = torch.tensor([pair[1] - pair[0]], dtype=torch.float64, device="cpu")
        size = torch.tensor(float(weight), dtype=torch.float64, device="cpu")
        self._steps.add(Moments(size, step, torch.zeros_like(step)))

    def means(self) -> tuple[float, float] | None:
        """Return the mean losses with batch and with running statistics."""
        if not self._weight:
            return None
        return self._sums[0] / self._weight, self._sums[1] / self._weight

    def step(self) -> tuple[float, float] | None:
        """Return the second less the first, and its standard error."""
        if not self._weight:
            return None
        step = statistics(self._steps.units())
        return float(step.mean), float(step.mean_standard_error)

    def note(self, batches: int) -> str:
        """Say which batches were left out."""
        first, second = self._not_finite
        return (
            f"loss not finite in {self.left_out} of {batches} batches, which are left out of it "
            f"({first} with batch statistics, {second} with running statistics)"
        )


def _loss_of(loss: Loss, output: Any, batch: Any) -> float:
    """Call the user's loss.

    Raises:
        TypeMismatchError: it returns anything else than one number. Its own errors pass.
    """
    try:
        value: Any = loss(output, batch)
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                f"normkit: raised by loss(output, batch), where the batch is {describe(batch)}. "
                "For a criterion of outputs and targets, pass loss=lambda output, batch: "
                "criterion(output, batch[1])."
            )
        raise
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if not isinstance(value, (str, bytes)):
            return float(value)
    raise TypeMismatchError(
        message(
            "loss(output, batch) to return one number, the mean over the batch's samples",
            describe(value),
            'average it, such as with reduction="mean"',
        )
    )
