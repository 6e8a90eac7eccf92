"""Attributes of modules as they were, whatever a pass of the model stores in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["preserve_attributes"]


@contextlib.contextmanager
def preserve_attributes(model: nn.Module) -> Iterator[None]:
    """Restore every module's attributes, and what lists, dicts and sets among them hold.

    A model may keep what it computes, such as encodings of positions: of a pass in float64 they
    would stay float64 for every later one.

    >>> model = nn.Module()
    >>> with preserve_attributes(model):
    ...     model.cache = 1
    >>> hasattr(model, "cache")
    False
    """
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    before = [(vars(module), _contents(vars(module))) for module in modules]
    try:
        yield
    finally:
        for attributes, (values, containers) in before:
            if not _same(attributes, values):
                attributes.clear()
                attributes.update(values)
            for container, contents in containers:
                _refill(container, contents)


def _contents(attributes: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    containers = [v for v in attributes.values() if isinstance(v, (dict, list, set))]
    return dict(attributes), [(each, each.copy()) for each in containers]


def _same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[key] is before[key] for key in before)


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, dict):
        if not _same(container, contents):
            container.clear()
            container.update(contents)
    elif isinstance(container, list):
        container[:] = contents
    elif container != contents:
        container.clear()
        container.update(contents)
