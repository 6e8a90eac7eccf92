"""Carry out ``normkit doctor``: load, diagnose, mend, write."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normkit.cli.checkpoint import StateDictPart
from normkit.cli.checkpoint_entries import replace_entries
from normkit.cli.checkpoint_files import check_target, read_checkpoint, write_checkpoint
from normkit.cli.doctor_mend import Mended, mend
from normkit.cli.loading import (
    load_batches,
    load_content,
    load_device,
    load_model,
    read_samples,
)
from normkit.cli.objects import call_or_return, find_object
from normkit.doctor.diagnose import diagnose
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import SEVERITIES
from normkit.doctor.rules import RULES, Rule
from normkit.doctor.sarif import to_sarif
from normkit.doctor.scores import Score, score
from normkit.errors import DataError, message

__all__ = ["Outcome", "Request", "run"]


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of the command, as they were typed."""

    model: str
    train: str | None
    test: str | None
    checkpoint: Path | None
    key: str | None
    trust: Sequence[str] | None
    optimizer: str | None
    samples: str
    forward: str | None
    loss: str | None
    device: str
    mend: Path | None
    force: bool
    page: Path | None
    sarif: Path | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of the command.

    Attributes:
        request: its options.
        diagnosis: of the model before anything was mended.
        mended: what ``--mend`` did; None without it.
        rules: all rules.
    """

    request: Request
    diagnosis: Diagnosis
    mended: Mended | None
    rules: Sequence[Rule] = RULES

    def reaches(self, level: str) -> bool:
        """Return True if a finding, that was not mended, is as severe as ``level``."""
        done = () if self.mended is None else self.mended.done
        severities = SEVERITIES[: SEVERITIES.index(level) + 1]
        return any(one.severity in severities for one in self.diagnosis.findings if one not in done)

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        request, mended = self.request, self.mended
        files = {"page": request.page, "sarif": request.sarif}
        return {
            "model": request.model,
            "checkpoint": None if request.checkpoint is None else str(request.checkpoint),
            **self.diagnosis.to_json(),
            "mend": None
            if mended is None
            else {"path": str(request.mend) if mended.entries else None, **mended.to_json()},
            **{name: None if path is None else str(path) for name, path in files.items()},
        }


def run(request: Request, note: Callable[[str], None]) -> Outcome:
    """Diagnose the model, mend it if that is asked for, and write the files."""
    _check_targets(request)
    samples = read_samples(request.samples)
    device = load_device(request.device)
    note(f"importing {request.model}")
    content = None
    if request.checkpoint is not None:
        content = read_checkpoint(request.checkpoint, request.trust or ())
    model = load_model(request.model, "MODEL")
    part = StateDictPart((), "")
    if content is not None:
        part = load_content(model, content, request.key)
    model = model.to(device)
    train, test = (
        None if name is None else load_batches(name, option, device)
        for name, option in ((request.train, "--train"), (request.test, "--test"))
    )
    forward, loss = (
        None if name is None else find_object(name, option)
        for name, option in ((request.forward, "--forward"), (request.loss, "--loss"))
    )
    result = diagnose(
        model, train, test, optimizer=_optimizer(request.optimizer, model), samples=samples,
        forward=forward, loss=loss, note=note,
    )  # fmt: skip
    mended = None
    if request.mend is not None:
        note("mending")

        def scored() -> Score:
            assert test is not None
            return score(model, test, samples=samples, forward=forward, loss=loss)

        mended = mend(model, result, scored if result.score is not None else None)
        if mended.entries:
            whole = model.cpu().state_dict() if content is None else content
            whole = replace_entries(whole, part, mended.entries, mended.widened)
            write_checkpoint(request.mend, whole)
    outcome = Outcome(request, result, mended)
    _write(outcome)
    return outcome


def _check_targets(request: Request) -> None:
    source = request.checkpoint or Path(os.devnull)
    for target in (request.mend, request.sarif):
        if target is not None:
            check_target(target, source, force=request.force)
    if request.page is not None:
        from normkit.report import check_target as check_page

        check_page(request.page)


def _optimizer(name: str | None, model: nn.Module) -> Any:
    """Import an optimizer, or call the function that makes one of the model."""
    if name is None:
        return None
    value = find_object(name, "--optimizer")
    if not hasattr(value, "param_groups") and callable(value):
        with_model = [
            p for p in inspect.signature(value).parameters.values() if p.default is p.empty
        ]
        if len(with_model) == 1:
            value = value(model)
    return call_or_return(
        value,
        lambda one: isinstance(one, torch.optim.Optimizer),
        "an optimizer of torch.optim",
        "--optimizer",
    )


def _write(outcome: Outcome) -> None:
    request = outcome.request
    if request.page is not None:
        from normkit.report.doctor import write

        write(outcome.diagnosis, request.page, about=_about(outcome))
    if request.sarif is not None:
        file, line = source_of(request.model)
        log = to_sarif(outcome.diagnosis, file=file, line=line)
        text = json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False)
        try:
            request.sarif.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(
                message(
                    "a file that can be written for --sarif",
                    f"{request.sarif}: {error.strerror or error}",
                    "name a file in another folder",
                )
            ) from error


def _about(outcome: Outcome) -> dict[str, str]:
    request = outcome.request
    options = {
        "model": request.model,
        "checkpoint": request.checkpoint,
        "training batches": request.train,
        "evaluation batches": request.test,
        "optimizer": request.optimizer,
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def source_of(name: str) -> tuple[str | None, int]:
    """Return the file of ``package.module:attribute`` below the current directory, and its line.

    None for a module that is elsewhere, as of an installed package.
    """
    module_name, _, attribute = name.partition(":")
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(Path.cwd().resolve()):
        return None, 1
    first = re.escape(attribute.partition(".")[0])
    pattern = re.compile(rf"(?:(?:async )?def|class)\s+{first}\b|{first}\s*[:=]")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    line = next((number for number, row in enumerate(lines, 1) if pattern.match(row)), 1)
    return Path(file).resolve().relative_to(Path.cwd().resolve()).as_posix(), line
