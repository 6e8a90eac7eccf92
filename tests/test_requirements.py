"""The package imports, and its program says what to install, beside torch and numpy alone."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import normkit

ABSENT = ("rich", "typer", "scipy", "plotly")


def _with_requirements(name: str, known: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """An installed distribution and all that it requires, without extras."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:  # required on another system
        return
    if distribution.name in known:
        return
    known.add(distribution.name)
    yield distribution
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            yield from _with_requirements(re.split(r"[^\w.-]", requirement)[0], known)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Python finds torch, numpy, what they require, and normkit, and nothing else."""
    packages = tmp_path_factory.mktemp("packages")
    for root in ("torch", "numpy"):
        for distribution in _with_requirements(root, set()):
            for file in distribution.files or ():
                top = file.parts[0]
                link = packages / top
                if top != ".." and not link.exists():
                    link.symlink_to(Path(str(distribution.locate_file(top))))
    return os.pathsep.join((str(packages), str(Path(normkit.__file__).parents[1])))


def _run(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S: without the packages of the installation that runs the tests.
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_layers_and_statistics_need_torch_and_numpy_only(bare: str) -> None:
    code = f"""
import importlib.util
for name in {ABSENT}:
    assert importlib.util.find_spec(name) is None, name
import torch, normkit as nk
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
batches = list(torch.randn(3, 16, 4))
for changed in (nk.accelerate(model), nk.freeze(model), nk.unfreeze(model),
                nk.convert(model, ("ghost", 4)), nk.scale_momentum(model, 2),
                nk.recalibrate(model, batches), nk.consistency(model, batches)):
    print(changed)
"""
    done = _run(bare, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "accelerate: 1 changed" in done.stdout


def test_the_program_says_what_to_install(bare: str) -> None:
    done = _run(bare, "-m", "normkit.cli.main", "lab", "list")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        "normkit: Expected the packages of the command line; received an installation without "
        "typer and rich. Fix: pip install "
    )
