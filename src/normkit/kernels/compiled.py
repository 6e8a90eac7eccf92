"""Keep the kernels in a compiled graph."""

from __future__ import annotations

from normkit.core.pools import as_ncs
from normkit.kernels import cpu, fused, operations, triton
from normkit.kernels.call import Call, FixedStats, Normalized
from normkit.kernels.modes import compiling_plainly, differentiates
from normkit.kernels.triton import gpu
from normkit.kernels.triton.problem import exceeds

__all__ = ["Compiled"]


class Compiled:
    """Take what ``torch.compile`` records on a CPU or a GPU, if moments are taken of the input.

    A call with fixed moments is one multiplication and addition for each value, which a compiler
    fuses with the operations before and after it.
    """

    name = "fused kernels in a compiled graph"

    def refuses(self, call: Call) -> str | None:
        if call.group is not None:
            return "the moments span several processes"
        x, tensors = call.x, (call.x, call.weight, call.bias, call.residual)
        if not compiling_plainly(*tensors):
            return "nothing compiles this call, or something else sees through it"
        on_cpu = x.device.type == "cpu"
        missing = _missing_on_cpu() if on_cpu else triton.why_not()
        if missing is not None:
            return missing
        if isinstance(call.stats, FixedStats):
            return "a compiler fuses it with what is around it"
        if x.dim() == 2 and call.spec.pool.over == "group":
            # Both read a row once from memory; a compiler's code computes its neighbours with it.
            if not on_cpu:
                return "a compiler's code for rows is as fast"
            if not differentiates(*tensors):
                return "without gradients a compiler's code for rows is as fast"
        types = {"cpu": fused.FLOATS, "cuda": gpu.TYPES}
        if x.dtype not in types.get(x.device.type, ()):
            return "they have no code for the input's device or type"
        if not on_cpu and exceeds(call.spec.pool, *as_ncs(x)):
            return gpu.TOO_LARGE
        return None

    def run(self, call: Call) -> Normalized:
        y, stats = operations.normalize(call.x, call.weight, call.bias, call.residual, call.spec)
        n, c, s = as_ncs(call.x)
        shape = call.spec.pool.stats(n, c, s)
        mean, var = (stats[0] + stats[1]).reshape(shape), stats[3].reshape(shape)
        return Normalized(y, mean, var, call.spec.pool.count(n, c, s))


def _missing_on_cpu() -> str | None:
    if cpu.fused is not None and operations.available:
        return None
    return cpu.reason or "the fused kernels were built for another version of normkit"
