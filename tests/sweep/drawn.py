"""Draw one normalization layer, as the text that constructs it."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

__all__ = ["MODULES", "Draw", "Shape", "norms", "ours"]

Draw = Any
Shape = tuple[int, ...]  # without the batch axis: (C, *space)

ACTS = ["None", "'relu'", "'silu'", "'gelu'", "'leaky_relu'", "('leaky_relu', 0.2)", "nn.ReLU()",
        "nn.LeakyReLU(0.3)", "nn.SiLU()"]  # fmt: skip
MODULES = ["nn.ReLU()", "nn.SiLU()", "nn.GELU()", "nn.ReLU(inplace=True)", "nn.LeakyReLU(0.2)",
           "nn.LeakyReLU(0.2)", "nn.Tanh()", "nn.ReLU6()", "nn.Hardswish()"]  # fmt: skip
BATCH = {
    "momentum": ["0.5", "None", "1.0", "0.0"],
    "eps": ["1e-3", "0.5", "1e-12"],
    "affine": ["False"],
    "track_running_stats": ["False"],
    "bias": ["False"],
}
AVERAGE = {"average": ["'cumulative'", "'debiased'"]}
ACT = {"act": ACTS[1:]}
INSTANCE = {"affine": ["True"], "track_running_stats": ["True"], "eps": ["1e-3"],
            "momentum": ["0.5", "1.0"]}  # fmt: skip
GROUP = {"affine": ["False"], "eps": ["1e-3", "0.5"], "bias": ["False"]}


def _options(draw: Draw, *choices: dict[str, list[str]]) -> str:
    """Draw few of the constructor's options."""
    every = {name: values for part in choices for name, values in part.items()}
    names = draw(st.lists(st.sampled_from(sorted(every)), max_size=2, unique=True))
    return "".join(f", {name}={draw(st.sampled_from(every[name]))}" for name in names)


def _of_torch(draw: Draw, shape: Shape) -> str:
    c, rank = shape[0], len(shape) - 1
    kinds = ["Batch", "Batch", "Batch", "Sync", "Group", "Layer"]
    kinds += ["Instance", "RMS"] if rank and math.prod(shape[1:]) > 1 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "Batch":
        if draw(st.integers(0, 19)) == 19:
            return f"nn.LazyBatchNorm{max(rank, 1)}d()"
        return f"nn.BatchNorm{max(rank, 1)}d({c}{_options(draw, BATCH)})"
    if kind == "Sync":
        return f"nn.SyncBatchNorm({c}{_options(draw, BATCH)})"
    if kind == "Instance":
        return f"nn.InstanceNorm{rank}d({c}{_options(draw, INSTANCE)})"
    if kind == "Group":
        return f"nn.GroupNorm({draw(st.sampled_from([1, c]))}, {c}{_options(draw, GROUP)})"
    return _last_axes(draw, "nn", kind, shape)


def _last_axes(draw: Draw, package: str, kind: str, shape: Shape) -> str:
    last = draw(st.sampled_from([shape, shape[-1:]]))
    options = "" if package == "nn" else _options(draw, ACT)
    return f"{package}.{kind}Norm({last}{options})"


