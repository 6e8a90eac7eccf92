"""Keep the kernels in a compiled graph."""

from __future__ import annotations

from normkit.core.pools import as_ncs
from normkit.kernels import cpu, fused, operations
from normkit.kernels.call import Call, FixedStats, Normalized
from normkit.kernels.modes import compiling_plainly, differentiates

__all__ = ["Compiled"]


class Compiled:
    """Take what ``torch.compile`` records on a CPU, if moments are taken of the input.

    A call with fixed moments is one multiplication and addition for each value, which a compiler
    fuses with the operations before and after it.
    """

    name = "fused C++ kernels in a compiled graph"

    def refuses(self, call: Call) -> str | None:
        if call.group is not None:
            return "the moments span several processes"
        x, tensors = call.x, (call.x, call.weight, call.bias, call.residual)
        if not compiling_plainly(*tensors):
            return "nothing compiles this call, or something else sees through it"
        if cpu.fused is None or not operations.available:
            return cpu.reason or "the fused kernels were built for another version of normkit"
        if isinstance(call.stats, FixedStats):
            return "a compiler fuses it with what is around it"
        if x.dim() == 2 and call.spec.pool.over == "group" and not differentiates(*tensors):
            # Both read a row once from memory; a compiler's code computes its neighbours with it.
            return "without gradients a compiler's code for rows is as fast"
        if x.device.type != "cpu" or x.dtype not in fused.FLOATS:
            return "they have no code for the input's device or type"
        return None

    def run(self, call: Call) -> Normalized:
        y, stats = operations.normalize(call.x, call.weight, call.bias, call.residual, call.spec)
        n, c, s = as_ncs(call.x)
        shape = call.spec.pool.stats(n, c, s)
        mean, var = (stats[0] + stats[1]).reshape(shape), stats[3].reshape(shape)
        return Normalized(y, mean, var, call.spec.pool.count(n, c, s))
