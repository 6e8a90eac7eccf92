"""State dict of a checkpoint: find the part that fits a model, and load it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normkit.errors import DataError, OptionError, message
from normkit.statistics.layers.find import COUNTER

__all__ = [
    "StateDictPart",
    "load_part",
    "locate_only_part",
    "locate_part",
    "state_dict_of",
]

MAX_DEPTH = 3
"""Nesting of mappings down to which a state dict is searched for."""

MAX_NAMES = 5
"""Names listed for each kind of mismatch."""


class StateDictPart(NamedTuple):
    """Entries of a checkpoint that belong to a model: those with ``prefix``, at ``path``."""

    path: tuple[str, ...]
    prefix: str

    @property
    def name(self) -> str:
        """Name of the part as ``--key`` takes it; empty for the whole file."""
        return ".".join((*self.path, *filter(None, [self.prefix.rstrip(".")])))

    def entries_in(self, content: Any) -> Mapping[str, Any]:
        """Return the mapping at ``path``."""
        for key in self.path:
            content = content[key]
        entries: Mapping[str, Any] = content
        return entries


def locate_part(content: Any, model: nn.Module, key: str | None = None) -> StateDictPart:
    """Find the entries of a checkpoint that fit ``model``.

    They may be the whole file or a mapping under a key (``state_dict``, ``model``, …), and their
    names may have a wrapper's prefix (``module.``, ``model.``, …).

    Args:
        content: the content of the file.
        model: a part fits if it has every entry of the model's state dict, in its shape, and no
            other.
        key: where to look, if several fit.

    Raises:
        DataError: no part fits.
        OptionError: several fit, or there is nothing at ``key``.
    """
    shapes = {
        name: None if not isinstance(value, Tensor) or is_lazy(value) else value.shape
        for name, value in model.state_dict().items()
    }
    parts = [
        StateDictPart(path, prefix)
        for path, state in _state_dicts(content)
        for prefix in _prefixes(state, shapes)
    ]
    if key is not None:
        parts = [part for part in parts if part.name == key] or [
            part for part in parts if part.name.startswith(f"{key}.")
        ]
    mismatches = {part: _mismatches(part, content, shapes) for part in parts}
    fitting = [part for part in parts if not mismatches[part]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise OptionError(
            message(
                "one part of the checkpoint that fits the model",
                "several: " + ", ".join(part.name for part in fitting),
                f"choose with --key, such as --key {fitting[0].name}",
            )
        )
    if not parts:
        content_found = f"nothing like it at {key!r}" if key is not None else _describe(content)
        names = ", ".join(filter(None, (".".join(path) for path, _ in _state_dicts(content))))
        raise (DataError if key is None else OptionError)(
            message(
                f"a checkpoint with a state dict of the model, a {type(model).__name__}",
                content_found,
                "name the model it was saved from"
                + (f", or another key; there are: {names}" if names else ""),
            )
        )
    nearest = min(parts, key=lambda part: sum(map(len, mismatches[part].values())))
    listed = "; ".join(f"{kind} {_join(names)}" for kind, names in mismatches[nearest].items())
    raise DataError(
        message(
            f"a checkpoint whose entries fit the model, a {type(model).__name__}",
            f"at {nearest.name or 'the top of the file'}: {listed}",
            "name the model it was saved from, built as it was then",
        )
    )


def locate_only_part(content: Any, key: str | None = None) -> StateDictPart:
    """Find the state dict in a checkpoint, without a model to compare it with.

    Raises:
        DataError: there is none.
        OptionError: there are several, or none at ``key``.
    """
    paths = {".".join(path): path for path, _ in _state_dicts(content)}
    names = list(paths)
    fitting = [name for name in names if key is None or name == key]
    if len(fitting) == 1:
        return StateDictPart(paths[fitting[0]], "")
    if key is None and not names:
        raise DataError(
            message(
                "a checkpoint with a state dict",
                _describe(content),
                "pass what torch.save(model.state_dict(), file) wrote",
            )
        )
    raise OptionError(
        message(
            "the key of a state dict in the checkpoint",
            f"--key {key}" if key is not None else f"several: {_join(names)}",
            f"choose with --key one of {_join([*filter(None, names)]) or 'none'}",
        )
    )


def _state_dicts(
    content: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if not isinstance(content, Mapping):
        return
    names = [name for name in content if isinstance(name, str)]
    if len(names) == len(content) and any(isinstance(v, Tensor) for v in content.values()):
        yield path, content
    if len(path) < MAX_DEPTH:
        for name in names:
            yield from _state_dicts(content[name], (*path, name))


def _prefixes(state: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """List the prefixes that the model's names may have, the likeliest first."""
    hits = Counter(
        name[: len(name) - len(rest)]
        for name in state
        for rest in (name.split(".", n)[-1] for n in range(name.count(".") + 1))
        if rest in shapes
    )
    most = max(hits.values(), default=0)
    # In a model of many similar parts, each part's names also occur within another's.
    return [prefix for prefix, count in hits.most_common() if 2 * count > most]


def _mismatches(
    part: StateDictPart, content: Any, shapes: Mapping[str, torch.Size | None]
) -> dict[str, list[str]]:
    state = state_dict_of(part, content)
    mismatches = {
        # Files of former versions of torch lack the counter, which torch accepts.
        "missing": [k for k in shapes if k not in state and not k.endswith(COUNTER)],
        "unexpected": [k for k in state if k not in shapes],
        "of another shape": [
            f"{k} ({'×'.join(map(str, state[k].shape))} for {'×'.join(map(str, shape))})"
            for k, shape in shapes.items()
            if shape is not None and isinstance(state.get(k), Tensor) and state[k].shape != shape
        ],
    }
    return {kind: names for kind, names in mismatches.items() if names}


def state_dict_of(part: StateDictPart, content: Any) -> OrderedDict[str, Any]:
    """Return a part's entries by their names in the model, with their versions."""
    entries, prefix = part.entries_in(content), part.prefix
    state = OrderedDict((k[len(prefix) :], v) for k, v in entries.items() if k.startswith(prefix))
    versions = getattr(entries, "_metadata", None)
    if isinstance(versions, Mapping):
        inner = {k[len(prefix) :]: v for k, v in versions.items() if f"{k}.".startswith(prefix)}
        state._metadata = inner  # type: ignore[attr-defined]
    return state


def load_part(model: nn.Module, part: StateDictPart, content: Any) -> None:
    """Load a part of a checkpoint into the model, strictly.

    Raises:
        DataError: torch refuses it.
    """
    try:
        model.load_state_dict(state_dict_of(part, content), strict=True)
    except RuntimeError as error:
        raise DataError(
            message(
                f"a checkpoint that loads into the model, a {type(model).__name__}",
                "from torch: " + " ".join(str(error).split()),
                "name the model it was saved from, built as it was then",
            )
        ) from error


def _join(names: list[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a {type(content).__name__} with {_join([str(k) for k in content]) or 'nothing'}"
    return f"a {type(content).__name__}"