def ours(draw: Draw, shape: Shape) -> str:
    c, rank = shape[0], len(shape) - 1
    d = max(rank, 1)
    kinds = ["Batch", "Batch", "Batch", "Batch", "Sync", "Group", "Layer", "Scale"]
    kinds += ["Ghost", "Renorm", "Domain", "Ghost", "Renorm"] if rank < 3 else []
    spatial = math.prod(shape[1:]) > 1
    kinds += ["Instance", "RMS"] if rank and spatial else []
    kinds += ["Layer2d", "Frozen"] if rank == 2 else []
    kinds += ["Half"] if rank == 2 and spatial else []
    kinds += ["Response", "Masked"]
    kinds += ["ZeroCentered", "Adaptive", "Switchable"] if rank and spatial else []
    kind = draw(st.sampled_from(kinds))
    batch = (BATCH, AVERAGE, ACT)
    if kind == "Batch":
        if draw(st.integers(0, 19)) == 19:
            return f"nk.LazyBatchNorm{d}d()"
        average = draw(st.sampled_from(["", "", *(f", average={a}" for a in AVERAGE["average"])]))
        return f"nk.BatchNorm{d}d({c}{_options(draw, BATCH, ACT)}{average})"
    if kind == "Sync":
        return f"nk.SyncBatchNorm({c}{_options(draw, *batch)})"
    if kind == "Response":
        options = {"learn_eps": ["True"], "tlu": ["False"], "affine": ["False"], "eps": ["0.5"]}
        return f"nk.FilterResponseNorm{d}d({c}{_options(draw, options, ACT)})"
    if kind == "Masked" and rank < 3:
        return f"nk.MaskedBatchNorm{d}d({c}{_options(draw, *batch)})"
    if kind in ("Masked", "Adaptive"):
        options = _options(draw, {"eps": ["1e-3"]}, ACT)
        return f"nk.{kind}GroupNorm({draw(st.sampled_from([1, c]))}, {c}{options})"
    if kind == "Switchable":
        return f"nk.SwitchableNorm{d}d({c}{_options(draw, *batch)})"
    if kind == "ZeroCentered":
        return _last_axes(draw, "nk", "ZeroCenteredRMS", shape)
    if kind == "Ghost":
        size = draw(st.sampled_from([2, 3, 8]))
        return f"nk.GhostBatchNorm{d}d({c}, {size}{_options(draw, *batch)})"
    if kind == "Renorm":
        limits = {"r_max": ["1.0", "3.0"], "d_max": ["0.0", "5.0"]}
        return f"nk.BatchRenorm{d}d({c}{_options(draw, *batch, limits)})"
    if kind == "Domain":
        domains, shared = draw(st.sampled_from([1, 2])), {"share_affine": ["False"]}
        return f"nk.DomainBatchNorm{d}d({c}, {domains}{_options(draw, *batch, shared)})"
    if kind == "Frozen":
        return f"nk.FrozenBatchNorm2d({c}{_options(draw, ACT)})"
    if kind == "Instance":
        return f"nk.InstanceNorm{rank}d({c}{_options(draw, INSTANCE, ACT)})"
    if kind == "Group":
        return f"nk.GroupNorm({draw(st.sampled_from([1, c]))}, {c}{_options(draw, GROUP, ACT)})"
    if kind == "Half":
        return f"nk.HalfInstanceNorm2d({c}{_options(draw, ACT)})"
    if kind == "Layer2d":
        return f"nk.LayerNorm2d({c}{_options(draw, ACT)})"
    if kind == "Scale":
        return f"nk.Scale({c}{_options(draw, ACT)})"
    return _last_axes(draw, "nk", kind, shape)


FOREIGN: dict[int, list[str]] = {
    0: ["Plain1d", "PlainOurs1d", "OwnNorm", "Registered", "ChannelsLast"],
    1: ["Plain1d", "PlainOurs1d", "LastAxis", "OwnNorm", "Registered", "ChannelsLast"],
    2: [
        "Plain2d", "PlainOurs2d", "Masked", "Prescaled", "PrescaledOurs", "BatchNormAct2d",
        "OwnNorm", "Registered", "ChannelsLast", "FrozenBatchNorm2d", "DetrFrozenBatchNorm2d",
    ],
    3: ["OwnNorm", "Registered", "ChannelsLast"],
}  # fmt: skip


def _foreign(draw: Draw, shape: Shape) -> str:
    name = draw(st.sampled_from(FOREIGN[len(shape) - 1]))
    return f"{name}({shape[-1 if name == 'LastAxis' else 0]})"


def norms(draw: Draw, shape: Shape, kinds: str = "torch ours foreign") -> str:
    """Draw a normalization layer for inputs of this shape."""
    kind = draw(st.sampled_from(kinds.split()))
    if kind == "domain":
        d, domains = max(len(shape) - 1, 1), draw(st.sampled_from([2, 3, 1]))
        options = _options(draw, BATCH, AVERAGE, ACT, {"share_affine": ["False"]})
        return (
            f"nk.DomainBatchNorm{d}d({shape[0]}, {domains}{options})" if d < 3 else "nn.Identity()"
        )
    return {"torch": _of_torch, "ours": ours, "foreign": _foreign}[kind](draw, shape)
