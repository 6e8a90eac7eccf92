"""What Python and C++ both say, row by row: each answer of the extension against Python's.

The fused path answers in C++ what the layers and the other ways answer in Python. A rule that
stands in both has a row here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import BaseTorchFunctionMode

import normkit as nk
from normkit.core.moments import accumulator
from normkit.core.pools import Pool
from normkit.errors import ShapeError
from normkit.kernels import cpu, fused
from normkit.kernels.modes import recomputing, transformed
from normkit.nn.averages import step_towards
from tests.kernels.engine_by_ctypes import POOLS, Problem, load

if cpu.fused is None:
    pytest.skip(cpu.reason, allow_module_level=True)

extension = cpu.fused
TABLE = extension.table()


@pytest.fixture(scope="module")
def engine() -> ctypes.CDLL:
    (library,) = Path(cpu.__file__).parent.glob("libnormkit_cpu.*")
    return load(str(library))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numbers(names: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(names.items(), key=lambda item: item[1])


# ---- names and numbers ----

SIGNATURE = {
    "centred": fused.signature("batch", ranks=(), centred=True),
    "rows": fused.signature("batch", ranks=(), centred=False, rows=True),
    "ranks": fused.signature("batch", ranks=(0,), centred=False),
    "most_rank": 32,
}

ROWS: dict[str, tuple[Any, Any]] = {
    "pools": (TABLE["pools"], tuple(name for name, _ in _numbers(fused.POOLS))),
    "averages": (TABLE["averages"], tuple(name for name, _ in _numbers(fused.AVERAGES))),
    "activations": (
        list(enumerate(TABLE["acts"])),
        [(0, "linear"), *((number, name) for name, number in _numbers(fused._ACTS))],
    ),
    "types": (set(TABLE["types"]), {_name(t) for t in fused.FLOATS}),
    "statistics": (
        {name: number for number, name in enumerate(TABLE["stats"])},
        {name: value for name, value in vars(fused.Stats).items() if name.isupper()},
    ),
    "accumulator": (TABLE["accumulator"], {_name(t): _name(accumulator(t)) for t in fused.FLOATS}),
    "machine epsilon": (
        TABLE["epsilon"],
        {_name(t): torch.finfo(accumulator(t)).eps for t in fused.FLOATS},
    ),
    "signature": (TABLE["signature"], SIGNATURE),
}


@pytest.mark.parametrize("row", ROWS)
def test_names_and_numbers_are_the_same(row: str) -> None:
    in_cpp, in_python = ROWS[row]
    assert in_cpp == in_python


# ---- geometry ----


@pytest.mark.parametrize("over", POOLS)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_number_of_pools(over: Any, groups: int, engine: ctypes.CDLL) -> None:
    n, c, s = 4, 6, 5
    problem = Problem(n=n, c=c, s=s, pool=POOLS.index(over), groups=groups)
    parts = {"ghost": n, "group": c}.get(over, 0)
    expected = 0 if parts % groups else torch.Size(Pool(over, groups).stats(n, c, s)).numel()
    assert engine.nk_pools(ctypes.byref(problem)) == expected


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nk.BatchNorm1d(3),
    "BatchNorm2d": lambda: nk.BatchNorm2d(3),
    "BatchNorm3d": lambda: nk.BatchNorm3d(3),
    "FrozenBatchNorm2d": lambda: nk.FrozenBatchNorm2d(3),
    "GroupNorm": lambda: nk.GroupNorm(3, 3),
    "InstanceNorm1d": lambda: nk.InstanceNorm1d(3, affine=True),
    "InstanceNorm2d": lambda: nk.InstanceNorm2d(3, affine=True),
    "LayerNorm": lambda: nk.LayerNorm(3),
    "LayerNorm2d": lambda: nk.LayerNorm2d(3),
    "RMSNorm": lambda: nk.RMSNorm((3, 3)),
}


SHAPES = [(3,), (4,), (2, 3), (2, 4), (2, 3, 3), (2, 4, 3), (3, 3, 3, 3), (2, 4, 3, 4),
          (2, 3, 3, 3, 3), (2, 4, 3, 3, 3)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_ranks_and_channels(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one-call path takes no shape that the layer's own checks refuse."""
    layer, x = LAYERS[name](), torch.randn(shape)
    results: list[Tensor | None] = []
    in_one_call = fused.layer

    def recording(*args: Any, **kwargs: Any) -> Tensor | None:
        results.append(in_one_call(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(fused, "layer", recording)
    try:
        layer(x)
        refused = False
    except (ShapeError, ValueError, RuntimeError):
        refused = True
    assert not refused or all(y is None for y in results)
    if not refused:
        monkeypatch.setattr(fused, "layer", lambda *_, **__: None)
        layer(x)  # the checks accept what the one-call path took


# ---- the running statistics ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.1, 0.5, 0.999, 1.0])
def test_share_of_a_step(share: float, dtype: torch.dtype, engine: ctypes.CDLL) -> None:
    running, value = torch.randn(2, 1000, dtype=dtype).mul(torch.logspace(-5, 5, 1000, dtype=dtype))
    in_cpp = running.clone()
    update = engine.nk_update_running
    update.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p,
                       ctypes.c_double, ctypes.c_double]  # fmt: skip
    number = TABLE["types"].index(_name(dtype))
    update(number, 1000, in_cpp.data_ptr(), value.data_ptr(), share, 1.0)
    terms = running.abs() * (1 - share) + value.abs() * share
    step_towards(running, value, share)
    # C++ rounds once, Python after each operation.
    assert bool(((in_cpp - running).abs() <= 2 * torch.finfo(dtype).eps * terms).all())


def test_whether_a_backward_pass_is_running() -> None:
    answers: list[tuple[bool, bool]] = [(extension.recomputing(), recomputing())]
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: answers.append((extension.recomputing(), recomputing())))
    y.sum().backward()
    assert answers == [(False, False), (True, True)]


