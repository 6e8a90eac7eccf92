"""Record many seeds of one small training, with and without batch normalization.

    python tests/lab/recorded/record.py     # two minutes; writes runs.json beside this file

LeNet-5 as in claim C1, on few images. The seeds of one arm differ by nothing but chance, so any
ten of them, taken as two arms, are equal arms with the noise of real trainings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from normkit.allocator import keep_freed_memory
from normkit.lab import data
from normkit.lab.config import RunConfig
from normkit.lab.training import train

FILE = Path(__file__).parent / "runs.json"
SEEDS = range(64)
ARMS = {"with BN": "batch", "without BN": "none"}
KEPT = ("test_accuracy", "epoch_train_loss")


class Kept:
    """A log that keeps what is measured once an epoch."""

    def __init__(self) -> None:
        self.values: dict[str, list[float | None]] = {name: [] for name in KEPT}

    def record(self, step: int, epoch: int, metrics: Any, vectors: Any = None) -> None:
        for name, values in self.values.items():
            if name in metrics:
                values.append(metrics[name])

    def checkpoint(self, step: int, state: bytes) -> None:
        pass


def config(norm: str, seed: int) -> RunConfig:
    """C1's training, smaller."""
    return RunConfig(
        model="lenet5",
        norm=norm,
        lr=0.1,
        train_images=3_000,
        test_images=1_000,
        batch_size=64,
        epochs=5,
        seed=seed,
    )


def main() -> None:
    """Train, and write."""
    keep_freed_memory()
    dataset = data.load("fashion-mnist", offline=True)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for arm, norm in ARMS.items():
        for seed in SEEDS:
            log = Kept()
            train(config(norm, seed), dataset, log, checkpoint_seconds=1e9)
            runs[arm].append(
                {
                    name: [value if value is None else round(value, 6) for value in values]
                    for name, values in log.values.items()
                }
            )
        print(f"{arm}: {len(runs[arm])} runs")
    described = json.loads(config("", 0).to_json())
    described = {k: v for k, v in described.items() if k not in ("norm", "seed")}
    FILE.write_text(json.dumps({"config": described, "runs": runs}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
