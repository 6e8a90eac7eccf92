"""Several processes of a test at once, over gloo on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def together(
    worker: ModuleType, sizes: Sequence[int], scenario: str, folder: Path
) -> list[dict[str, Any]]:
    """Run ``worker`` once for each size, and collect what each process wrote, by rank.

    It is called with its rank, all sizes, a file to meet at, the folder and the scenario, and
    writes ``{rank}.pt``.
    """
    joined = ",".join(map(str, sizes))
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning:normkit", "-m", worker.__name__,
             str(rank), joined, str(folder / "rendezvous"), str(folder), scenario],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(len(sizes))
    ]  # fmt: skip
    try:
        outputs = [p.communicate(timeout=300)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, output in zip(processes, outputs, strict=True):
        assert p.returncode == 0, output
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(len(sizes))]
