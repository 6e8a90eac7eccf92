"""What the backend may not fuse, planted: each computes as the model does, and is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.kernels import cpu
from tests.few import few

pytestmark = [
    pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built"),
    # Dynamo looks at it, and tests hand over such tensors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

Run = Callable[[nn.Module, Tensor, Tensor], Any]


@pytest.fixture(autouse=True)
def _no_earlier_graphs() -> None:
    torch._dynamo.reset()


class Case(nn.Module):
    def __init__(self, norm: nn.Module, run: Run) -> None:
        super().__init__()
        self.norm, self.run = norm, run

    def forward(self, x: Tensor, r: Tensor) -> Any:
        return self.run(self.norm, x, r)


def compare(norm: nn.Module, run: Run, x: Tensor, r: Tensor, grad: bool = True) -> list[str]:
    """Compare outputs, inputs afterwards, gradients and buffers; return the rows' texts."""
    model = Case(norm, run)
    twin, backend, found = copy.deepcopy(model), nk.Backend(), []
    for each in (torch.compile(model, backend=backend), twin):
        leaves = [t.clone().requires_grad_(grad) for t in (x, r)]
        with torch.set_grad_enabled(grad):
            # A function may write to its inputs, which leaves may not be.
            inputs = [t * 1 for t in leaves]
            y = each(*inputs)
        outputs = y if isinstance(y, tuple) else (y,)
        found.append([*outputs, *inputs, *each.buffers()])
        if grad:
            total = sum(t.square().sum() for t in outputs)
            grads = torch.autograd.grad(total, [*leaves, *each.parameters()], allow_unused=True)
            found[-1] += [g for g in grads if g is not None]
    torch.testing.assert_close(*found)
    return [row.text for graph in backend.graphs for row in graph.rows]


