"""Compare the outputs of two modes over all batches: in value, in prediction and in loss.

Everything is a sum over samples, positions or labels, whatever batches they come in, so that
neither the order of the samples nor their division into batches matters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normkit.errors import DataError, message
from normkit.statistics.outputs.labels import (
    IGNORED_LABEL,
    fitting_axes,
    is_class_labels,
    labels_of,
)
from normkit.statistics.outputs.losses import Loss, Losses, loss_of
from normkit.statistics.outputs.predictions import Predictions
from normkit.statistics.outputs.read import Output, read_output
from normkit.statistics.outputs.values import ValueSums, parts, wide

__all__ = ["OutputComparison", "OutputSums"]


class OutputComparison(NamedTuple):
    """Output of the model with batch statistics against its output with running statistics.

    Attributes:
        difference: root mean square of the difference, relative to the deviation of the output
            over all samples, feature by feature; NaN where that is undefined.
        agreement: share of predictions (the largest score) that are the same, where a label counts;
            None unless labels, or a model that calls its output ``logits``, show that it is scores.
        loss: mean loss with batch statistics, and with running ones; None without one.
        loss_difference: the second less the first, and its standard error between batches.
        notes: what is missing from the comparison, in how many batches, and why.
    """

    difference: float
    agreement: float | None
    loss: tuple[float, float] | None
    loss_difference: tuple[float, float] | None
    notes: tuple[str, ...] = ()


class OutputSums:
    """Sums over batches of how their two outputs differ.

    Attributes:
        samples, batches: of all that was added.
        left_out: samples of batches that could not be added.
    """

    def __init__(self, loss: Loss | None) -> None:
        self._loss = loss
        self._values = ValueSums()
        self._losses = {source: Losses() for source in ("given", "returned", "labels")}
        self._fitting = {axis: Predictions() for axis in (1, -1)}
        self._logits, self._classes = Predictions(), Predictions()
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
        return read._replace(values=values, loss=loss_of(self._loss, output, batch))

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
            self._values.add(p, q, a.dtype)
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

    def _scores(self) -> tuple[Predictions | None, int | None]:
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

    def _notes(self, values: str, scores: Predictions | None, losses: Losses) -> tuple[str, ...]:
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

    def _why_missing(self, scores: Predictions | None) -> str:
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
