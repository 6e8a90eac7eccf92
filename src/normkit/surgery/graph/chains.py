"""Chains in a graph that one call computes: a normalization, an addition, an activation.

A chain is computed where its last operation stands. So nothing between its operations may write to
a tensor, change a mode or read the statistics that the normalization updates, and nobody else may
use what the operations hand on to each other.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional as F

from normkit.core.activations import Act, act_of_call
from normkit.kernels.fused import Stats
from normkit.surgery.graph.norms import Norm, value_of

__all__ = ["Chain", "chain_from", "kind"]

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IN_PLACE_ADDITIONS = {operator.iadd, "add_"}
# Functions of these change no mode, and write to a tensor only where their name or an argument says
# so.
_SPACES: tuple[Any, ...] = (torch, F, torch._C._nn, operator)
_WRITERS = {
    "setitem", "delitem", "embedding", "embedding_bag",
    *(name for name in dir(operator) if name[0] == "i" and hasattr(operator, name[1:])),
}  # fmt: skip


class Chain(NamedTuple):
    """Operations that follow each other, the normalization first.

    ``end`` says why it is no longer: what follows, or why that is computed separately; it is empty
    after an activation.
    """

    norm: Norm
    nodes: tuple[fx.Node, ...]
    residual: fx.Node | None = None
    act: Act | None = None
    end: str = ""


def chain_from(node: fx.Node, norm: Norm) -> Chain:
    """Return the longest chain that begins with the normalization ``node``."""
    chain = Chain(norm, (node,))
    user, end = _next(chain)
    if user is not None and (residual := _other_summand(user, node)) is not None:
        if why := _why_not_added(user, node, residual):
            return chain._replace(end=f"{kind(user)} separate: {why}")
        chain = chain._replace(nodes=(node, user), residual=residual)
        user, end = _next(chain)
    if user is None:
        return chain._replace(end=end)
    act = _act(user, chain.nodes[-1])
    if act is None:
        return chain._replace(end=f"then {kind(user)}")
    if chain.residual is not None and act.name != "relu" and _is_written_later(user, chain):
        # PyTorch's own would have saved the sum, which nothing can reach.
        why = "its input or output, saved for backward, is written to later"
        return chain._replace(end=f"{kind(user)} separate: {why}")
    return chain._replace(nodes=(*chain.nodes, user), act=act)


def kind(node: fx.Node) -> str:
    """Return the name of what a node calls."""
    return node.target if isinstance(node.target, str) else str(node.target.__name__)


def _next(chain: Chain) -> tuple[fx.Node | None, str]:
    """Return the operation after a chain if it can join, or None and why not."""
    last = chain.nodes[-1]
    if len(last.users) != 1:
        return None, "then several operations" if last.users else "then nothing"
    (user,) = last.users
    if user.op == "output":
        return None, "then the end of the graph"
    node = chain.nodes[0].next
    while node is not user:
        if node not in chain.nodes and (effect := _effect(node, chain.norm)):
            return None, f"{kind(user)} separate: {kind(node)}, which {effect}, stands between"
        node = node.next
    return user, ""


def _effect(node: fx.Node, norm: Norm) -> str:
    """Return why ``norm`` may not be computed after ``node``, which follows it; else nothing."""
    if _may_write(node):
        return "may write to a tensor"
    updates = {_storage(norm.mean), _storage(norm.var)} if norm.stats == Stats.UPDATE else set()
    reads = any(_storage(n) in updates for n in node.all_input_nodes)
    return "reads its statistics" if reads else ""


def _may_write(node: fx.Node) -> bool:
    """Return True unless ``node`` is known to write to no tensor and to change no mode."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    name = kind(node)
    if node.op == "call_method":
        return name.endswith("_")
    known = node.op == "call_function" and any(
        getattr(space, name, None) is node.target for space in _SPACES
    )
    # True may stand for inplace, or have running statistics updated.
    requested = node.kwargs.get("out") is not None or any(
        value is True for value in (*node.args, *node.kwargs.values())
    )
    return not known or requested or name in _WRITERS or name[0] == "_" or name[-1] == "_"


def _other_summand(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return what ``node`` adds to ``value``; None if it does not add a tensor to it."""
    calls = node.op in ("call_function", "call_method") and node.target in _ADDITIONS
    if not calls or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    other = second if first is value else first
    known = isinstance(other, fx.Node) and other is not value and value_of(other) is not None
    return other if known else None  # type: ignore[return-value]


def _why_not_added(node: fx.Node, value: fx.Node, residual: fx.Node) -> str:
    """Return why the addition ``node`` has to stay; empty if it need not."""
    a, b = value_of(value), value_of(residual)
    assert b is not None
    # Symbolic sizes are compared as they are written, which asks for no guard.
    if a is None or (a.dtype, a.device, str(a.shape)) != (b.dtype, b.device, str(b.shape)):
        return "its summands differ in shape or type"
    if node.target in _IN_PLACE_ADDITIONS and node.args[0] is residual:
        storage = _storage(residual)
        shared = len(residual.users) > 1 or residual.op in ("placeholder", "get_attr")
        before = residual.prev
        while not shared and before.op != "root":
            shared = _storage(before) == storage
            before = before.prev
        if shared:
            return "it writes to a tensor that is used elsewhere too"
    return ""


def _act(node: fx.Node, value: fx.Node) -> Act | None:
    if node.op not in ("call_function", "call_method") or node.args[:1] != (value,):
        return None
    return act_of_call(node.target, *node.args[1:], **node.kwargs)


def _is_written_later(last: fx.Node, chain: Chain) -> bool:
    """Return True if an operation after ``last`` may write to its value or to the residual."""
    storages = {_storage(last), _storage(chain.residual)}
    node = last.next
    while node.op != "root":
        if _may_write(node) and any(_storage(n) in storages for n in node.all_input_nodes):
            return True
        node = node.next
    return False


def _storage(node: fx.Node | None) -> int | None:
    value = value_of(node)
    return None if value is None else value.untyped_storage()._cdata
