"""The made-up findings, for all tests of the report."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(stem: str) -> ModuleType:
    """A module beside this file, by its place: the folder is no package."""
    name = f"normkit_report_{stem}"
    if name not in sys.modules:
        place = Path(__file__).with_name(f"{stem}.py")
        spec = importlib.util.spec_from_file_location(name, place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and annotations look their module up by name.
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """Findings as the lab makes them."""
    return load("samples")


@pytest.fixture(scope="session")
def odd() -> ModuleType:
    """Findings that try the page's patience."""
    return load("odd")
