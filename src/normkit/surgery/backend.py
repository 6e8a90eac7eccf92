"""Backend of ``torch.compile`` that keeps the model eager and fuses what follows a normalization.

``accelerate`` sees modules, so it fuses within an ``nn.Sequential`` alone. Most networks call their
layers in ``forward``; there the graph that ``torch.compile`` records shows what follows what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from normkit.errors import OptionError, message
from normkit.handle import kind as class_name
from normkit.kernels import cpu
from normkit.nn.layer import Layer
from normkit.surgery.accelerate import FAMILY
from normkit.surgery.graph.chains import chain_from, kind
from normkit.surgery.graph.fused_call import FusedCall, inputs
from normkit.surgery.graph.norms import is_norm, read
from normkit.surgery.graph.report import (
    GraphReport,
    Row,
    fused_row,
    module_path,
    parameter_owner,
)

__all__ = ["Backend", "default", "register"]

log = logging.getLogger(__name__)


class Backend:
    """Backend of ``torch.compile`` that runs a model eagerly, with fused normalization.

    .. math::
        y = \\mathrm{act}\\left(\\gamma\\,\\frac{x - \\mathrm{E}[x]}{\\sqrt{\\mathrm{Var}[x]
            + \\epsilon}} + \\beta + \\mathrm{residual}\\right)

    Wherever ``forward`` calls a batch, group, instance, layer or root mean square normalization of
    ``torch.nn``, an addition after it and ReLU, ReLU6, LeakyReLU, SiLU or GELU after that, the CPU
    kernels compute them in one operation, in training and in evaluation. All else runs as without
    compiling, and so does what the kernels do not take. Outputs, gradients of any order and buffers
    agree with those of the model up to rounding.

    An addition or activation stays separate where the value before it is used elsewhere too, such
    as by a hook, or where an operation in between may write to a tensor. Blocks under activation
    checkpointing or control flow are left as they are.

    Installed, the package makes ``torch.compile(model, backend="normkit")`` known; elsewhere
    :func:`register` does. What was fused, and what not and why, is logged under
    ``normkit.surgery.backend`` for each graph (``TORCH_LOGS=normkit`` in the environment shows it):
    with the level of a warning where nothing was fused. A backend created here also keeps it.

    Attributes:
        graphs: one report for each graph compiled; ``print`` of a backend shows all.

    Raises:
        OptionError: ``torch.compile`` was given ``mode`` or ``options``.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> backend = Backend()
    >>> compiled = torch.compile(model, backend=backend)
    >>> compiled(torch.randn(4, 3, 8, 8)).shape
    torch.Size([4, 8, 6, 6])
    >>> print(backend)
    graph 1: ... of 1 normalizations fused...
    """

    def __init__(self) -> None:
        self.graphs: list[GraphReport] = []

    def __call__(
        self, gm: fx.GraphModule, example_inputs: list[Any], **options: Any
    ) -> Callable[..., Any]:
        """Rewrite the graph ``gm`` and return what runs it, as ``torch.compile`` asks."""
        if options:
            raise OptionError(
                message(
                    "no mode and no options for the backend normkit",
                    ", ".join(f"{name}={value!r}" for name, value in options.items()),
                    "leave them out",
                )
            )
        cpu.check_setting()
        report = GraphReport(tuple(_rewrite(gm)))
        # A model may be recorded in pieces, some without a normalization. That is worth a warning
        # only if no piece before had one.
        quiet = report.fused or (not report.rows and any(g.fused for g in self.graphs))
        self.graphs.append(report)
        log.log(logging.INFO if quiet else logging.WARNING, "%s", self._describe(-1))
        return gm.forward

    def __repr__(self) -> str:
        if not self.graphs:
            return "normkit backend: nothing compiled yet"
        return "\n".join(map(self._describe, range(len(self.graphs))))

    def _describe(self, index: int) -> str:
        return f"graph {range(1, len(self.graphs) + 1)[index]}: {self.graphs[index]}"


default = Backend()
"""Backend that ``backend="normkit"`` stands for."""


def register() -> None:
    """Make ``backend="normkit"`` known to ``torch.compile``, where the package is not installed.

    An installed package is found by its entry point, without an import.
    """
    import torch._dynamo as dynamo  # takes seconds, and is needed for compiling alone

    if "normkit" not in dynamo.list_backends(exclude_tags=None):
        dynamo.register_backend(default, name="normkit")


def _rewrite(gm: fx.GraphModule) -> list[Row]:
    """Fuse what can be fused in ``gm``; return a row for each normalization."""
    norms = [node for node in gm.graph.nodes if is_norm(node)]
    # From the end, so that of two normalizations that are added the later one takes the addition:
    # nothing stands between them.
    rows = [_fuse(gm.graph, node) for node in reversed(norms)][::-1]
    gm.recompile()
    return [*rows, *_elsewhere(gm, {row.name for row in rows})]


def _fuse(graph: fx.Graph, node: fx.Node) -> Row:
    """Replace the normalization ``node`` and what follows it by one call."""
    norm = read(node) if cpu.fused is not None else cpu.why_not()
    if isinstance(norm, str):
        return Row(module_path(node), (kind(node),), norm)
    chain = chain_from(node, norm)
    call, last = FusedCall(chain), chain.nodes[-1]
    row = fused_row(chain, call)
    with graph.inserting_after(last):
        replacement = graph.call_function(call, inputs(chain))
    replacement.meta = dict(last.meta)
    last.replace_all_uses_with(replacement)
    for each in reversed(chain.nodes):
        graph.erase_node(each)
    return row


def _elsewhere(gm: fx.GraphModule, named: set[str]) -> Iterator[Row]:
    """Yield a row for each other normalization, none of ``named``, that is no call in the graph."""
    layers: dict[str, type] = {}
    why = "a layer of normkit, compiled as it is; compile the model with torch.nn's layer"
    for node in gm.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        cls = stack[-1][1] if stack else None
        if isinstance(cls, type) and issubclass(cls, Layer):
            layers.setdefault(module_path(node), cls)
        elif node.op == "call_module" and isinstance(gm.get_submodule(node.target), FAMILY):
            off = "torch._dynamo.config.inline_inbuilt_nn_modules is off"
            yield Row(node.target, (kind(node),), off)
        elif str(node.target).startswith("normkit."):  # what accelerate fused in a Sequential
            yield Row(parameter_owner(node), (str(node.target),), why)
    for name, cls in layers.items():
        if name not in named:
            yield Row(name, (class_name(cls),), why)
    for name, block in gm.named_modules():
        if name and isinstance(block, fx.GraphModule):
            for node in filter(is_norm, block.graph.nodes):
                inner = "within a checkpointed or conditional block"
                yield Row(module_path(node), (kind(node),), inner)
