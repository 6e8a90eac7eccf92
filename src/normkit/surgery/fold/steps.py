"""Change the layers of a merge in place, and restore them bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from normkit.core.activations import Act
from normkit.handle import Skipped, Step
from normkit.nn.layer import Layer
from normkit.statistics.layers.preserve import tensor_version
from normkit.surgery.fold.hosts import Merged, tensor_table
from normkit.surgery.fold.values import Event
from normkit.surgery.modules import set_class

__all__ = ["AddActivation", "merge_step", "remains", "what_remains"]

# Attributes that say whether a normalization learns weights.
_FLAGS = ("affine", "elementwise_affine")
# Attributes of every module that are not taken from the one that replaces it.
_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")

_MODULES: dict[str, Any] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU, "hardswish": nn.Hardswish,
}  # fmt: skip


class AddActivation(nn.Module):
    """Remains of a folded layer that is called with a residual: ``act(x + residual)``.

    >>> AddActivation(nn.ReLU())(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.5]))
    tensor([0.0000, 2.5000])
    """

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Add ``residual`` if given, and apply the activation."""
        if residual is not None:
            input = input + residual
        return self.act(input)  # type: ignore[no-any-return]


def remains(module: nn.Module, calls: list[Event]) -> nn.Module:
    """Return the module that computes what is left of a layer without its scale and shift."""
    act = _act_module(getattr(module, "_act", None)) if isinstance(module, Layer) else None
    if act is None and module._modules:
        # Of timm's, which hold a dropout and an activation under these names.
        names = [k for k in module._modules if k != "parametrizations"]
        inner = [(k, m) for k in names if (m := module._modules[k]) is not None]
        if all(isinstance(m, nn.Identity) for _, m in inner):
            return nn.Identity()
        return nn.Sequential(OrderedDict(inner))
    if any(
        len(call.args) + len(call.kwargs) > 1 for call in calls
    ):  # a residual, which may be None
        return AddActivation(act or nn.Identity())
    return act or nn.Identity()


def _act_module(act: Act | None) -> nn.Module | None:
    if act is None:
        return None
    module: nn.Module = _MODULES[act.name](*([act.slope] if act.name == "leaky_relu" else []))
    return module


def what_remains(rest: nn.Module) -> str | None:
    """Return in words what is left of a folded layer; None if nothing is.

    >>> what_remains(nn.ReLU()), what_remains(nn.Identity())
    ('the ReLU', None)
    """
    if type(rest) is nn.Identity:
        return None
    if isinstance(rest, AddActivation):
        return "the addition"
    return "an activation" if type(rest) is nn.Sequential else f"the {type(rest).__name__}"


def merge_step(
    name: str, module: nn.Module, rest: nn.Module, hosts: dict[str, tuple[nn.Module, Merged]]
) -> Step:
    """Return the step that gives layers their new weights and leaves ``left`` of ``module``.

    Every module and parameter stays the same object. A parameter gets other memory, so that
    a ``state_dict`` taken before keeps the former values.
    """
    changes = [_Weights(host, merged, module) for host, merged in hosts.values()]
    cls, state, names = type(module), dict(vars(module)), list(hosts)
    new = {k: v if k in _STATE or k not in state else state[k] for k, v in vars(rest).items()}

    def do() -> None:
        for change in changes:
            change.do()
        _become(module, type(rest), new)

    def undo() -> Skipped | None:
        if type(module) is cls:
            for change in changes:
                change.undo()
            return None
        changed = [n for n, change in zip(names, changes, strict=True) if not change.is_unchanged()]
        if type(module) is not type(rest):
            return Skipped(name, type(module), "its class was changed again")
        if changed:
            return Skipped(name, cls, f"the weights of {', '.join(changed)} were changed since")
        moves = [change.new_place() for change in changes]
        for change in changes:
            change.undo()
        mode = module.training
        _become(module, cls, state)
        # A frozen layer keeps the mode that was asked for elsewhere.
        if "_requested_mode" in state:
            module._requested_mode = mode  # type: ignore[assignment]
        else:
            module.training = mode
        _follow(module, moves)
        return None

    return Step(do, undo)


def _become(module: nn.Module, cls: type, state: dict[str, Any]) -> None:
    set_class(module, cls)
    attributes = vars(module)
    attributes.clear()
    attributes.update(state)


_Move = tuple[torch.device, torch.dtype, torch.dtype]


def _follow(module: nn.Module, moves: list[_Move | None]) -> None:
    """Move the tensors of a restored layer to where the model was moved meanwhile."""
    place = next((move for move in moves if move is not None), None)
    if place is None:
        return
    device, before, dtype = place
    for table in (module._parameters, module._buffers):
        for tensor in table.values():
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(device, dtype if tensor.dtype == before else None)
            elif tensor is not None:
                tensor.data = tensor.data.to(device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


class _Weights:
    """New weight and bias of one layer, and the former ones."""

    def __init__(self, host: nn.Module, merged: Merged, module: nn.Module) -> None:
        self._host = host
        # Type and device of new tensors are those of the layer's others, else of the folded one.
        every = [*_tensors(host), *_tensors(module)]
        self._like = next(t for t in every if t.is_floating_point())
        self._new: dict[str, Tensor | None] = {"weight": merged.weight, "bias": merged.bias}
        self._before: dict[str, Tensor | None] = {}  # the memory of each before
        self._after: dict[str, tuple[Tensor, int | None]] = {}  # after, and its version
        self._flags: dict[str, Any] = {}

    def do(self) -> None:
        host, like = self._host, self._like
        for name, value in self._new.items():
            if value is None:
                continue
            table = tensor_table(host, name)
            tensor = table.get(name)
            self._before[name] = None if tensor is None else tensor.data
            if tensor is None:
                data = value.to(like.device, like.dtype)
                learned = table is host._parameters
                table[name] = nn.Parameter(data, like.requires_grad) if learned else data
            else:
                tensor.data = torch.empty_like(tensor.data).copy_(value)
            self._after[name] = table[name].data, tensor_version(table[name])
        self._new = {}
        if self._before.get("weight", ...) is None:
            self._flags = {k: vars(host)[k] for k in _FLAGS if k in vars(host)}
            vars(host).update(dict.fromkeys(self._flags, True))

    def is_unchanged(self) -> bool:
        """Return whether the weights are those that were given, at most moved or converted."""
        for name, (data, version) in self._after.items():
            now = tensor_table(self._host, name).get(name)
            if now is None or now.shape != data.shape:
                return False
            if now.data_ptr() == data.data_ptr():
                if tensor_version(now) != version:
                    return False
            elif not torch.equal(now.data, data.to(now)):
                return False
        return True

    def new_place(self) -> _Move | None:
        """Return the device, and the types before and now, if these are not what they were."""
        for name, (data, _) in self._after.items():
            now = tensor_table(self._host, name)[name]
            if (now.device, now.dtype) != (data.device, data.dtype):
                return now.device, data.dtype, now.dtype
        return None

    def undo(self) -> None:
        for name, data in self._before.items():
            table = tensor_table(self._host, name)
            tensor = table[name]
            if data is None:
                table[name] = None
            elif tensor.dtype == data.dtype and tensor.device == data.device:
                tensor.data = data
            else:
                tensor.data = data.to(tensor.device, tensor.dtype)
        vars(self._host).update(self._flags)
