"""Load weights of a folded model into one that was built as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Step, run
from normkit.nn.freezing import base_class
from normkit.nn.layer import Layer
from normkit.statistics.check_arguments import check_has_values, check_model
from normkit.statistics.printing.describe import describe, some
from normkit.surgery.fold.hosts import Merged, is_host
from normkit.surgery.fold.norms import is_candidate
from normkit.surgery.fold.steps import AddActivation, merge_step, remains
from normkit.surgery.modules import walk

__all__ = ["load_folded"]


def load_folded(model: nn.Module, state_dict: Mapping[str, Any]) -> Handle:
    """Load the ``state_dict`` of a folded model into one that is not folded, in place.

    Layers whose entries are missing were folded and are removed, as :func:`normkit.fold` leaves
    them; layers that got a bias by it get one. Then all entries are loaded, strictly. Entries that
    are missing for another reason, as of a checkpoint without normalization, look the same: compare
    outputs where you do not know that it was folded.

    Args:
        model: built as the model was before it was folded, in evaluation mode.
        state_dict: of the folded model.

    Returns:
        A handle: ``print`` shows which layers were removed. ``.undo()`` puts them back; weights
        keep their present values.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted.
        OptionError: the entries do not fit, other than by a fold. The model is unchanged.
        StatisticsError: the model is on the meta device.

    >>> def build():
    ...     return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    >>> from normkit.surgery.fold.fold import fold
    >>> folded, model, x = build(), build(), torch.ones(1, 3, 2, 2)
    >>> _ = fold(folded, x)
    >>> print(load_folded(model, folded.state_dict()))
    load_folded: 1 changed, 0 skipped
      1  nn.BatchNorm2d → nn.Identity
      taken for folded, as their entries are missing
    >>> torch.equal(model(x), folded(x))
    True
    """
    check_model(model, "load_folded")
    check_has_values(model)
    if not isinstance(state_dict, Mapping):
        raise OptionError(message("a state dict", describe(state_dict), "pass that of the folded "
                                  "model, torch.load(file)"))  # fmt: skip
    steps: list[Step] = []
    changed: list[Changed] = []
    for name, module in walk(model):
        prefix = f"{name}." if name else ""
        tensors = [*module.named_parameters("", False), *module.named_buffers("", False)]
        entries = [prefix + key for key, _ in tensors]
        if is_candidate(module) and entries and not any(key in state_dict for key in entries):
            # One of this package may be called with a residual, which the entries do not tell.
            rest = remains(module, []).eval()
            takes_residual = isinstance(module, Layer)
            rest = AddActivation(rest).eval() if takes_residual else rest
            cls = base_class(type(module))
            steps.append(merge_step(name, module, rest, {}))
            changed.append(Changed(name, cls, type(rest)))
        elif is_host(module):
            steps += _added(module, prefix, state_dict)
    run(steps)
    try:
        _load(model, state_dict)
    except BaseException:
        for step in reversed(steps):
            step.undo()
        raise
    notes = ["taken for folded, as their entries are missing"] if changed else []
    return Handle("load_folded", changed, [], steps, notes)


def _added(module: nn.Module, prefix: str, state_dict: Mapping[str, Any]) -> list[Step]:
    """Return the step that gives a layer the weights that it lacks and the state dict has."""
    like = next((t for t in (*module.parameters(False), *module.buffers(False))), None)
    names = [
        name
        for name in Merged._fields
        if module._parameters.get(name, 0) is None
        and isinstance(state_dict.get(prefix + name), Tensor)
    ]

    def do() -> None:
        for name in names:
            value = state_dict[prefix + name]
            data = torch.zeros_like(value) if like is None else torch.zeros(
                value.shape, dtype=like.dtype, device=like.device
            )  # fmt: skip
            module._parameters[name] = nn.Parameter(data)

    def undo() -> None:
        for name in names:
            module._parameters[name] = None

    return [Step(do, undo)] if names else []


def _load(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load all entries.

    Raises:
        OptionError: they do not fit.
    """
    present = model.state_dict()
    missing = [key for key in present if key not in state_dict and not key.endswith("_tracked")]
    unexpected = [key for key in state_dict if key not in present]
    shapes = [
        key for key, value in present.items()
        if isinstance(value, Tensor) and key in state_dict and value.shape != state_dict[key].shape
    ]  # fmt: skip
    rows = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(rows.values()):
        listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in rows.items() if keys)
        raise OptionError(message("entries of this model once it is folded", listed,
                                  "build the model as it was before it was folded"))  # fmt: skip
    model.load_state_dict(state_dict, strict=False)
