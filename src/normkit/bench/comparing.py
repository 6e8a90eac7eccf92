"""Measures one case and makes a record of it: a dict of plain values, as it goes into JSON."""

from __future__ import annotations

from typing import Any

import torch

from normkit.bench.cases import Case
from normkit.bench.layers import functions, inputs, sides
from normkit.bench.limits import EVAL_COPIES, training_copies
from normkit.bench.measuring import in_turn

__all__ = ["compare"]


def compare(
    case: Case,
    measure: str,
    mode: str,
    *,
    seconds: float,
    seed: int = 0,
    compiled: bool = False,
    least: int = 5,
) -> dict[str, Any]:
    """Time a layer against PyTorch's and against a copy of its input.

    Args:
        measure: one of :data:`normkit.bench.layers.MEASURES`.
        mode: "train" (forward and backward) or "eval" (forward, no gradients).
        seconds: about how long.
        compiled: let ``torch.compile`` of PyTorch's layers take part as well.
        least: rounds at least.
    """
    training = mode == "train"
    given = inputs(case, seed=seed, residual=measure == "residual")
    layers = sides(case, measure)
    if compiled:
        # Of layers of its own: compiled code keeps no state that the others could share.
        layers["compiled"] = torch.compile(sides(case, measure)["torch"])  # type: ignore[assignment]
    timed = {**functions(layers, given, training=training), "copy": given.copy}
    times = in_turn(timed, seconds=seconds, pair=("torch", "ours"), least=least)
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
        # What the operation must move, over the time it takes; and the share of a copy's rate.
        "gb_per_s": 2 * limit * case.bytes / times.of("ours") / 1e9,
        "of_limit": limit / copies,
    }
    if compiled:
        record["compiled_ratio"] = times.ratio("compiled", "ours")[0]
    return record
