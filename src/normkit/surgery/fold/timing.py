"""Time two versions of a model in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normkit.statistics.batches.run_model import Forward, run_model
from normkit.statistics.batches.tensors import count_samples, tensors_in
from normkit.statistics.layers.preserve import preserve_buffers, preserve_rng
from normkit.surgery.fold.checks import map_tensors

__all__ = ["Timing", "compare_times", "first_samples", "time_in_turn"]

# For each number of samples.
SECONDS = 1.0
ROUNDS = range(5, 51)


class Timing(NamedTuple):
    """Milliseconds of an evaluation before and after a change, medians of many in turn."""

    samples: int
    before: float
    after: float

    def __str__(self) -> str:
        times = f"{self.before:.3g} → {self.after:.3g} ms ({self.before / self.after:.2f} ×)"
        return f"{self.samples} sample{'s' if self.samples > 1 else ''}: {times}"


def compare_times(
    before: nn.Module, after: nn.Module, example: Any, forward: Forward | None
) -> list[Timing]:
    """Time both models on the first sample of the example, and on all of it."""
    total = count_samples(example)
    results = []
    for count in sorted({1, total or 1}):
        batch = example if total is None or count == total else first_samples(example, count, total)
        try:
            with preserve_rng(), preserve_buffers(after):
                first, second = time_in_turn([_call(m, batch, forward) for m in (before, after)])
        except Exception:
            # Not every model takes a single sample. Of all of them it was run before.
            if count == total:
                raise
            continue
        results.append(Timing(count, first, second))
    return results


def first_samples(batch: Any, count: int, total: int) -> Any:
    """Return the first samples of a batch of ``total``.

    >>> first_samples({"x": torch.zeros(8, 3), "scale": torch.ones(1)}, 1, 8)["x"].shape
    torch.Size([1, 3])
    """
    return map_tensors(lambda t: t[:count] if t.dim() and len(t) == total else t, batch)


def _call(model: nn.Module, batch: Any, forward: Forward | None) -> Callable[[], None]:
    tensors: list[Tensor] = tensors_in(batch)
    accelerated = any(t.device.type == "cuda" for t in tensors)

    def call() -> None:
        run_model(model, batch, forward)
        if accelerated:
            torch.cuda.synchronize()

    return call


def time_in_turn(calls: Sequence[Callable[[], None]], seconds: float = SECONDS) -> list[float]:
    """Return the median milliseconds of each call, all of them in turn."""
    times: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    with torch.no_grad():
        for call in calls:
            call()
        for done in range(ROUNDS.stop):
            if done >= ROUNDS.start and time.perf_counter() - begin > seconds:
                break
            for call, each in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                each.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(each) for each in times]
