"""Mend what a diagnosis found, as far as a checkpoint can hold it, and measure what it brought."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import Finding, Gain, Treatment
from normkit.doctor.scores import Score, gain_between
from normkit.doctor.treatments import RECALIBRATE, RECALIBRATE_ON_EVALUATION
from normkit.handle import Changed

__all__ = ["Mended", "mend"]

STATISTICS = (RECALIBRATE, RECALIBRATE_ON_EVALUATION)
"""Acts of which the second would undo the first."""


@dataclasses.dataclass(frozen=True)
class Mended:
    """Outcome of mending a model.

    Attributes:
        done: findings that were mended.
        program: changes that no checkpoint holds, such as of a momentum, and the layers.
        skipped: findings that were not mended, and why.
        entries: new values of the entries of the state dict that changed.
        widened: those of another type than before.
        gain: what all of it brings together; None where it was not measured.
    """

    done: tuple[Finding, ...]
    program: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[Finding, str], ...]
    entries: dict[str, Tensor]
    widened: frozenset[str]
    gain: Gain | None

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold, without the values."""
        return {
            "mended": [{"rule": one.rule, "places": list(one.places)} for one in self.done],
            "in_program": {change: list(names) for change, names in self.program.items()},
            "left": [
                {"rule": one.rule, "places": list(one.places), "why": why}
                for one, why in self.skipped
            ],
            "entries": len(self.entries),
            "gain": None if self.gain is None else self.gain._asdict(),
        }


def mend(model: nn.Module, diagnosis: Diagnosis, scored: Callable[[], Score] | None) -> Mended:
    """Mend findings in place whose mend helps, or was not measured, and fits the checkpoint.

    Acts on single layers come first; statistics are taken last, once, of what came out.

    Args:
        scored: scores the model; None without evaluation batches.
    """
    chosen, skipped = _choose(diagnosis)
    before = _state(model)
    former = scored() if chosen and scored is not None else None
    program: dict[str, list[str]] = {}
    done: list[Finding] = []
    measured: dict[str, Treatment] = {}
    for one in chosen:
        assert one.treatment is not None
        acts = one.treatment.parts or (one.treatment,)
        last = _state(model)
        handles = [act.apply() for act in acts if act.key not in STATISTICS]
        if not _same_form(before, _state(model)):
            for handle in reversed(handles):
                handle.undo()
            skipped.append((one, "changes the layers themselves, so your program has to"))
            continue
        for row in itertools.chain.from_iterable(map(_changed, handles)):
            program.setdefault(row.note, []).append(row.name)
        statistics = {act.key: act for act in acts if act.key in STATISTICS}
        measured.update(statistics)
        if statistics or _changes(last, _state(model)):
            done.append(one)
        else:
            skipped.append((one, "is in your program, not in the checkpoint"))
    for act in measured.values():
        act.apply()
    after = _state(model)
    entries = {name: after[name] for name in _changes(before, after)}
    widened = frozenset(name for name in entries if before[name].dtype != after[name].dtype)
    gain = None
    if former is not None and scored is not None and entries:
        gain = gain_between(former, scored())
    changes = {change: tuple(dict.fromkeys(names)) for change, names in program.items()}
    return Mended(tuple(done), changes, tuple(skipped), entries, widened, gain)


def _choose(diagnosis: Diagnosis) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """Return the findings to mend, and those to leave, and why."""
    chosen: list[Finding] = []
    skipped: list[tuple[Finding, str]] = []
    statistics = _better(diagnosis)
    for one in diagnosis.findings:
        if one.treatment is None:
            skipped.append((one, "takes a change of your program or data"))
        elif one.gain is not None and not one.gain.helps:
            skipped.append((one, f"brings {one.gain}, which is not surely more than nothing"))
        elif _is_worth_knowing_only(one):
            skipped.append((one, "would fit the statistics to the evaluation batches"))
        elif one.treatment.key in STATISTICS and one.treatment.key != statistics:
            skipped.append((one, "other statistics of these layers bring more"))
        else:
            chosen.append(one)
    return chosen, skipped


def _better(diagnosis: Diagnosis) -> str:
    """Return which statistics to take, where findings propose two kinds."""
    gains = {
        one.treatment.key: one.gain.change if one.gain is not None else 0.0
        for one in diagnosis.findings
        if one.treatment is not None
        and one.treatment.key in STATISTICS
        and (one.gain is None or one.gain.helps)
        and not _is_worth_knowing_only(one)
    }
    return max(gains, key=lambda key: gains[key], default=RECALIBRATE)


def _is_worth_knowing_only(one: Finding) -> bool:
    """Return True for a note that would fit the model to the evaluation batches."""
    key = None if one.treatment is None else one.treatment.key
    return one.severity == "note" and key == RECALIBRATE_ON_EVALUATION


def _changed(handle: Any) -> list[Changed]:
    """Return the changes of attributes that a handle lists."""
    rows = getattr(handle, "changed", ())
    return [row for row in rows if isinstance(row, Changed) and row.note]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def _same_form(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(
        value.shape == after[name].shape for name, value in before.items()
    )


def _changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [
        name
        for name, value in before.items()
        if value.dtype != after[name].dtype
        or not torch.equal(torch.nan_to_num(value), torch.nan_to_num(after[name]))
        or not torch.equal(value.isnan(), after[name].isnan())
    ]
