"""Fixtures and hooks of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest_plugins = ["tests.budget"]

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tests run in parallel, one process per core; threads within each would only compete.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what belongs to the lab, so that ``-m "not lab"`` leaves the layers' tests."""
    for item in items:
        folders = item.path.relative_to(ROOT).parts
        if {"lab", "report", "golden"} & {*folders} or item.path.name.startswith(
            ("lab", "test_lab")
        ):
            item.add_marker("lab")
