"""Kernels against the oracle through whole calls, in the interpreter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from normkit.core.activations import Act
from normkit.core.formula import Spec
from normkit.core.moments import accumulator
from normkit.kernels import triton as kernels
from normkit.kernels.call import Call, layout
from normkit.kernels.dispatch import normalize
from tests.kernels.oracle import by_oracle, results, terms
from tests.tolerances import assert_accurate

ACTS = [None, Act("relu"), Act("relu6"), Act("leaky_relu", 0.2), Act("silu"), Act("gelu")]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_call(spec: Spec, tensors: list[Tensor | None], dy: Tensor) -> dict[str, Tensor]:
    """Compute the output and the gradients of all ``tensors``: x, weight, bias, residual."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, w, b, r = leaves
    assert x is not None
    y = normalize(Call(x, spec, w, b, r)).y
    assert y.is_contiguous(memory_format=layout(x))
    y.backward(dy)
    return results(y, leaves)


def assert_as_by_oracle(spec: Spec, tensors: list[Tensor | None], dy: Tensor) -> None:
    """Hold the kernels against the oracle, and PyTorch's operations for the tolerance."""
    if spec.act is not None and spec.act.derivative_from_output:
        # No gradient where rounding decides on which side of the kink a value lies.
        z = by_oracle(dataclasses.replace(spec, act=None), tensors, dy)["y"]
        dy = dy.masked_fill((z.abs() < 1e-3) | ((z - 6).abs() < 1e-2), 0)
    truth, got = by_oracle(spec, tensors, dy), by_call(spec, tensors, dy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "takes_cpu", False)
        portable = by_call(spec, tensors, dy)
    limits = terms(spec, tensors, dy)
    for name, value in got.items():
        assert value.dtype == portable[name].dtype
        assert_accurate(value, truth[name], portable[name], name, limits.get(name, 0.0))


def draw_tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[list[Tensor | None], Tensor]:
    """Draw x, weight, bias and residual of any type and layout, and the gradient of the output."""
    dtype, seed = draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**31))
    generator, c = torch.Generator().manual_seed(seed), shape[1]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x = random(*shape) * 2 + draw(st.sampled_from([0, 3]))
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last and draw(st.booleans()):
        x = x.contiguous(memory_format=last)
    if draw(st.booleans()):  # every second sample of a larger tensor
        x = x.repeat_interleave(2, 0)[::2]
    wide = draw(st.sampled_from([accumulator(dtype), dtype]))
    weight = random(c).to(wide) if draw(st.booleans()) else None
    bias = random(c).to(wide) if draw(st.booleans()) else None
    residual = random(*shape) if draw(st.booleans()) else None
    return [x, weight, bias, residual], random(*shape)
