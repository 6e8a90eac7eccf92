"""Find which module made a layer's input, and what takes its output.

It is read from a symbolic trace of a copy, which knows every use of a tensor. Where the model
cannot be traced a batch is watched: hooks note which module made each tensor; without a batch its
``Sequential`` parts tell. A tensor that passes through anything but a module, or is written to,
loses its maker, so a chain is only reported where it is certain.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakTensorKeyDictionary

from normkit.nn.kinds import kind_of
from normkit.statistics.batches.run_model import Forward, run_model
from normkit.statistics.batches.tensors import tensors_in
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    run_eagerly,
    tensor_version,
)

__all__ = ["Flow", "traced_flow", "watched_flow"]


@dataclasses.dataclass
class Flow:
    """Ways of tensors from module to module, by their first names.

    Attributes:
        makers: by module, which module made its input, where that is certain.
        users: by module, how many take its output, as far as is known.
        calls: by module, how often one pass calls it; empty where only the parts of a
            ``Sequential`` are known.
        shapes, dtypes: by module, those of its input in the first call; empty without a batch.
        last: the module that made the model's output, where that is certain.
        entries: the modules that got a tensor of the batch itself.
        complete: whether ``users`` are all there are, as a trace knows them.
    """

    makers: dict[str, str] = dataclasses.field(default_factory=dict)
    users: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)
    last: str | None = None
    entries: tuple[str, ...] = ()
    complete: bool = False

    def before(self, name: str) -> Iterator[str]:
        """Yield the modules before this one, the nearest first, as far as is certain.

        >>> list(traced_flow(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Identity())).before("2"))
        ['1', '0']
        """
        visited = {name}
        while (maker := self.makers.get(name)) is not None and maker not in visited:
            yield maker
            visited.add(maker)
            name = maker

    def _note(self, user: str, maker: str | None) -> None:
        if maker is None:
            return
        self.users[maker] = self.users.get(maker, 0) + 1
        if self.calls.get(user, 1) == 1:
            self.makers[user] = maker


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None or kind_of(module) is not None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)


def traced_flow(model: nn.Module) -> Flow:
    """Read the flow from a symbolic trace, or from the ``Sequential`` parts of the model."""
    try:
        with preserve_rng():
            # Of a copy: a trace runs the model's own code, which may write to the model.
            copied = copy.deepcopy(model, {id(each): each for each in model.parameters()})
            graph = _Tracer().trace(copied)
    except Exception:  # whatever a model does that a copy or a trace cannot follow
        return _sequential_flow(model)
    flow, firsts = Flow(complete=True), _first_names(copied)
    written = {
        node.args[0]
        for node in graph.nodes
        if node.op == "call_method" and node.target.endswith("_") and node.args
    }

    def name_of(node: Any) -> str | None:
        if not isinstance(node, fx.Node) or node.op != "call_module" or node in written:
            return None
        return firsts.get(id(copied.get_submodule(str(node.target))))

    for node in graph.nodes:
        inputs = node.all_input_nodes
        user = name_of(node)
        for maker in map(name_of, inputs):
            if user is not None and len(inputs) == 1:
                flow._note(user, maker)
            elif maker is not None:
                flow.users[maker] = flow.users.get(maker, 0) + 1
        if node.op == "output" and len(inputs) == 1:
            flow.last = name_of(inputs[0])
    called = (name_of(node) for node in graph.nodes)
    flow.calls = dict(Counter(name for name in called if name is not None))
    for name, calls in flow.calls.items():
        if calls > 1:
            flow.makers.pop(name, None)
    return flow


def _sequential_flow(model: nn.Module) -> Flow:
    flow, firsts = Flow(), _first_names(model)
    for module in model.modules():
        if type(module).forward is not nn.Sequential.forward:
            continue
        previous: str | None = None
        for child in module.children():
            leaf = _is_leaf(child)
            if leaf:
                flow._note(firsts[id(child)], previous)
            previous = firsts[id(child)] if leaf else None
    return flow


def _first_names(model: nn.Module) -> Mapping[int, str]:
    return {id(module): name for name, module in model.named_modules()}


def watched_flow(model: nn.Module, batch: Any, forward: Forward | None) -> Flow:
    """Watch one pass of a batch in evaluation mode; nothing in the model changes.

    What a trace knows is taken from it, and shapes, types and calls from the pass.
    """
    flow, traced = Flow(), traced_flow(model)
    arrived = {id(tensor) for tensor in tensors_in(batch)}
    makers: Any = WeakTensorKeyDictionary()

    def maker_of(tensor: Tensor) -> str | None:
        maker, version = makers.get(tensor, (None, None))
        return maker if version == tensor_version(tensor) else None

    def before(name: str, args: Any, kwargs: Any) -> None:
        inputs = tensors_in([*args, *kwargs.values()])
        flow.calls[name] = flow.calls.get(name, 0) + 1
        if inputs and flow.calls[name] == 1:
            flow.shapes[name] = tuple(inputs[0].shape)
            flow.dtypes[name] = inputs[0].dtype
        if flow.calls[name] > 1:
            flow.makers.pop(name, None)
        if any(id(tensor) in arrived for tensor in inputs):
            flow.entries = (*flow.entries, name)
        for tensor in inputs:
            flow._note(name, maker_of(tensor))

    def after(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            makers[output] = name, tensor_version(output)

    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(run_eagerly())
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(preserve_buffers(model))
        for name, module in model.named_modules():
            if not _is_leaf(module):
                continue
            enter = module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: before(name, args, kwargs), with_kwargs=True
            )
            leave = module.register_forward_hook(
                lambda _, args, output, name=name: after(name, output)
            )
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        output = run_model(model, batch, forward)
        if isinstance(output, Tensor):
            flow.last = maker_of(output)
    if traced.complete:
        traced.shapes, traced.dtypes, traced.calls = flow.shapes, flow.dtypes, flow.calls
        traced.entries = flow.entries
        return traced
    return flow
