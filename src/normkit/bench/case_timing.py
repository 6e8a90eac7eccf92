"""Time one case and return its record, a dict of plain values for the JSON file."""

from __future__ import annotations

from typing import Any

import torch

from normkit.bench.cases import Case
from normkit.bench.layers import functions, inputs, sides
from normkit.bench.limits import EVAL_COPIES, training_copies
from normkit.bench.stopwatch import time_interleaved
from normkit.nn.explain import explain

__all__ = ["time_case"]


def time_case(
    case: Case,
    measure: str,
    mode: str,
    *,
    seconds: float,
    seed: int = 0,
    compiled: bool = False,
    min_rounds: int = 5,
) -> dict[str, Any]:
    """Time a layer, PyTorch's, and a copy of the input, interleaved.

    Args:
        measure: one of :data:`normkit.bench.layers.MEASURES`.
        mode: "train" (forward and backward) or "eval" (forward, no gradients).
        seconds: time limit, exceeded by one round at most.
        compiled: time ``torch.compile`` of PyTorch's layers as well.
        min_rounds: rounds to run whatever they take.
    """
    training = mode == "train"
    tensors = inputs(case, seed=seed, residual=measure == "residual")
    layers = sides(case, measure)
    if compiled:
        # New layers: compiled code must not share state with the others.
        layers["compiled"] = torch.compile(sides(case, measure)["torch"])  # type: ignore[assignment]
    timed = {**functions(layers, tensors, training=training), "copy": tensors.copy}
    times = time_interleaved(timed, seconds=seconds, pair=("torch", "ours"), min_rounds=min_rounds)
    ratio, low, high = times.ratio("torch", "ours")
    limit = training_copies(measure == "residual") if training else EVAL_COPIES
    copies, copies_low, copies_high = times.ratio("ours", "copy")
    record: dict[str, Any] = {
        "case": case.name,
        "norm": case.norm,
        "shape": list(case.shape),
        "layout": case.layout,
        "times": case.times,
        "bytes": case.bytes,
        "measure": measure,
        "mode": mode,
        "ms": {name: 1e3 * times.of(name) for name in timed},
        "rounds": times.rounds,
        "ratio": ratio,
        "ratio_interval": [low, high],
        "copies": copies,
        "copies_interval": [copies_low, copies_high],
        "limit_copies": limit,
        # Bytes the operation must at least move, per second; and relative to the rate of a copy.
        "gb_per_s": 2 * limit * case.bytes / times.of("ours") / 1e9,
        "of_limit": limit / copies,
        "computed_by": explain(sides(case, measure)["ours"].train(training), tensors.x),  # type: ignore[arg-type]
    }
    if compiled:
        record["compiled_ratio"] = times.ratio("compiled", "ours")[0]
    return record
