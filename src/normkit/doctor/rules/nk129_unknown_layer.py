"""Layers keep statistics in a way that no tool knows.

What it checks
    Whether a module has buffers named running_mean and running_var, and normkit does not know what
    it does with them: a subclass with its own forward, an unknown class, a scripted module.

Why it is bad
    Such a layer is not examined, recalibrated or frozen. All else said here is about the others.

Example
    class MyNorm(nn.BatchNorm2d):
        def forward(self, x): ...

Use instead
    Three lines make it known: @stats_spec.register(MyNorm), see normkit.nn.stats_spec.stats_spec.

When it is right
    Where the layer does not normalize with these buffers.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import count
from normkit.nn.freezing import is_constant
from normkit.nn.stats_spec import in_graph, why_unknown


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that are passed over."""
    unknown = {}
    for name, module in exam.model.named_modules():
        expected = is_constant(module) or in_graph(module) or isinstance(module, _InstanceNorm)
        if not expected and (why := why_unknown(module)) is not None:
            unknown[name] = type(module).__name__, why
    if unknown:
        cls, why = next(iter(unknown.values()))
        yield Finding(
            "note",
            tuple(unknown),
            f"Passed over: {count(unknown)} with running statistics, such as {cls}: {why}.",
            f"@stats_spec.register({cls}) with a StatsSpec makes it known",
            float(len(unknown)),
        )
