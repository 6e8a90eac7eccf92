"""The disk fills up under a study: on a real file system, as small as can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normkit.cli.app import app
from normkit.lab.claims.claim import Claim
from normkit.lab.store import Store

Resize = Callable[[int], Path]
TIMES = ("epoch_seconds",)
RESULTS = {"done", "diverged"}

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"),
    reason="only the superuser can mount a file system",
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Resize]:
    """Mounts a file system of so many KiB, or changes the size of the one that is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        how = ["-o", f"remount,size={size}k"] if mounted else ["-o", f"size={size}k"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *how, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"this machine does not let a file system be mounted: {done.stderr}")
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def recorded(path: Path) -> tuple[dict[tuple[str, str, int], float | None], dict[str, str]]:
    """All measurements, and the status of each run."""
    points, status = {}, {}
    with Store(path, read_only=True) as store:
        for key in store.run_keys():
            run = store.get(key)
            assert run is not None
            status[key] = run.status
            for name, measured in run.metrics.items():
                if name not in TIMES:
                    points |= {(key, name, step): value for step, _, value in measured}
    return points, status


@pytest.mark.parametrize("size", [700, 1700])
def test_full_disk_loses_nothing_and_the_next_call_resumes(
    tiny: Claim, disk: Resize, tmp_path: Path, size: int
) -> None:
    store = disk(size) / "lab.sqlite"
    run = ["lab", "run", "C5", "--store", str(store), "--report", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, [*run, "--workers", "1"])
    said = " ".join(done.output.split())
    assert done.exit_code == 2, said
    assert "free space on the disk of the store" in said
    assert f"free some space in {store.parent}" in said
    assert "Traceback" not in said
    before, status = recorded(store)
    assert before
    assert "failed" not in status.values()  # it is no fault of any run
    assert not set(status.values()) <= RESULTS

    disk(20_000)
    done = CliRunner().invoke(app, [*run, "--workers", "1"])
    assert done.exit_code == 0, done.output
    finished = sum(each in RESULTS for each in status.values())
    if finished:
        assert f"{finished} of {len(status)} runs were in the store already" in done.output
    after, status = recorded(store)
    assert set(status.values()) <= RESULTS
    assert {point: after[point] for point in before} == before


def test_disk_without_room_for_a_store(tiny: Claim, disk: Resize, tmp_path: Path) -> None:
    store = disk(8) / "lab.sqlite"
    run = ["lab", "run", "C5", "--store", str(store), "--report", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 2, done.output
    assert "space" in done.output
    assert "Traceback" not in done.output
    disk(20_000)
    assert CliRunner().invoke(app, run).exit_code == 0
