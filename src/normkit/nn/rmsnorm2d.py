"""Root mean square normalization of the channels at each pixel, as other libraries have it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.compiler import is_compiling

from normkit.core.formula import Spec
from normkit.core.pools import PER_POSITION
from normkit.kernels import fused
from normkit.kernels.call import BatchStats, Call
from normkit.nn.inputs import check_count, check_eps, check_rank, prepare
from normkit.nn.lastaxes import check_weight
from normkit.nn.layer import Layer

__all__ = ["RMSNorm2d"]

_AT_PIXELS = fused.signature("position", (4,), centred=False)


class RMSNorm2d(Layer, nn.RMSNorm):
    """Root mean square normalization over C of (N, C, H, W), at every position by itself.

    Not public: layers of other libraries are computed as one (:mod:`normkit.nn.foreign`).
    """

    eps: float

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize ``x``, add ``residual`` (same shape) if given, apply the activation."""
        if not is_compiling():
            y = fused.layer(x, residual, self._parameters, None, _AT_PIXELS, 1,
                            self.normalized_shape[0], self.eps, self._act)  # fmt: skip
            if y is not None:
                return y
        check_rank(self, x, (4,), "(N, C, H, W)", "use RMSNorm where channels are last")
        x, residual = prepare(self, x, residual)
        check_weight(self)
        check_count(self, x, self.normalized_shape[0])
        check_eps(self, self.eps, False)
        spec = Spec(PER_POSITION, self.eps, self._act, centred=False)
        return self._normalize(Call(x, spec, self.weight, None, residual, BatchStats())).y
