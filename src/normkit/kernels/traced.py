"""Operations that PyTorch sees through: its own function for the call, or the formula."""

from __future__ import annotations

from torch import Tensor

from normkit.core import formula
from normkit.core.pools import as_ncs
from normkit.kernels import functions
from normkit.kernels.call import Call, Normalized
from normkit.kernels.modes import recorded, transformed
from normkit.kernels.wide import has_wider_stats, in_float64

__all__ = ["Traced"]


class Traced:
    """Take calls under compilation, tracing, ``torch.func`` and forward-mode differentiation."""

    name = "traced formula"

    def refuses(self, call: Call) -> str | None:
        if call.group is not None:
            return "the moments span several processes"
        return None if transformed(*_tensors(call)) else "nothing traces or transforms this call"

    def run(self, call: Call) -> Normalized:
        if recorded(*_tensors(call)) and (result := functions.normalize(call)) is not None:
            return result
        if has_wider_stats(call):
            return in_float64(self.run, call)
        x, spec = call.x, call.spec
        moments = call.fixed_moments() or formula.stats_of(x, spec.pool, spec.centred)
        y = formula.normalize(x, spec, call.weight, call.bias, call.residual, *moments)
        mean, var = moments
        return Normalized(y, mean.detach(), var.detach(), spec.pool.count(*as_ncs(x)))


def _tensors(call: Call) -> tuple[Tensor | None, ...]:
    return call.x, call.weight, call.bias, call.residual
