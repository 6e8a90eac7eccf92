"""One operation in place of several: the fused kernels, or the operations themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from normkit.kernels import fused
from normkit.surgery.graph.chains import Chain, kind

__all__ = ["FusedCall"]

_INPUTS = ("x", "residual", "weight", "bias", "mean", "var", "momentum")


class FusedCall:
    """Function that computes a chain of a graph, for a node in its place.

    Attributes:
        fallbacks: number of calls that the kernels refused, computed by the chain's own operations.
    """

    def __init__(self, chain: Chain) -> None:
        norm = chain.norm
        self.__name__ = "_".join(kind(node).strip("_") for node in chain.nodes)
        self.fallbacks = 0
        self._norm, self._act = norm, chain.act
        self.arguments = (norm.x, chain.residual, norm.weight, norm.bias, norm.mean, norm.var,
                          norm.momentum)  # fmt: skip
        self._graph = _copy(chain, self.arguments)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        momentum: float | None,
    ) -> Any:
        norm = self._norm
        parameters = {"weight": weight, "bias": bias}
        # The graph counts the batches in an operation of its own.
        buffers = {"running_mean": mean, "running_var": var, "num_batches_tracked": None}
        y = fused.layer(x, residual, parameters, buffers, norm.signature, norm.groups, norm.shape,
                        norm.eps, self._act, norm.stats, momentum)  # fmt: skip
        if y is not None:
            return y
        self.fallbacks += 1
        return self._separately(x, residual, weight, bias, mean, var, momentum)

    @functools.cached_property
    def _separately(self) -> Callable[..., Any]:
        """Function of the same arguments that runs the operations as they were recorded."""
        return fx.GraphModule({}, self._graph).forward


def _copy(chain: Chain, arguments: tuple[Any, ...]) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for name, argument in zip(_INPUTS, arguments, strict=True):
        placeholder = graph.placeholder(name)
        if isinstance(argument, fx.Node):
            copies[argument] = placeholder
    for node in chain.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = {}
    graph.output(copies[chain.nodes[-1]])
    return graph
