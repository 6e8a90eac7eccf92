"""Made-up records."""

from __future__ import annotations

from typing import Any


def case(norm: str = "bn", measure: str = "act", mode: str = "train", **changes: Any) -> dict:
    made: dict[str, Any] = {
        "case": f"{norm}/resnet18+resnet50/32x64x56x56/contiguous",
        "norm": norm,
        "shape": [32, 64, 56, 56],
        "layout": "contiguous",
        "times": 1,
        "bytes": 4 * 32 * 64 * 56 * 56,
        "measure": measure,
        "mode": mode,
        "ms": {"torch": 4.0, "ours": 2.0, "copy": 0.5},
        "rounds": 9,
        "ratio": 2.0,
        "ratio_interval": [1.9, 2.1],
        "copies": 4.0,
        "copies_interval": [3.9, 4.1],
        "limit_copies": 2.5 if mode == "train" else 1.0,
        "gb_per_s": 20.0,
        "of_limit": 0.6,
        "allocator": "default",
    }
    return made | changes


def step(network: str = "resnet18", **changes: Any) -> dict:
    parts = {
        f"{kind}_{way}": 10.0
        for kind in ("norm", "convolution", "rest")
        for way in ("forward", "backward")
    }
    made: dict[str, Any] = {
        "network": network,
        "shape": [64, 1, 96, 96],
        "layout": "contiguous",
        "allocator": "default",
        "ms": {"torch": 130.0, "ours": 100.0},
        "rounds": 5,
        "ratio": 1.3,
        "ratio_interval": [1.2, 1.4],
        "parts_ms": {
            side: {**parts, "rest_update": 1.0, "step": 61.0} for side in ("torch", "ours")
        },
        "peak": {side: {"live_bytes": 2**20, "rss_bytes": 2**21} for side in ("torch", "ours")},
    }
    return made | changes


MACHINE: dict[str, Any] = {
    "processor": "a processor",
    "vector_instructions": "AVX2",
    "threads": 2,
    "libc": "glibc 2.36",
    "torch": "2.13.0",
    "normkit": "0.1.0",
    "kernels": "some",
    "l2_bytes": 2**20,
}
