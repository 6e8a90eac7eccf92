"""Record one pass of a model: which module or operation made each value, and what uses it.

Operations are seen below autograd, where PyTorch's many functions have become few. Of layers that
may be folded the call is recorded as a whole. A value is a tensor between two writes to it; one
written through another tensor has no known maker. So an answer is only given where it is certain
for this pass.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from normkit.surgery.fold.values import Event, Recording, Value, output_tensors

__all__ = ["record"]


def record(
    model: nn.Module, run: Callable[[], Any], is_layer: Callable[[nn.Module], bool]
) -> Recording:
    """Run a model and record what happens.

    Args:
        model: what is run, in evaluation mode; hooks are registered for the time of the pass.
        run: function that runs it and returns its output.
        is_layer: whether a module's call is recorded as a whole.
    """
    recorder = _Recorder({id(t) for t in (*model.parameters(), *model.buffers())})
    # What runs the model may drop a part of what it returns, which others will not.
    whole: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        hooked = [(name, m) for name, m in model.named_modules() if _has_hooks(m)]
        end = model.register_forward_hook(
            lambda _, args, output: whole.extend(output_tensors(output))
        )
        stack.callback(end.remove)
        for name, module in model.named_modules():
            # Operations of a scripted one are seen all the same.
            if not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(recorder.watching(name, module, is_layer(module)))
        for name, module in hooked:
            stack.enter_context(recorder.noting_hook(name, module))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Escapes(recorder))
        stack.enter_context(_Operations(recorder))
        output = run()
    for tensor in (*output_tensors(output), *whole):
        recorder.value_of(tensor).seen_by.append("the model's output")
    del whole[:]
    if any(not value.seen_by for value in recorder.alive()):
        gc.collect()  # which takes a good part of a second
    # What is still there is kept by somebody who may look at it later, such as an object of the
    # model's own in its output.
    for value in recorder.alive():
        value.seen_by.append("code that keeps it after the pass")
    del output
    return recorder.recording


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(nested) if isinstance(leaf, Tensor)]


class _Recorder:
    """Collects events; knows which value each living tensor has."""

    def __init__(self, lasting: set[int]) -> None:
        self.recording = Recording()
        self._values: Any = WeakTensorKeyDictionary()
        self._lasting = lasting  # identities of parameters and buffers, which outlive the pass
        self._call: Event | None = None
        # Living tensors by storage: a write to one changes the values of the others too.
        self._by_storage: dict[int, list[weakref.ref[Tensor]]] = {}

    def alive(self) -> list[Value]:
        """Return the values made in the pass of tensors that somebody still holds."""
        return [value for value in self._values.values() if value.maker is not None]

    def value_of(self, tensor: Tensor) -> Value:
        """Return the present value of a tensor."""
        value = self._values.get(tensor)
        return self._set(tensor, None, 0) if value is None else value

    def _set(self, tensor: Tensor, maker: Event | None, index: int) -> Value:
        if tensor.is_floating_point():
            self.recording.dtypes.add(tensor.dtype)
        value = Value(tuple(tensor.shape), tensor.dtype, tensor.device, maker, index)
        value.tensor_id = id(tensor) if id(tensor) in self._lasting else 0
        if tensor not in self._values:
            same = self._by_storage.setdefault(_storage(tensor), [])
            same[:] = [ref for ref in same if ref() is not None]
            same.append(weakref.ref(tensor))
        self._values[tensor] = value
        return value

    def _as_values(self, nested: Any) -> Any:
        return tree_map(lambda x: self.value_of(x) if isinstance(x, Tensor) else x, nested)

    @contextlib.contextmanager
    def watching(self, name: str, module: nn.Module, is_layer: bool) -> Iterator[None]:
        """Note each call of a module, and record it as a whole if it is a layer."""
        begun: list[Event | None] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.recording.reached.add(id(module))
            if not is_layer:
                return
            event = None
            if self._call is None:  # not within another layer
                event = Event(name, None, module, self._as_values(args), self._as_values(kwargs))
                for value in event.inputs:
                    value.uses.append(event)
                self.recording.calls.setdefault(id(module), []).append(event)
                self._call = event
            begun.append(event)

        def after(_: nn.Module, args: Any, output: Any) -> None:
            if is_layer and (event := begun.pop()) is not None:
                self._call = None
                for index, tensor in enumerate(_tensors(output)):
                    # A layer that returns its input, such as an identity, makes nothing.
                    if self.value_of(tensor) in event.inputs:
                        event.outputs.append(self.value_of(tensor))
                    else:
                        event.outputs.append(self._made_by_call(tensor, event, index))

        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),  # also where it raises
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._call = None

    def _made_by_call(self, tensor: Tensor, event: Event, index: int) -> Value:
        """Return the value as the call's, whichever of its operations made it."""
        value = self.value_of(tensor)
        if value.maker in event.inner:
            value.maker, value.index = event, index
            return value
        return self._set(tensor, event, index)

    @contextlib.contextmanager
    def noting_hook(self, name: str, module: nn.Module) -> Iterator[None]:
        """Note that other hooks of a module see what it is given and returns."""

        def see(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for tensor in _tensors([args, kwargs, output]):
                self.value_of(tensor).seen_by.append(f"a hook of {name or 'the model'}")

        handle = module.register_forward_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation and record it."""
        call = self._call
        tensors = _tensors([args, kwargs])
        for tensor in tensors:
            if id(tensor) in self._lasting:
                user = None if call is None else id(call.module)
                self.recording.users.setdefault(id(tensor), set()).add(user)
        event = Event(
            _label(function), function, None, self._as_values(args), self._as_values(kwargs)
        )
        if call is not None:
            call.inner.append(event)
        for value in event.inputs:
            # Within a layer, what it was given counts as used by the layer, once.
            if call is None or not (value in call.inputs or value.maker in call.inner):
                value.uses.append(event)
        written = _written(function, args, kwargs)
        output = function(*args, **kwargs)
        for tensor in written:
            self.write(tensor)
        for index, tensor in enumerate(_tensors(output)):
            known = self._values.get(tensor)
            # An operation may return what it was given, unchanged.
            if known in event.inputs and not any(tensor is each for each in written):
                event.outputs.append(known)
            else:
                event.outputs.append(self._set(tensor, event, index))
        return output

    def write(self, tensor: Tensor) -> None:
        """Forget what is known of all values that share memory with a tensor just written to."""
        for ref in self._by_storage.get(_storage(tensor), []):
            other = ref()
            if other is not None and _storage(other) == _storage(tensor):
                self.value_of(other).overwritten = True
                self._set(other, None, 0)

    def escaped(self, tensors: list[Tensor]) -> None:
        """Note that code outside torch reads tensors."""
        for tensor in tensors:
            self.value_of(tensor).seen_by.append("code outside torch")
            if id(tensor) in self._lasting:
                self.recording.users.setdefault(id(tensor), set()).add(None)


def _storage(tensor: Tensor) -> int:
    try:
        with torch._C.DisableTorchFunction():  # this is no escape of the model's
            return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _label(function: Any) -> str:
    return str(function._schema.name).removeprefix("aten::")


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes to, as its schema declares."""
    arguments = function._schema.arguments
    names = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    positions = {a.name: i for i, a in enumerate(arguments)}
    places = [(n, positions[n]) for n in names]
    return _tensors([args[i] if i < len(args) else kwargs.get(n) for n, i in places])


class _Operations(TorchDispatchMode):
    """Hands every operation to the recorder."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._recorder.operation(func, args, kwargs or {})


# Ways out of torch, behind which nobody knows what becomes of a value.
_EXITS = frozenset(
    getattr(Tensor, name)
    for name in ("numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "__dlpack__")
)
_ASSIGN_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class _Escapes(TorchFunctionMode):
    """Tells the recorder of tensors that are handed to code outside torch."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _EXITS:
            self._recorder.escaped(_tensors([args, kwargs or {}]))
        result = func(*args, **(kwargs or {}))
        if func is _ASSIGN_DATA:
            self._recorder.write(args[0])
        return result
