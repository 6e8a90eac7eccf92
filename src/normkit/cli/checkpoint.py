"""A checkpoint in which the remembered moments are exchanged, and nothing else."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normkit.errors import DataError, OptionError, StatisticsError, explain
from normkit.statistics.stats_layers import named_moments

__all__ = ["States", "exchanged", "fill", "locate"]

DEPTH = 3
"""So many mappings deep a state dict is looked for."""

NAMED = 5
"""So many names are given of each kind of misfit."""


class States(NamedTuple):
    """The entries of a checkpoint that are a model's: those that begin with ``prefix``, at
    ``path``."""

    path: tuple[str, ...]
    prefix: str

    @property
    def name(self) -> str:
        """As ``--key`` takes it; empty for the whole file."""
        return ".".join((*self.path, *filter(None, [self.prefix.rstrip(".")])))

    def of(self, content: Any) -> Mapping[str, Any]:
        """The mapping in which they stand."""
        for key in self.path:
            content = content[key]
        found: Mapping[str, Any] = content
        return found


def locate(content: Any, model: nn.Module, key: str | None = None) -> States:
    """Find the entries that are ``model``'s.

    They may be the whole file or stand under a key (``state_dict``, ``model``, …), and their
    names may begin with what a wrapper puts before them (``module.``, ``model.``, …).

    Args:
        content: all that the file holds.
        model: every entry of its state dict must be there, with its shape, and no other.
        key: where to look, if there are several.

    Raises:
        DataError: nothing there fits.
        OptionError: several do, or there is nothing at ``key``.
    """
    wanted = {
        name: None if not isinstance(value, Tensor) or is_lazy(value) else value.shape
        for name, value in model.state_dict().items()
    }
    places = [
        States(path, prefix)
        for path, state in _state_dicts(content)
        for prefix in _prefixes(state, wanted)
    ]
    if key is not None:
        places = [place for place in places if place.name == key] or [
            place for place in places if place.name.startswith(f"{key}.")
        ]
    misfits = {place: _misfits(place, content, wanted) for place in places}
    fitting = [place for place in places if not misfits[place]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise OptionError(
            explain(
                "one part of the checkpoint is recalibrated",
                "several that fit the model: " + ", ".join(place.name for place in fitting),
                f"choose with --key, such as --key {fitting[0].name}",
            )
        )
    if not places:
        what = f"nothing like it at {key!r}" if key is not None else _shown(content)
        names = ", ".join(filter(None, (".".join(path) for path, _ in _state_dicts(content))))
        raise (DataError if key is None else OptionError)(
            explain(
                f"a checkpoint holds the state dict of the model, a {type(model).__name__}",
                what,
                "name the model it was saved from"
                + (f", or another key; there are: {names}" if names else ""),
            )
        )
    nearest = min(places, key=lambda place: sum(map(len, misfits[place].values())))
    told = "; ".join(f"{kind} {_some(names)}" for kind, names in misfits[nearest].items())
    raise DataError(
        explain(
            f"every entry of the checkpoint fits the model, a {type(model).__name__}",
            f"at {nearest.name or 'the top of the file'}: {told}",
            "name the model that it was saved from, built as it was then",
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
    if len(path) < DEPTH:
        for name in names:
            yield from _state_dicts(content[name], (*path, name))


def _prefixes(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What may stand before the model's names, the likeliest first."""
    hits = Counter(
        name[: len(name) - len(rest)]
        for name in state
        for rest in (name.split(".", n)[-1] for n in range(name.count(".") + 1))
        if rest in wanted
    )
    most = max(hits.values(), default=0)
    # Of a model of many parts alike, each part's names are also found within another's.
    return [prefix for prefix, count in hits.most_common() if 2 * count > most]


def _misfits(
    place: States, content: Any, wanted: Mapping[str, torch.Size | None]
) -> dict[str, list[str]]:
    given = _given(place, content)
    found = {
        # Files of former versions of torch lack it, and torch knows.
        "missing": [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in given if k not in wanted],
        "of another shape": [
            f"{k} ({'×'.join(map(str, given[k].shape))} for {'×'.join(map(str, shape))})"
            for k, shape in wanted.items()
            if shape is not None and isinstance(given.get(k), Tensor) and given[k].shape != shape
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def _given(place: States, content: Any) -> OrderedDict[str, Any]:
    """The model's entries by their names in the model, with the versions that go with them."""
    state, prefix = place.of(content), place.prefix
    given = OrderedDict((k[len(prefix) :], v) for k, v in state.items() if k.startswith(prefix))
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        inner = {k[len(prefix) :]: v for k, v in versions.items() if f"{k}.".startswith(prefix)}
        given._metadata = inner  # type: ignore[attr-defined]
    return given


def fill(model: nn.Module, place: States, content: Any) -> None:
    """Load a model's entries, strictly.

    Raises:
        DataError: torch finds that they do not fit after all.
    """
    try:
        model.load_state_dict(_given(place, content), strict=True)
    except RuntimeError as error:
        raise DataError(
            explain(
                f"the checkpoint can be loaded into the model, a {type(model).__name__}",
                "of torch: " + " ".join(str(error).split()),
                "name the model that it was saved from, built as it was then",
            )
        ) from error


def exchanged(content: Any, place: States, model: nn.Module) -> Any:
    """``content`` with the moments that ``model`` remembers now; ``content`` itself stays.

    Each keeps its type and its place; entries that were one tensor are one again.

    Raises:
        StatisticsError: a layer's moments are no entries of its state dict, or are too large for
            the type they are kept in.
    """
    state = copy.copy(place.of(content))
    made: dict[Any, Tensor] = {}
    for name, value in named_moments(model).items():
        old = state.get(place.prefix + name)
        if not isinstance(old, Tensor):
            raise StatisticsError(
                explain(
                    "moments that are to be kept in a file are entries of the state dict",
                    f"none named {name}",
                    "make it a persistent buffer of its layer",
                )
            )
        same = (old.untyped_storage().data_ptr(), old.storage_offset(), old.shape, old.stride())
        if same not in made:
            made[same] = torch.empty_like(old).copy_(value)
            if not bool(made[same].isfinite().all()) and bool(value.isfinite().all()):
                raise StatisticsError(
                    explain(
                        "moments fit the type in which the checkpoint keeps them",
                        f"{name} up to {float(value.abs().max()):.3g} for {old.dtype}",
                        "save the checkpoint with its buffers in float32",
                    )
                )
        state[place.prefix + name] = made[same]  # type: ignore[index]
    return _with(content, place.path, state)


def _with(content: Any, path: tuple[str, ...], state: Any) -> Any:
    if not path:
        return state
    new = copy.copy(content)
    new[path[0]] = _with(content[path[0]], path[1:], state)
    return new


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _shown(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a {type(content).__name__} with {_some([str(k) for k in content]) or 'nothing'}"
    return f"a {type(content).__name__}"
