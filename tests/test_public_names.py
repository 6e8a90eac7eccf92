"""Every public name is listed, once and in order, as httpx tests its own."""

from __future__ import annotations

from types import ModuleType

import pytest

import normkit


@pytest.mark.parametrize(
    "module",
    [normkit, normkit.adaptation, normkit.nn, normkit.statistics, normkit.surgery],
    ids=lambda m: m.__name__,
)
def test_all_is_complete_and_sorted(module: ModuleType) -> None:
    public = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (not isinstance(value, ModuleType) or name == "errors")
    ]
    assert list(module.__all__) == sorted(public)
