"""Export a store as event files for TensorBoard, one folder per run.

``CLAIM/PRESET/ARM/seed N`` holds what was measured, by step, and the run's description as
hyperparameters with its last figures. A run that plays a part in two claims is written for both.
Where an arm has several runs of one seed, the folder's name says in what they differ.

Vectors (quantiles, densities) have no counterpart in TensorBoard and are left out;
:mod:`normkit.lab.export` has them. Values are written as TensorBoard keeps them, in float32.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from normkit.errors import StoreError, message
from normkit.lab.config import RunConfig
from normkit.lab.runs import Planned, Run
from normkit.lab.store import Store

__all__ = ["write"]

SUFFIX = ".normkit"
"""Ends the names of the event files, by which they are known again."""


def write(store: Store, folder: Path) -> list[Path]:
    """Write the begun runs of all plans; return their folders, in order.

    What an earlier call wrote there is taken out first, because TensorBoard would show both.

    Raises:
        StoreError: the folder cannot be written, or there are event files from elsewhere in it.
    """
    written: dict[Path, None] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        for claim, preset in store.plans():
            planned = [each for each in store.planned(claim, preset) if each.run.metrics]
            for place, run in _places(planned):
                target = folder / _name(claim) / _name(preset) / place
                _write_run(run, target)
                written[target] = None
    except OSError as error:
        raise StoreError(
            message(
                "a folder that can be written, for event files",
                f"{folder}: {error}",
                "name another with --out, or free some space",
            )
        ) from error
    return list(written)


def _clear(folder: Path) -> None:
    events = list(folder.rglob("events.out.tfevents.*"))
    foreign = [event for event in events if not event.name.endswith(SUFFIX)]
    if foreign:
        raise StoreError(
            message(
                "a folder without event files of other programs, which TensorBoard would mix in",
                f"{foreign[0]}",
                "name another folder with --out",
            )
        )
    for event in events:
        event.unlink()


def _places(planned: Sequence[Planned]) -> list[tuple[Path, Run]]:
    """Return a folder for each run: its arm, its seed, and what distinguishes it from others."""
    places: dict[Path, Run] = {}
    for each in planned:
        config = each.run.config
        others = [
            other.run.config
            for other in planned
            if other.arm == each.arm and other.run.config.seed == config.seed
        ]
        words = [f"seed {config.seed}"]
        for field in dataclasses.fields(RunConfig):
            value = getattr(config, field.name)
            if any(getattr(other, field.name) != value for other in others):
                words.append(f"{field.name} {_plain(value)}")
        place = Path(_name(each.arm)) / _name(", ".join(words))
        if places.get(place, each.run).config != config:  # two names that differ only in signs
            place = place.with_name(f"{place.name} {config.key[:8]}")
        places[place] = each.run
    return list(places.items())


def _name(text: str) -> str:
    """Return a text as a folder name that is valid on any system."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "_", text)[:100].strip(" .") or "_"


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _write_run(run: Run, folder: Path) -> None:
    config = run.config
    described = {
        field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)
    }
    last = {name: run.last(name) for name in run.metrics}
    figures = {name: value for name, value in last.items() if value is not None}
    # A point's own time is not in the store; all have that at which the run ended.
    when = run.finished or 0.0
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        for summary in hparams({**described, "status": run.status}, figures):
            writer.file_writer.add_summary(summary, walltime=when)
        for name, points in run.metrics.items():
            for step, _, value in points:
                if value is not None:
                    writer.add_scalar(name, value, step, walltime=when)
    for file in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        # TensorBoard's own name for it tells this machine's.
        file.rename(file.with_name(f"events.out.tfevents.{int(when)}{SUFFIX}"))
