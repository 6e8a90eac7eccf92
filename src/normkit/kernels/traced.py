"""The formula in PyTorch's operations, where PyTorch has to see through the call."""

from __future__ import annotations

from normkit.core import formula
from normkit.core.pools import as_ncs
from normkit.kernels.call import Call, Normalized
from normkit.kernels.modes import transformed

__all__ = ["Traced"]


class Traced:
    """Take calls under compilation, tracing, ``torch.func`` and forward-mode differentiation."""

    name = "traced formula"

    def refuses(self, call: Call) -> str | None:
        if call.group is not None:
            return "the moments span several processes"
        return None if transformed(call.x) else "nothing traces or transforms this call"

    def run(self, call: Call) -> Normalized:
        x, spec = call.x, call.spec
        moments = call.fixed_moments() or formula.stats_of(x, spec.pool, spec.centred)
        y = formula.normalize(x, spec, call.weight, call.bias, call.residual, *moments)
        mean, var = moments
        return Normalized(y, mean.detach(), var.detach(), spec.pool.count(*as_ncs(x)))
