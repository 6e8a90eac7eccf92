"""Record the golden files, or compare with them.

    python -W ignore -m tests.golden.record            # rewrite tests/golden/*.json
    python -m tests.golden.record claims C3  # print what differs, claim by claim

A difference is explained in docs/log.md before it is recorded.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
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
from normkit.lab.claims.claim import PRESETS, Available, Claim
from normkit.lab.claims.registry import all_claims, forms
from normkit.lab.judge import finding
from tests.lab.claims.invented import WORLDS, evidence

FOLDER = Path(__file__).parent
SMALL = dict.fromkeys(("records", "seconds"))


def number(value: Any) -> Any:
    """Twelve digits of a float: sums may be taken in another order."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, (list, tuple)):
        return [number(each) for each in value]
    if isinstance(value, dict):
        return {str(key): number(each) for key, each in value.items()}
    return value


def judged(claim: Claim) -> dict[str, Any]:
    """A claim's findings in every world, as plain values without the runs' records."""
    cases = [("quick", world) for world in WORLDS] + [("full", "clear"), ("full", "broken")]
    found: dict[str, Any] = {}
    for preset, world in cases:
        try:
            result = finding(claim, evidence(claim, preset, world), data="invented")  # type: ignore[arg-type]
        except Exception as error:  # a fault that a later step may mend, and then says so
            found[f"{preset} {world}"] = f"{type(error).__name__}: {error}"
            continue
        values = dataclasses.asdict(result)
        for name in SMALL:
            values.pop(name)
        found[f"{preset} {world}"] = number(values)
    return found


def plans(claim: Claim) -> dict[str, Any]:
    """The runs of every preset: how many, and a digest of each arm's keys in order."""
    found: dict[str, Any] = {}
    for preset in PRESETS:
        arms: dict[str, list[str]] = {}
        order = hashlib.sha256()
        for arm, config in claim.plan(preset, Available.whole(claim.data)):
            arms.setdefault(arm, []).append(config.key)
            order.update(f"{arm} {config.key}\n".encode())
        found[preset] = {
            "order": order.hexdigest()[:16],
            "arms": {
                arm: f"{len(keys)} {hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}"
                for arm, keys in arms.items()
            },
        }
    return found


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


def load(name: str) -> Any:
    """A golden file's content."""
    path = FOLDER / name
    if name.endswith(".gz"):
        return json.loads(gzip.decompress(path.read_bytes()))
    return json.loads(path.read_text())


def save(name: str, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path = FOLDER / name
    if not name.endswith(".gz"):
        path.write_text(text)
        return
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(text.encode())
    path.write_bytes(packed.getvalue())


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
    claims = forms(all_claims().values())
    if words[:1] == ["claims"]:
        keys = [word.upper() for word in words[1:]]
        for claim in claims:
            if keys and claim.key not in keys:
                continue
            for line in differences(load("plans.json")[claim.key], plans(claim)):
                print(f"{claim.key} plan {line[:400]}")
            for line in differences(load("findings.json.gz")[claim.key], judged(claim)):
                print(f"{claim.key} {line[:400]}")
        return
    parts = words or ["plans", "findings", "reprs", "helps"]
    if "plans" in parts:
        save("plans.json", {claim.key: plans(claim) for claim in claims})
    if "findings" in parts:
        save("findings.json.gz", {claim.key: judged(claim) for claim in claims})
    if "reprs" in parts:
        save("reprs.json", reprs())
    if "helps" in parts:
        save("helps.json", helps())


if __name__ == "__main__":
    main(sys.argv[1:])
