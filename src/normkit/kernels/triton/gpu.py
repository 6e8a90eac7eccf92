"""Way for tensors of a GPU: one autograd function around the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from normkit.core.pools import as_ncs
from normkit.kernels import node, triton
from normkit.kernels.call import BatchStats, Call, FixedStats, Normalized, dense
from normkit.kernels.native import TorchNative
from normkit.kernels.node import Constants, Options
from normkit.kernels.operations import options_of
from normkit.kernels.triton.operations import problem_of
from normkit.kernels.triton.problem import exceeds

__all__ = ["TOO_LARGE", "TYPES", "TritonGPU", "failure"]

TYPES = (torch.float32, torch.bfloat16, torch.float16)

SMALL = 2**21
"""Values below which a call goes to PyTorch's kernel, where one computes it.

To launch from Python takes some 50 µs, in which a GPU copies tens of megabytes; a kernel launched
from C++ is done by then. An estimate: no GPU has been at hand to measure it.
"""

TOO_LARGE = "a sample, or the number of statistics, is too large for positions of 32 bits"


class TritonGPU:
    """Take dense tensors of a GPU, of any pool and layout, in the types of :data:`TYPES`."""

    name = "Triton kernels"

    def refuses(self, call: Call) -> str | None:
        x, spec, stats = call.x, call.spec, call.stats
        if call.group is not None:
            return "the moments span several processes"
        if not (x.is_cuda or (triton.takes_cpu and x.is_cpu)):
            return f"they run on a GPU and the input is on {x.device}"
        missing = triton.why_not()
        if missing is not None:
            return missing
        if x.dtype not in TYPES:
            return f"they have no code for {x.dtype}"
        failed = failure(x.device)
        if failed is not None:
            return failed
        if x.dim() < 2 or x.numel() == 0:
            return "the input is empty or has fewer than two axes"
        n, c, s = as_ncs(x)
        split = {"group": c, "ghost": n}.get(spec.pool.over, 0)
        if split % spec.pool.groups:
            return "the groups do not divide what they split"
        if exceeds(spec.pool, n, c, s):
            return TOO_LARGE
        if not all(_fits(t, x, c) for t in (call.weight, call.bias)):
            return "a weight or bias is not a tensor of the same device with one number per channel"
        r = call.residual
        if r is not None and (r.device != x.device or r.dtype != x.dtype or r.shape != x.shape):
            return "the residual is not a tensor like the input"
        a, b, d, e = spec.pool.stats(n, c, s)
        if isinstance(stats, FixedStats):
            if not all(_fits(t, x, a * b * d * e) and t.dtype != torch.float64 for t in stats):
                return "the statistics are float64, or not one per pool on the same device"
        elif stats.update is not None and not all(
            t.dtype == torch.float32 and t.is_contiguous() and _fits(t, x, c)
            for t in stats.update[:2]
        ):
            return "the running statistics are not contiguous float32 of the same device"
        if x.numel() < SMALL and spec.act is None and r is None and not triton.takes_cpu:
            # By one kernel: with an activation or a residual it would be two or three.
            small = TorchNative().refuses(call) is None
            return "PyTorch's kernel is launched sooner for so few values" if small else None
        return None

    def run(self, call: Call) -> Normalized:
        x, stats, spec = dense(call.x), call.stats, call.spec
        update = stats.update if isinstance(stats, BatchStats) else None
        y, moments = node.normalize(
            _ENGINE, x, call.weight, call.bias, call.residual,
            Constants(_fixed(call), update), options_of(spec),
        )  # fmt: skip
        n, c, s = as_ncs(x)
        count = spec.pool.count(n, c, s)
        if update is not None:
            # They were written to behind autograd's back.
            increment_version(update[:2])
            return Normalized(y, None, None, count)
        if not call.wants_moments:
            return Normalized(y, None, None, count)
        shape = spec.pool.stats(n, c, s)
        return Normalized(y, moments[0].reshape(shape), moments[3].reshape(shape), count)


_tried: dict[torch.device, str | None] = {}


def failure(device: torch.device) -> str | None:
    """Return why Triton cannot launch on ``device``, as a clause after 'because', or None.

    Tried once: a GPU may be too old for this Triton, and many a container lacks the C compiler that
    Triton may want, where PyTorch's kernels work. Want of memory passes, and is tried again.
    """
    if device not in _tried:
        try:
            _tried[device] = _failure(device)
        except torch.cuda.OutOfMemoryError:
            return "Triton could not be tried on a device without free memory"
    return _tried[device]


def _failure(device: torch.device) -> str | None:
    try:
        from normkit.kernels.triton import schedule

        one = torch.ones(1, dtype=torch.bfloat16, device=device)
        schedule.fixed_stats(one, one, 1.0)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever kind: the call is computed without Triton
        reason = (str(error).splitlines() or [""])[0]
        return f"Triton does not run on {device} ({type(error).__name__}: {reason})"
    return None


class _Kernels:
    """Engine of eager mode: the kernels, called without PyTorch's dispatcher."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        constants: Constants,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        from normkit.kernels.triton import schedule

        return schedule.forward(x, weight, bias, residual, problem_of(options), *constants)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor | None,
        stats: Tensor,
        other_is_output: bool,
        needs: tuple[bool, bool, bool, bool],
        own_stats: bool,
        options: Options,
    ) -> tuple[Tensor | None, ...]:
        from normkit.kernels.triton import schedule

        return schedule.backward(
            dy, x, weight, bias, other, stats, other_is_output, needs, problem_of(options),
            own_stats,
        )  # fmt: skip


_ENGINE = _Kernels()


def _fixed(call: Call) -> Tensor | None:
    if not isinstance(call.stats, FixedStats):
        return None
    from normkit.kernels.triton import schedule

    mean, var = call.stats
    return schedule.fixed_stats(mean, var, call.spec.eps)


def _fits(t: Tensor | None, x: Tensor, size: int) -> bool:
    return t is None or (t.device == x.device and t.numel() == size and t.dtype.is_floating_point)