# ---- what has to be seen through ----


class Subclass(Tensor):
    pass


def _answers(x: Tensor) -> tuple[bool, bool]:
    return extension.observes(x), transformed(x)


def _inside(transform: Callable[..., Any]) -> Callable[[], tuple[bool, bool]]:
    """Ask from inside a transform."""

    def ask() -> tuple[bool, bool]:
        answers: list[tuple[bool, bool]] = []

        def function(x: Tensor) -> Tensor:
            answers.append(_answers(x))
            return x.sum()

        transform(function)
        return answers[0]

    return ask


def _dual() -> tuple[bool, bool]:
    with forward_ad.dual_level():
        return _answers(forward_ad.make_dual(torch.ones(3), torch.ones(3)))


def _in_a_function_mode() -> tuple[bool, bool]:
    with BaseTorchFunctionMode():
        return _answers(torch.ones(3))


def _on_a_default_device() -> tuple[bool, bool]:
    with torch.device("cpu"):
        return _answers(torch.ones(3))


SITUATIONS: dict[str, tuple[Callable[[], tuple[bool, bool]], bool]] = {
    "eager": (lambda: _answers(torch.ones(3)), False),
    "a parameter": (lambda: _answers(nn.Parameter(torch.ones(3))), False),
    "a subclass": (lambda: _answers(torch.ones(3).as_subclass(Subclass)), True),
    "vmap": (_inside(lambda f: torch.func.vmap(f)(torch.ones(2, 3))), True),
    "grad": (_inside(lambda f: torch.func.grad(f)(torch.ones(3))), True),
    "jvp": (_inside(lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),))), True),
    "a dual number": (_dual, True),
    "a function mode": (_in_a_function_mode, True),
    "a default device": (_on_a_default_device, False),
    "jit.trace": (
        _inside(lambda f: torch.jit.trace(f, torch.ones(3), check_trace=False)),
        True,
    ),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_has_to_be_seen_through(situation: str) -> None:
    ask, expected = SITUATIONS[situation]
    assert ask() == (expected, expected)


def test_a_mode_sees_the_operations() -> None:
    """A dispatch mode is no transform: Python goes its slow path, where it sees the operations."""
    answers: list[bool] = []

    def function(x: Tensor) -> Tensor:
        answers.append(extension.observes(torch.ones(3)))
        return x.sum()

    make_fx(function)(torch.ones(3))
    assert answers == [True]
