"""One operation in place of several: the fused kernels, or the operations themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from normkit.kernels import fused
from normkit.kernels.fused import Stats
from normkit.surgery.graph.chains import Chain, kind

__all__ = ["FusedCall", "inputs"]

_NAMES = ("x", "residual", "weight", "bias", "mean", "var", "momentum", "eps")


def inputs(chain: Chain) -> tuple[Any, ...]:
    """Return the arguments of a :class:`FusedCall`: nodes of the chain's graph, numbers or None."""
    norm = chain.norm
    tensors = norm.x, chain.residual, norm.weight, norm.bias, norm.mean, norm.var
    return (*tensors, norm.momentum, norm.eps)


class FusedCall:
    """Function that computes a chain of a graph, for a node in its place.

    It refers to no node of that graph, so a report may outlive it.

    Attributes:
        fallbacks: number of calls that the kernels refused, computed by the chain's own operations.
    """

    def __init__(self, chain: Chain) -> None:
        norm = chain.norm
        self.__name__ = "_".join(kind(node).strip("_") for node in chain.nodes)
        self.fallbacks = 0
        self._signature = norm.signature, norm.groups, norm.shape
        self._act, self._stats = chain.act, norm.stats
        self._stats_updated = False
        self._graph = _copy(chain)

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        momentum: float | None,
        eps: float | None,
    ) -> Any:
        parameters = {"weight": weight, "bias": bias}
        # The graph counts the batches in an operation of its own.
        buffers = {"running_mean": mean, "running_var": var, "num_batches_tracked": None}
        y = fused.layer(x, residual, parameters, buffers, *self._signature, eps, self._act,
                        self._stats, momentum, self._stats_updated)  # fmt: skip
        if y is None:
            self.fallbacks += 1
            return self._separately(x, residual, weight, bias, mean, var, momentum, eps)
        # From now on a call within a backward pass is a checkpoint's, of a batch that has counted.
        self._stats_updated = self._stats == Stats.UPDATE
        return y

    @functools.cached_property
    def _separately(self) -> Callable[..., Any]:
        """Function of the same arguments that runs the operations as they were recorded."""
        return fx.GraphModule({}, self._graph).forward


def _copy(chain: Chain) -> fx.Graph:
    """Return the operations of a chain as a graph of its own, of the same inputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for name, argument in zip(_NAMES, inputs(chain), strict=True):
        placeholder = graph.placeholder(name)
        if isinstance(argument, fx.Node):
            copies[argument] = placeholder
    for node in chain.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = {}
    graph.output(copies[chain.nodes[-1]])
    return graph
