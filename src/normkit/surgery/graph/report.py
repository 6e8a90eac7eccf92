"""Account of one rewritten graph: each normalization, what is computed with it, or why nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import fx

from normkit.handle import place_name, table
from normkit.surgery.graph.chains import Chain, kind
from normkit.surgery.graph.fused_call import FusedCall

__all__ = ["GraphReport", "Row", "fused_row", "module_path", "parameter_owner"]


class Row(NamedTuple):
    """One normalization of a graph.

    ``name`` is its module's in the model, ``calls`` what the graph calls in order, ``note`` why no
    more is computed with it, and ``fused`` what computes it; None where it was left as it was.
    """

    name: str
    calls: tuple[str, ...]
    note: str
    fused: FusedCall | None = None

    @property
    def text(self) -> str:
        """Description of the row for people."""
        text = " + ".join(self.calls)
        if self.fused is None:
            return f"{text} not fused: {self.note}"
        text += f", {self.note}" if self.note else ""
        count = self.fused.fallbacks
        return f"{text}; the kernels refused {count} of its calls" if count else text


class GraphReport(NamedTuple):
    """Rows of one graph, in its order. ``print`` shows them."""

    rows: tuple[Row, ...]

    @property
    def fused(self) -> tuple[Row, ...]:
        """Rows that the fused kernels compute."""
        return tuple(row for row in self.rows if row.fused is not None)

    def __str__(self) -> str:
        if not self.rows:
            return "0 fused: no normalization in this graph"
        head = f"{len(self.fused)} of {len(self.rows)} normalizations fused"
        longer = sum(len(row.calls) > 1 for row in self.fused)
        head += f", {longer} of them with what follows" if longer else ""
        return "\n".join([head, *table([(place_name(row.name), row.text) for row in self.rows])])


def fused_row(chain: Chain, call: FusedCall) -> Row:
    """Return the row of a chain that became one call."""
    return Row(module_path(chain.nodes[0]), tuple(map(kind, chain.nodes)), chain.end, call)


def module_path(node: fx.Node) -> str:
    """Return the name of the module that ``node`` belongs to, as the model names it."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return _readable(str(list(stack.values())[-1][0]))


def parameter_owner(node: fx.Node) -> str:
    """Return the name of the module whose parameters ``node`` takes; its own name without any."""
    for argument in node.args:
        known = argument.meta.get("grapharg") if isinstance(argument, fx.Node) else None
        name = known and known.source.name
        path, *behind = (name() if callable(name) else str(name)).split("._parameters[")
        if behind:
            return _readable(path)
    return node.name


def _readable(path: str) -> str:
    # Such as L['self']._modules['layer1']._modules['0'].bn1.
    path = re.sub(r"_modules\['([^']*)'\]|\[(\d+)\]", r".\1\2", path)
    path = re.sub(r"^[LG]\['(\w+)'\]", lambda m: "" if m[1] == "self" else m[1], path)
    return re.sub(r"\.+", ".", path).strip(".")
