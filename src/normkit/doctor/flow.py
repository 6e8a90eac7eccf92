"""Find which module made a layer's input, and what takes its output.

Without data it is read from a symbolic trace, and where the model cannot be traced, from its
``Sequential`` parts. With a batch it is watched: hooks note which module made each tensor, and the
shapes. A tensor that passes through anything but a module loses its maker, so a chain is only
reported where it is certain.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakTensorKeyDictionary

from normkit.doctor.norms import kind_of
from normkit.statistics.batches.run_model import Forward, run_model
from normkit.statistics.batches.tensors import tensors_in
from normkit.statistics.layers.preserve import (
    evaluation_mode,
    preserve_buffers,
    preserve_rng,
    run_eagerly,
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
    """

    makers: dict[str, str] = dataclasses.field(default_factory=dict)
    users: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)
    last: str | None = None

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
            graph = _Tracer().trace(model)
    except Exception:  # whatever a model does that a trace cannot follow
        return _sequential_flow(model)
    flow, firsts = Flow(), _first_names(model)

    def name_of(node: Any) -> str | None:
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        return firsts.get(id(model.get_submodule(str(node.target))))

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
    """Watch one pass of a batch in evaluation mode; nothing in the model changes."""
    flow = Flow()
    makers: Any = WeakTensorKeyDictionary()

    def before(name: str, args: Any, kwargs: Any) -> None:
        inputs = tensors_in([*args, *kwargs.values()])
        flow.calls[name] = flow.calls.get(name, 0) + 1
        if inputs and flow.calls[name] == 1:
            flow.shapes[name] = tuple(inputs[0].shape)
            flow.dtypes[name] = inputs[0].dtype
        if flow.calls[name] > 1:
            flow.makers.pop(name, None)
        for tensor in inputs:
            flow._note(name, makers.get(tensor))

    def after(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            makers[output] = name

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
            flow.last = makers.get(output)
    return flow
