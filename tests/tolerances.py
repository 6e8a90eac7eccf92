"""How far a result may be from the truth, in one place, each with its reason.

The truth is :mod:`normkit.core.reference`, in float64 on the very numbers the layer was given. A
layer's error may be at most twice that of PyTorch's own kernel on the same input, plus a floor of
a few units in the last place: two kernels that add the same numbers in another order differ by
that much without either being wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Times PyTorch's own error. Two: another order of summation, no more.
FACTOR = 2.0

# Units in the last place of the largest value of the result that are rounding and nothing else:
# the cast of the result (½), γ·x̂, + β, + residual and the moments' own rounding (½ each), and
# for gradients the three terms of dx.
FLOOR_ULP = 4.0

# Of a running statistic: the kernels move it in float64 and round once, the other ways in its own
# type, or wider, step by step. Of parts in float64 the variance is also merged in another order.
AVERAGES: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 3e-7, "atol": 0},
    torch.float64: {"rtol": 1e-14, "atol": 1e-14},
    torch.bfloat16: {"rtol": 2**-8, "atol": 0},
}


def error(got: Tensor, truth: Tensor, terms: float = 0.0) -> float:
    """Largest error relative to the largest true value, or to ``terms`` where that is larger."""
    if truth.numel() == 0:
        assert got.shape == truth.shape
        return 0.0
    assert torch.isfinite(got).all(), "not finite"
    scale = truth.abs().max().clamp_min(max(terms, 1e-30))
    return float((got.double() - truth).abs().max() / scale)


def assert_accurate(
    got: Tensor, truth: Tensor, torchs: Tensor | None, what: str = "", terms: float = 0.0
) -> None:
    """``got`` is as near to ``truth`` as the rule above asks; ``torchs`` is PyTorch's result.

    ``terms``: for sums whose terms may cancel, such as the gradients of γ and β of a single
    channel, the sum of the terms' magnitudes: their rounding stays when they are gone.
    """
    limit = FLOOR_ULP * torch.finfo(got.dtype).eps
    if torchs is not None:
        limit += FACTOR * error(torchs, truth, terms)
    found = error(got, truth, terms)
    assert found <= limit, f"{what}: error {found:.2e}, allowed {limit:.2e}"
