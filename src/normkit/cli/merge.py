"""``normkit merge``: several checkpoints of one model made one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import console, print_json
from normkit.cli.options import Force, Json, Key, Trust
from normkit.cli.rewriting import users_code, write_checked
from normkit.errors import NormkitError, OptionError, message

if TYPE_CHECKING:
    from torch import nn

    from normkit.cli.checkpoint import StateDictPart

__all__ = ["merge"]


def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Two files or more by torch.save; they are not changed."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="How much each counts, in the files' order, such as their samples: 600,200,200. "
            "Default: all the same.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="The model, such as train:model: tells which entries are running statistics where "
            "PyTorch's names do not.",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RULE",
            help="What to do with other entries: NAME=mean, first, max or sum; NAME may be a "
            "pattern such as '*.step'. Repeatable.",
        ),
    ] = None,
    key: Key = None,
    trust: Trust = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make one checkpoint of several: average the weights, merge the running statistics.

    normkit merge a.pt b.pt --weights 600,200 --out merged.pt

    Everything else in the new file, such as an optimizer's state, is the first file's.

    If the weights differ, recalibrate the result: no file's statistics are those of the average.
    """
    with users_code(as_json):
        options = {
            "weights": None if weights is None else _read_weights(weights),
            "rules": dict(map(_read_rule, rule)) if rule else None,
        }
        summary = _run(checkpoints, out, model, key, trust or (), force, options)
    if as_json:
        print_json(summary)
        return
    show = console()
    show.print(
        f"merge: {summary['checkpoints']} checkpoints, {_count(summary['entries'], 'entry')}, "
        f"statistics of {_count(summary['statistics'], 'layer')} merged as moments",
        soft_wrap=True,
    )
    if summary["weights_differ"] and summary["statistics"]:
        show.print(
            "The weights differ, so these are statistics of none of the networks: "
            f"normkit recalibrate {out} --model … --batches … before it is used",
            soft_wrap=True,
        )
    if summary["other"]:
        show.print(f"As in the first file: {', '.join(summary['other'])}", soft_wrap=True)
    show.print(f"Wrote {out}", soft_wrap=True)


def _count(number: int, what: str) -> str:
    plural = {"entry": "entries", "layer": "layers"}[what]
    return f"{number:,} {what if number == 1 else plural}"


def _read_weights(text: str) -> list[float]:
    try:
        return [float(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise OptionError(
            message(
                "--weights as numbers with commas between",
                repr(text),
                "pass e.g. --weights 600,200,200",
            )
        ) from None


def _read_rule(text: str) -> tuple[str, str]:
    name, equals, rule = text.rpartition("=")
    if not (name and equals):
        raise OptionError(message("--rule as NAME=RULE", repr(text), "pass e.g. --rule step=max"))
    return name, rule


def _run(
    checkpoints: Sequence[Path],
    target: Path,
    model_name: str | None,
    key: str | None,
    trust: Sequence[str],
    force: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Write the new checkpoint; return what was done, in plain values."""
    import torch

    from normkit.cli.checkpoint import state_dict_of
    from normkit.cli.checkpoint_entries import replace_entries
    from normkit.cli.checkpoint_files import check_target, read_checkpoint
    from normkit.cli.loading import load_model
    from normkit.surgery import merge as merge_states
    from normkit.surgery.merging.entries import find_stats_entries

    for checkpoint in checkpoints:
        check_target(target, checkpoint, force=force)
    model = None if model_name is None else load_model(model_name, "--model")
    contents = [read_checkpoint(checkpoint, trust) for checkpoint in checkpoints]
    parts = [_part(content, model, key) for content in contents]
    states = [state_dict_of(part, content) for part, content in zip(parts, contents, strict=True)]
    merged = _merged(checkpoints, lambda: merge_states(states, model=model, **options))
    entries = find_stats_entries(merged, model)
    statistics = {name for entry in entries for name in entry.names}
    tensors = {name: value for name, value in merged.items() if isinstance(value, torch.Tensor)}
    content = replace_entries(contents[0], parts[0], tensors)
    write_checked(target, content, checkpoints, force=force)
    (path, prefix), weights = parts[0], options["weights"] or [1.0] * len(checkpoints)
    whole = parts[0].entries_in(contents[0])
    others = [str(name) for name in whole if not str(name).startswith(prefix)]
    others += [str(name) for name in contents[0] if name != path[0]] if path else []
    return {
        "path": str(target),
        "key": parts[0].name,
        "checkpoints": len(checkpoints),
        "weights": [weight / math.fsum(weights) for weight in weights],
        "entries": len(merged),
        "statistics": len(entries),
        "weights_differ": any(
            not torch.equal(state[name], states[0][name])
            for state in states[1:]
            for name in tensors
            if name not in statistics
        ),
        "other": others,
    }


def _merged(checkpoints: Sequence[Path], merge_states: Callable[[], Any]) -> Any:
    """Merge; an error names the files that it counts."""
    try:
        return merge_states()
    except NormkitError as error:
        text = re.sub(
            r"\bnumber (\d+)", lambda match: str(checkpoints[int(match[1]) - 1]), str(error)
        )
        text = re.sub(r'rules=\{"(.*?)": "(\w+)"\}', r"--rule \1=\2", text)
        raise type(error)(text) from error


def _part(content: Any, model: nn.Module | None, key: str | None) -> StateDictPart:
    from normkit.cli.checkpoint import locate_only_part, locate_part

    return locate_only_part(content, key) if model is None else locate_part(content, model, key)