def twice(norm: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    a, b = norm(x), norm(r)
    return F.relu(a) + F.relu(b)


def switch(norm: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    z = norm(x)
    with torch.no_grad():
        doubled = r * 2
    return F.relu(z) + doubled


def statistics(norm: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    z = norm(x)
    mean = norm.running_mean.clone()
    return F.relu(z), mean


def onto_summand(norm: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    r = r * 2
    view = r[:1]
    r += norm(x)
    return F.relu(r), view


def summand_later(norm: nn.Module, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    r = r * 2
    y = F.silu(norm(x) + r)
    r.add_(1)
    return y, r


def output_later(norm: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    y = F.leaky_relu(norm(x) + r, 0.1)
    y.add_(1)
    return y


SEVERAL = "batch_norm, then several operations"
RUNS: dict[str, tuple[Run, list[str]]] = {
    "also returned": (lambda norm, x, r: ((z := norm(x)), F.relu(z)), [SEVERAL]),
    "sum also used": (lambda norm, x, r: ((z := norm(x) + r).mean(), F.relu(z)),
                      ["batch_norm + add, then several operations"]),
    "returned": (lambda norm, x, r: norm(x), ["batch_norm, then the end of the graph"]),
    "unused": (lambda norm, x, r: (norm(x), r)[1], ["batch_norm, then nothing"]),
    "to itself": (lambda norm, x, r: F.relu((z := norm(x)) + z), ["batch_norm, then add"]),
    "a number": (lambda norm, x, r: F.relu(norm(x) + 1.0), ["batch_norm, then add"]),
    "scaled": (lambda norm, x, r: F.relu(torch.add(norm(x), r, alpha=2)), ["batch_norm, then add"]),
    "broadcast": (lambda norm, x, r: F.relu(norm(x) + r[:1]),
                  ["batch_norm, add separate: its summands differ in shape or type"]),
    "narrower": (lambda norm, x, r: F.relu(norm(x) + r.float()),
                 ["batch_norm, add separate: its summands differ in shape or type"]),
    "unknown": (lambda norm, x, r: F.hardswish(norm(x)), ["batch_norm, then hardswish"]),
    "other limits": (lambda norm, x, r: F.hardtanh(norm(x)), ["batch_norm, then hardtanh"]),
    "approximate": (lambda norm, x, r: F.gelu(norm(x), approximate="tanh"),
                    ["batch_norm, then gelu"]),
    "used for two": (twice, ["batch_norm, relu separate: add_, which may write to a tensor, stands "
                             "between", "batch_norm + relu"]),
    "grad switched": (switch, ["batch_norm, relu separate: _set_grad_enabled, which may write to a "
                               "tensor, stands between"]),
    "statistics read": (statistics, ["batch_norm, relu separate: clone, which reads its "
                                     "statistics, stands between"]),
    "onto a summand": (onto_summand, ["batch_norm, iadd separate: it writes to a tensor that is "
                                      "used elsewhere too"]),
    "summand written later": (summand_later, ["batch_norm + add, silu separate: its input or "
                                              "output, saved for backward, is written to later"]),
    "output written later": (output_later, ["batch_norm + add, leaky_relu separate: its input or "
                                            "output, saved for backward, is written to later"]),
    # These are fused.
    "method": (lambda norm, x, r: norm(x).relu(), ["batch_norm + relu"]),
    "methods in place": (lambda norm, x, r: norm(x).add_(r).relu_(), ["batch_norm + add_ + relu_"]),
    "relu6": (lambda norm, x, r: F.relu6(norm(x)), ["batch_norm + relu6"]),
    "from the right": (lambda norm, x, r: torch.relu(r + norm(x)), ["batch_norm + add + relu"]),
    "its own input": (lambda norm, x, r: F.relu(norm(x) + x), ["batch_norm + add + relu"]),
}  # fmt: skip


@pytest.mark.parametrize("training", few([True, False], lambda training: training))
@pytest.mark.parametrize("name", RUNS)
def test_it_computes_as_before(name: str, training: bool) -> None:
    run, rows = RUNS[name]
    if name in ("used for two", "statistics read") and not training:
        # Without an update only the order of reading is left, and that does not matter.
        rows = ["batch_norm + relu"] * len(rows)
    norm = nn.BatchNorm2d(6).double().train(training)
    assert compare(norm, run, *torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()) == rows


def write_between(norm: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    z = norm(x)
    x.mul_(2)
    return F.relu(z) + x


def onto_input(norm: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    x += norm(x)
    return F.relu(x)


@pytest.mark.parametrize("run", [write_between, onto_input])
def test_an_input_that_is_written_to(run: Run) -> None:
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    (text,) = compare(nn.BatchNorm2d(6).double(), run, x, r, grad=False)
    assert " separate: " in text


def hooked(hook: Callable[..., Any], kind: str) -> nn.Module:
    norm = nn.BatchNorm2d(6).double()
    getattr(norm, f"register_{kind}")(hook)
    return norm


SEEN: list[Tensor] = []


@pytest.mark.parametrize(
    ("hook", "kind", "row"),
    [
        (lambda m, i, y: y * 2, "forward_hook", "batch_norm, then mul"),
        (lambda m, i, y: SEEN.append(y), "forward_hook", SEVERAL),
        (lambda m, i: (i[0] * 2,), "forward_pre_hook", "batch_norm + relu"),
    ],
)
def test_hooks_are_called(hook: Callable[..., Any], kind: str, row: str) -> None:
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    assert compare(hooked(hook, kind), lambda norm, x, r: F.relu(norm(x)), x, r) == [row]
    if SEEN:
        torch.testing.assert_close(*SEEN)
        SEEN.clear()


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        (nn.BatchNorm2d(6).half(), "running statistics are torch.float16 and the moments torch."),
        (nn.InstanceNorm2d(6, track_running_stats=True), "do not average the statistics of insta"),
    ],
)
def test_statistics_that_the_kernels_do_not_take(norm: nn.Module, text: str) -> None:
    dtype = next(norm.buffers()).dtype
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=dtype).unbind()
    (row,) = compare(norm, lambda norm, x, r: F.relu(norm(x)), x, r)
    assert row.startswith(("batch_norm not fused: ", "instance_norm not fused: ")) and text in row


def test_calls_that_the_kernels_refuse_are_counted() -> None:
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    norm = nn.RMSNorm(6, dtype=torch.float64)
    (row,) = compare(norm, lambda norm, x, r: F.relu(norm(x.transpose(1, 3))), x, r)
    assert row == "rms_norm + relu; the kernels refused 1 of its calls"
