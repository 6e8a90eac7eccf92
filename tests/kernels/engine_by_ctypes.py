"""The engine called by ctypes on numpy arrays: no torch, no extension, no compiler.

Run as a program with the path of the library and the name of a build. It compares forward and
backward with the formulas in float64 and prints the number of problems.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# In the order of engine.h.
POOLS = ("batch", "ghost", "group", "position")
ACTS = ("linear", "silu", "gelu", "relu6")
TYPES = {"float32": 0, "float64": 1}
POINTERS = ("weight", "bias", "stats", "var", "x", "residual", "y", "dy", "saved_y",
            "dx", "dresidual", "dweight", "dbias")  # fmt: skip
INTERFACE = 1


class Problem(ctypes.Structure):
    """nk_problem."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in "ncs"),
        ("pool", ctypes.c_int),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_bool) for name in ("channels_last", "centred", "fixed_stats")),
        ("eps", ctypes.c_double),
        ("act", ctypes.c_int),
        ("slope", ctypes.c_double),
        ("type", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


BODY = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
RUN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


class Threads(ctypes.Structure):
    """nk_threads."""

    _fields_ = (("run", RUN), ("count", ctypes.c_int64))


def load(path: str) -> ctypes.CDLL:
    """Load the library and declare what it returns."""
    engine = ctypes.CDLL(path)
    for name in ("nk_forward", "nk_backward", "nk_moments", "nk_pools", "nk_use"):
        getattr(engine, name).restype = ctypes.c_int64
    engine.nk_build_in_use.restype = ctypes.c_char_p
    engine.nk_builds.restype = ctypes.POINTER(ctypes.c_char_p)
    engine.nk_epsilon.restype = ctypes.c_double
    assert engine.nk_interface() == INTERFACE
    return engine


def pointer(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


def problem(arrays: dict[str, Array | None], **options: Any) -> Problem:
    """Fill a problem; the arrays must outlive it."""
    return Problem(**options, **{name: pointer(array) for name, array in arrays.items()})


def in_pieces(count: int, grain: int, body: int, context: int) -> int:
    """Run a loop in pieces, the last one first, as any order is allowed."""
    call = BODY(body)
    for begin in reversed(range(0, count, max(grain, 1))):
        call(begin, min(count, begin + max(grain, 1)), context)
    return 0


# ---- the formulas, in float64 ----

ERF = np.vectorize(math.erf)


def activate(z: Array, act: str, slope: float) -> tuple[Array, Array]:
    """Return the activation and its derivative."""
    if act == "silu":
        s = 1 / (1 + np.exp(-z))
        return z * s, s * (1 + z * (1 - s))
    if act == "gelu":
        p = (1 + ERF(z / math.sqrt(2))) / 2
        return z * p, p + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if act == "relu6":
        return np.clip(z, 0, 6), np.where((z > 0) & (z < 6), 1.0, 0.0)
    return np.where(z > 0, z, slope * z), np.where(z > 0, 1.0, slope)


def shape_and_axes(pool: str, n: int, c: int, s: int, groups: int) -> tuple[Any, Any]:
    """Return a view of (n, c, s) and the axes over which moments are taken."""
    return {
        "batch": ((n, c, s), (0, 2)),
        "ghost": ((groups, n // groups, c, s), (1, 3)),
        "group": ((n, groups, c // groups, s), (2, 3)),
        "position": ((n, c, s), (1,)),
    }[pool]


def reference(
    a: dict[str, Array], pool: str, groups: int, act: str, slope: float, centred: bool, eps: float
) -> dict[str, Array]:
    x, dy, gamma, beta, residual = (
        a[name].astype(np.float64) for name in ("x", "dy", "weight", "bias", "residual")
    )
    view, axes = shape_and_axes(pool, *x.shape, groups)
    seen: Callable[[Array], Array] = lambda t: t.reshape(view)  # noqa: E731
    mean = seen(x).mean(axes, keepdims=True) * centred
    r = 1 / np.sqrt(((seen(x) - mean) ** 2).mean(axes, keepdims=True) + eps)
    xhat = ((seen(x) - mean) * r).reshape(x.shape)
    y, slopes = activate(gamma[:, None] * xhat + beta[:, None] + residual, act, slope)
    dz = dy * slopes
    g = dz * gamma[:, None]
    drift = seen(g).mean(axes, keepdims=True) * centred
    pull = seen(xhat) * (seen(g) * seen(xhat)).mean(axes, keepdims=True)
    dx = ((seen(g) - drift - pull) * r).reshape(x.shape)
    sums = {"dweight": (dz * xhat).sum((0, 2)), "dbias": dz.sum((0, 2))}
    return {"y": y, "dx": dx, "dresidual": dz, **sums}


# ---- one problem ----


def compare(
    engine: ctypes.CDLL, shape: tuple[int, int, int], pool: str, act: str, slope: float,
    dtype: str, centred: bool, channels_last: bool, threads: Threads | None,
) -> None:  # fmt: skip
    n, c, s = shape
    groups = {"ghost": 2, "group": 3}.get(pool, 1)
    random = np.random.default_rng(0)

    def values(*sizes: int) -> Array:
        return random.standard_normal(sizes).astype(dtype)

    inputs = {"x": values(*shape) * 2 + 3, "dy": values(*shape), "residual": values(*shape),
              "weight": values(c), "bias": values(c)}  # fmt: skip

    def laid_out(array: Array) -> Array:
        moved = array.transpose(0, 2, 1) if channels_last and array.ndim == 3 else array
        return np.ascontiguousarray(moved)

    arrays = {name: laid_out(array) for name, array in inputs.items()}
    maps = ("y", "dx", "dresidual")
    arrays |= {name: np.empty_like(arrays["x"]) for name in maps}
    arrays |= {name: np.empty(c, dtype) for name in ("dweight", "dbias")}
    options = {
        "n": n, "c": c, "s": s, "pool": POOLS.index(pool), "groups": groups,
        "channels_last": channels_last, "centred": centred, "fixed_stats": False, "eps": 1e-5,
        "act": ACTS.index(act), "slope": slope, "type": TYPES[dtype],
    }  # fmt: skip
    pools = engine.nk_pools(ctypes.byref(problem({}, **options)))
    arrays |= {"stats": np.empty((3, pools), dtype), "var": np.empty(pools, dtype)}
    call = ctypes.byref(problem(arrays, **options))
    team = None if threads is None else ctypes.byref(threads)
    assert engine.nk_forward(call, team) == 0
    assert engine.nk_backward(call, team) == 0

    truth = reference(inputs, pool, groups, act, slope, centred, 1e-5)
    tolerance = 3e-5 if dtype == "float32" else 1e-12
    for name, expected in truth.items():
        result = arrays[name]
        if channels_last and result.ndim == 3:
            result = result.transpose(0, 2, 1)
        scale = np.abs(expected).max()
        error = np.abs(result - expected).max() / scale
        assert error < tolerance, (name, error, shape, pool, act, dtype, centred, channels_last)


def main(path: str, build: str) -> int:
    engine = load(path)
    assert engine.nk_use(build.encode()) == 0, build
    assert engine.nk_build_in_use() == build.encode()
    team = Threads(RUN(in_pieces), 3)
    acts = [("linear", 1.0), ("linear", 0.0), ("linear", 0.2), ("silu", 1.0), ("gelu", 1.0),
            ("relu6", 0.0)]  # fmt: skip
    count = 0
    shapes = [(4, 6, 35), (8, 48, 1), (10, 6, 1100)]
    for shape, pool, (act, slope), dtype, centred, last, threads in itertools.product(
        shapes, POOLS, acts, TYPES, (True, False), (False, True), (None, team)
    ):
        if shape[2] == 1100 and (act != "linear" or dtype != "float32" or threads is None):
            continue  # large enough for several threads, which is what it is for
        compare(engine, shape, pool, act, slope, dtype, centred, last, threads)
        count += 1
    # What is no problem is refused, and nothing is written.
    for wrong in ({"groups": 4}, {"n": 0}, {"type": 9}):
        x = np.zeros((4, 6, 2), "float32")
        options = {"n": 4, "c": 6, "s": 2, "pool": POOLS.index("group"), "groups": 3, **wrong}
        refused = problem({"x": x, "y": x, "stats": x}, **options)
        assert engine.nk_forward(ctypes.byref(refused), None) < 0
    assert "torch" not in sys.modules
    return count


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2]))
