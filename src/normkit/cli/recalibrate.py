"""``normkit recalibrate``: replace the running statistics of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from normkit.cli.console import console, print_json
from normkit.cli.loading import read_samples
from normkit.cli.options import Device, Force, Json, Key, Model, Trust
from normkit.cli.rewriting import default_target, print_written, rewrite, users_code

__all__ = ["recalibrate"]


def recalibrate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file by torch.save; it is not changed.")
    ],
    model: Model,
    batches: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME",
            help="Training batches, such as train:loader; or a function that returns them.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write. Default: NAME.recalibrated.pt."),
    ] = None,
    samples: Annotated[
        str,
        typer.Option(metavar="N", help="Samples to read, at most; or 'all' for every batch."),
    ] = "10000",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            help="Stop once the worst layer's relative standard error is below this, such as 0.01.",
        ),
    ] = None,
    layerwise: Annotated[
        bool,
        typer.Option(
            "--layerwise", metavar="", help="For batches of a few samples; makes several passes."
        ),
    ] = False,
    key: Key = None,
    trust: Trust = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Mend a checkpoint's running means and variances: measure them on data, under its weights.

    normkit recalibrate last.pt --model train:model --batches train:loader

    writes last.recalibrated.pt, in which everything else is as in the checkpoint: weights,
    optimizer and the rest.

    Modules are imported from the current directory or the installed packages. The checkpoint is
    read as data: no code in it is run, but that of the classes in --trust.
    """
    target = default_target(checkpoint, "recalibrated") if out is None else out
    with users_code(as_json):
        options = {
            "samples": read_samples(samples),
            "tolerance": tolerance,
            "layerwise": layerwise or None,
        }
        part_key, result = rewrite(
            checkpoint, target, model,
            lambda net, on: _recalibrate(net, on, batches, options), _replace,
            key=key, trust=trust or (), device_name=device, force=force,
        )  # fmt: skip
    if as_json:
        print_json({"path": str(target), "key": part_key, **result.summary()})
        return
    console().print(repr(result), soft_wrap=True)
    print_written(checkpoint, target, part_key)


def _recalibrate(model: Any, device: Any, batches: str, options: dict[str, Any]) -> Any:
    from normkit.cli.loading import load_batches
    from normkit.statistics import recalibrate as recalibrate_model

    return recalibrate_model(model, load_batches(batches, "--batches", device), **options)


def _replace(*parts: Any) -> Any:
    from normkit.cli.checkpoint_entries import replace_stats

    return replace_stats(*parts)
