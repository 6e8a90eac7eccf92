"""save_memory with the Triton kernels: outputs from the stats that are saved, the same bits."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.memory import live_bytes
from normkit.compat import release
from tests.few import few

pytestmark = [
    pytest.mark.usefixtures("by_triton"),
    pytest.mark.skipif(release(torch.__version__) < (2, 8), reason="needs torch 2.8"),
]

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(8, act="silu"),
    "ghost": lambda: nk.GhostBatchNorm2d(8, 2, act="relu"),
    "group": lambda: nk.GroupNorm(2, 8, act="gelu"),
    "position": lambda: nk.LayerNorm2d(8, act="relu"),
    "fixed": lambda: nk.BatchNorm2d(8, act="relu").eval(),
}


@pytest.mark.parametrize(
    ("dtype", "layout"),
    few(
        itertools.product(
            [torch.float32, torch.bfloat16], [torch.contiguous_format, torch.channels_last]
        ),
        lambda dtype, layout: dtype == torch.float32,
    ),
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_from_less(
    name: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), LAYERS[name](), nn.Conv2d(8, 2, 1))
    model = model.to(dtype=dtype, memory_format=layout)
    x = torch.randn(2, 3, 4, 5).to(dtype=dtype, memory_format=layout)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))

    def run() -> Tensor:
        y = model(x)
        gc.collect()  # the interpreter leaves cycles
        assert isinstance(y, Tensor)
        return y

    before, kept = gradients(), live_bytes(run)
    assert len(nk.save_memory(model).changed) == 1
    for a, b in zip(before, gradients(), strict=True):
        assert torch.equal(a, b)
    output = 2 * 8 * 4 * 5 * x.element_size()
    assert live_bytes(run) < kept - 0.9 * output
