"""Fixtures and hooks of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from normkit.compat import release
from tests.together import context, leave

pytest_plugins = ["tests.budget", "tests.compiler"]


def pytest_configure() -> None:
    # The images that come with the package for every test and its processes, whatever this machine
    # has or one of them would download while others train. No folder can be made there.
    os.environ["NORMKIT_CACHE"] = f"{os.devnull}/normkit"
    os.environ.pop("NORMKIT_DATA", None)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    # Without a GPU torch.manual_seed keeps the stack of its caller, three times, for when one is
    # found: two milliseconds, and memory that is never freed.
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tests run in parallel, one process per core; threads within each would only compete.
    torch.set_num_threads(1)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the lab's workers from a process that has imported torch; spawning takes seconds."""
    from normkit.lab.executors import local

    monkeypatch.setattr(local, "multiprocessing", SimpleNamespace(get_context=lambda _: context))


@pytest.fixture
def process_group() -> Iterator[Any]:
    """Yield a process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    leave()


_FILE = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A million objects of modules, tests and compilers' caches stay to the end. Looking at each
    # again in every full garbage collection, of which many tests ask for one, would take a third
    # of a second. Before each file, so that no object of one of its tests is set aside.
    global _FILE
    if item.path != _FILE:
        gc.collect()
        gc.freeze()
        _FILE = item.path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if release(torch.__version__) < (2, 8):
        for item in items:
            if item.name == "normkit.surgery.memory.save.save_memory":
                item.add_marker(pytest.mark.skip(reason="needs torch 2.8"))


def pytest_unconfigure() -> None:
    # Libraries report at the exit what the collector was kept from.
    gc.unfreeze()
