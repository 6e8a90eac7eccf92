"""Record the golden files: what handles and layers print, and the help of every command.

    python -W ignore -m tests.golden.record                # rewrite tests/golden/*.json
    python -W ignore -m tests.golden.record reprs helps    # or one of them
    python -W ignore -m tests.golden.record rules          # the table of docs/doctor.md

A difference is explained in docs/log.md before it is recorded.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import normkit as nk

FOLDER = Path(__file__).parent


class Odd(nn.BatchNorm2d):
    """A subclass that overrides forward, which no function may take for its base."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


Odd.__module__ = "models"  # however this file is run


def network() -> nn.Sequential:
    """Layers of every kind that the functions of :mod:`normkit.surgery` treat differently."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(),
        nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(0.2),
        Odd(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.Sigmoid(),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5), nn.ReLU(), nn.LayerNorm(5),
    )  # fmt: skip


def reprs() -> dict[str, str]:
    """What handles, results and layers print."""
    x = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    batches = [x[:8], x[8:16], x[16:]]

    def ready() -> nn.Sequential:
        model = network()
        model(x)
        return model

    found: dict[str, str] = {"accelerate": repr(nk.accelerate(ready()))}
    for to in ("sync", ("ghost", 4), "batch"):
        found[f"convert {to}"] = repr(nk.convert(ready(), to))
    found["freeze"] = repr(nk.freeze(ready()))
    frozen = ready()
    nk.freeze(frozen)
    found["unfreeze"] = repr(nk.unfreeze(frozen))
    found["scale_momentum"] = repr(nk.scale_momentum(ready(), 4))
    model = ready()
    found["recalibrate"] = repr(nk.recalibrate(model, batches, progress=False))
    model = ready()
    found["recalibrate layerwise"] = repr(
        nk.recalibrate(model, batches, layerwise=True, progress=False)
    )
    found["consistency"] = repr(nk.consistency(ready(), batches, progress=False))
    for name in nk.__all__:
        cls = getattr(nk, name)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            for arguments in ((4,), (2, 4), (4, 2)):
                try:
                    found[f"{name}{arguments}"] = repr(cls(*arguments))
                    break
                except Exception:
                    continue
    # How long it took is no golden figure.
    return {name: re.sub(r"\d+\.\d s;", "… s;", text) for name, text in found.items()}


def helps() -> dict[str, str]:
    """The help of every command, 80 columns wide."""
    import typer.main
    from typer.testing import CliRunner

    os.environ.update(COLUMNS="80", TERMINAL_WIDTH="80", NO_COLOR="1", TERM="dumb")
    from normkit.cli.app import app

    def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        yield words
        for name, command in sorted(getattr(group, "commands", {}).items()):
            yield from commands(command, (*words, name))

    runner = CliRunner()
    return {
        " ".join(("normkit", *words)): runner.invoke(app, [*words, "--help"]).output
        for words in commands(typer.main.get_command(app))
    }


GUIDE = FOLDER.parents[1] / "docs" / "doctor.md"
BEGIN, END = "<!-- rules: begin -->\n", "<!-- rules: end -->"


def rules() -> str:
    """The table of the doctor's rules, as its guide holds it."""
    from normkit.doctor.rules import RULES

    rows = [f"| {rule.code} | {rule.title} |" for rule in RULES]
    return "\n".join(["| code | finding |", "|---|---|", *rows, ""])


def guide_with(table: str) -> str:
    """The doctor's guide with this table of rules."""
    head, rest = GUIDE.read_text().split(BEGIN)
    return head + BEGIN + table + END + rest.split(END)[1]


def load(name: str) -> Any:
    """A golden file's content."""
    return json.loads((FOLDER / name).read_text())


def save(name: str, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (FOLDER / name).write_text(text)


def differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    """One line for each place where two plain values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key, "—"), now.get(key, "—"), f"{at}/{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{at}/{index}")
    elif isinstance(before, float) and isinstance(now, (int, float)):
        if abs(before - now) > 1e-9 * max(abs(before), abs(now)):
            yield f"{at}: {before!r} → {now!r}"
    elif before != now:
        yield f"{at}: {before!r} → {now!r}"


def main(words: list[str]) -> None:
    parts = words or ["reprs", "helps"]
    if "reprs" in parts:
        save("reprs.json", reprs())
    if "helps" in parts:
        save("helps.json", helps())
    if "rules" in parts:
        GUIDE.write_text(guide_with(rules()))


if __name__ == "__main__":
    main(sys.argv[1:])
