"""``normkit fold``: fold batch normalization of a checkpoint into the layers around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.console import console, print_json
from normkit.cli.options import Device, Force, Json, Key, Model, Trust
from normkit.cli.rewriting import default_target, print_written, rewrite, users_code

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["fold"]


def fold(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file by torch.save; it is not changed.")
    ],
    model: Model,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME", help="A batch to run once, such as train:batch; or a function."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W", help="Shape of random numbers for the example, such as 1,3,224,224."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--output", metavar="FILE", help="File to write. Default: NAME.folded.pt."
        ),
    ] = None,
    key: Key = None,
    trust: Trust = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fold batch normalization into the convolutions around it, for faster evaluation.

    normkit fold last.pt --model train:model --shape 1,3,224,224

    writes last.folded.pt: the folded weights in place of the old ones, all else as it was. Load it
    with nk.load_folded(model, state_dict) into a model that was built as before. The example is run
    once to find what follows what; each fold is checked, and the whole model.

    Modules are imported from the current directory or the installed packages. The checkpoint is
    read as data: no code in it is run, but that of the classes in --trust.
    """
    target = default_target(checkpoint, "folded") if out is None else out
    with users_code(as_json):
        part_key, handle = rewrite(
            checkpoint, target, model, lambda net, on: _fold(net, on, example, shape), _replace,
            key=key, trust=trust or (), device_name=device, force=force,
        )  # fmt: skip
    if as_json:
        print_json({
            "path": str(target),
            "key": part_key,
            "folded": [{"name": row.name, "note": row.note} for row in handle.changed],
            "skipped": [{"name": row.name, "why": row.why} for row in handle.skipped],
        })  # fmt: skip
        return
    console().print(repr(handle), soft_wrap=True, markup=False)
    print_written(checkpoint, target, part_key)


def _fold(model: nn.Module, device: torch.device, example: str | None, shape: str | None) -> Any:
    """Fold; return the handle.

    Raises:
        OptionError: there is nothing to fold, or no example.
    """
    from normkit.cli.loading import load_example
    from normkit.errors import OptionError, message
    from normkit.surgery import fold as fold_model

    handle = fold_model(model.eval(), load_example(example, shape, device))
    if not handle.changed:
        raise OptionError(message("a layer that can be folded", repr(handle), "nothing is to be "
                                  "written: use the checkpoint as it is"))  # fmt: skip
    return handle


def _replace(*parts: Any) -> Any:
    from normkit.cli.checkpoint_state import replace_state

    return replace_state(*parts)
