"""Time layers on a device: its own clock, all sides in turn, medians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_parts.cases import Case, Inputs, inputs, sides
from normkit.bench.stopwatch import time_interleaved, wall_seconds
from normkit.nn.explain import explain

__all__ = ["MODES", "clock", "time_case"]

MODES = ("forward", "training")
"""Forward without gradients, and forward with backward; both normalize by the input's moments."""

_CACHE_BYTES = 2**28
"""Written before each measurement: more than the second-level cache of any GPU holds."""

Measure = Callable[[Callable[[], None]], float]


def clock(device: torch.device) -> Measure:
    """Return what measures a function's seconds on the device, with nothing in its caches.

    On a GPU the time is that between two events, which includes waiting for the processor where
    that is slower than the GPU, as it is in a program: nothing is queued when it begins.
    """
    if device.type != "cuda":
        return wall_seconds
    junk = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)

    def measure(run: Callable[[], None]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        junk.zero_()
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return measure


def time_case(
    case: Case,
    layout: str,
    device: torch.device,
    measure: Measure,
    *,
    seconds: float,
    compiler: str | None = None,
    min_rounds: int = 10,
) -> list[dict[str, Any]]:
    """Time a layer in each mode, PyTorch's, and a copy of the input; return a record per mode.

    Args:
        seconds: for each mode, exceeded by ``min_rounds`` rounds.
        compiler: backend of ``torch.compile``, by which both layers are timed as well.
    """
    tensors = inputs(case, layout, device)
    layers = sides(case, device)
    way = explain(layers["ours"], tensors.x, tensors.residual)[-1].removesuffix(": used")
    if compiler is not None:
        # Compiled code is remembered by function, and only a few versions of it.
        torch._dynamo.reset()
        for name, layer in list(sides(case, device).items()):
            layers[f"{name} compiled"] = torch.compile(
                layer, backend=compiler, fullgraph=True, dynamic=False
            )  # type: ignore[assignment]
    if case.norm == "bn" and device.type == "cuda" and compiler is None:
        layers["torch without cuDNN"] = _WithoutCuDNN(sides(case, device)["torch"])
    records = []
    for mode in MODES:
        timed = {name: _run(layer, tensors, mode) for name, layer in layers.items()}
        timed["copy"] = lambda: _drop(tensors.copy_target.copy_(tensors.x.detach()))
        times = time_interleaved(
            timed, seconds=seconds, min_rounds=min_rounds, max_rounds=200, pair=("torch", "ours"),
            warmup=3, measure=measure,
        )  # fmt: skip
        records.append(
            {
                "case": str(case),
                "network": case.network,
                "norm": case.norm,
                "batch": case.shape[0],
                "bytes": case.bytes,
                "residual": case.residual,
                "layout": layout,
                "mode": mode,
                "passes": case.passes(mode),
                "ms": {name: 1e3 * times.of(name) for name in timed},
                "ratios": {
                    name: list(times.ratio(name, "ours")) for name in timed if name != "ours"
                },
                "rounds": times.rounds,
                "computed_by": way,
                **speed(case, mode, times.of("ours"), times.of("copy")),
            }
        )
    return records


def speed(case: Case, mode: str, seconds: float, copy_seconds: float) -> dict[str, float]:
    """Return the rate at which a layer moves what it has to, and its share of a copy's rate.

    >>> case = Case("bn", (1, 250, 10, 100), "float32", "")  # 1 MB, three passes
    >>> speed(case, "forward", 3e-6, 1e-6)
    {'gb_per_s': 1000.0, 'of_copy': 0.5}
    """
    moved = case.passes(mode) * case.bytes
    rate, copy_rate = moved / seconds, 2 * case.bytes / copy_seconds
    return {"gb_per_s": round(rate / 1e9, 3), "of_copy": round(rate / copy_rate, 4)}


class _WithoutCuDNN(nn.Module):
    """PyTorch's own kernels for a layer that cuDNN computes otherwise."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            y: Tensor = self.layer(x, residual)
        return y


def _run(layer: nn.Module, tensors: Inputs, mode: str) -> Callable[[], None]:
    x, residual = tensors.x, tensors.residual
    arguments = (x,) if residual is None else (x, residual)
    if mode == "forward":

        def forward() -> None:
            with torch.no_grad():
                layer(*arguments)

        return forward
    leaves = [*arguments, *layer.parameters()]
    return lambda: _drop(torch.autograd.grad(layer(*arguments), leaves, tensors.dy))


def _drop(_: object) -> None:
    pass
