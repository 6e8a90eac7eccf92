"""Base of all layers: their activation, their steps, and what each of them shares."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from normkit.core.activations import Act, ActLike, parse_act
from normkit.core.pools import concrete
from normkit.errors import message
from normkit.kernels.call import layout
from normkit.kernels.dispatch import normalize
from normkit.kernels.functions import finish
from normkit.kernels.modes import batched, exporting, recomputing
from normkit.nn import stats_range
from normkit.nn.arguments import ATTRIBUTES, Check, check_options
from normkit.nn.guards import register_with_opacus
from normkit.nn.namesakes import as_namesake, namesake
from normkit.nn.scripting import layer_as_namesake

__all__ = ["Layer", "affine_parameters", "join", "name_constructor", "step"]

# Attributes that pickled layers may still hold under another name.
_FORMER_NAMES = {"_act_given": "_act_option", "_has_moved": "_stats_updated"}

Step = TypeVar("Step", bound=Callable[..., Any])


def step(method: Step) -> Step:
    """Mark a method that ``forward`` consists of and that the fused call replaces.

    A subclass that overrides one without this mark takes the slow path, which calls it.
    """
    method.is_step = True  # type: ignore[attr-defined]
    return method


def _is_step(method: object) -> bool:
    return getattr(method, "is_step", False) is True


class Layer(nn.Module):
    """Mixin: an optional activation, kept as data and shown in the layer's ``repr``.

    It stands before the ``torch.nn`` class among the bases and leaves that class's constructor
    and state alone.
    """

    # Class attributes, so that a layer unpickled from before they existed still has them.
    _act: Act | None = None
    _act_option: str | tuple[str, float] | None = None
    _stats_updated: bool = False
    # Whether the fused call does what every step of forward does.
    _fast_path_ok: ClassVar[bool] = True
    # Checks of attributes, by name; a subclass extends it.
    _checked: ClassVar[dict[str, Check]] = ATTRIBUTES
    __jit_unused_properties__: ClassVar[list[str]] = []
    # Every layer normalizes through this.
    _normalize = staticmethod(normalize)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name_constructor(cls)
        steps = {name for base in cls.__mro__ for name, f in vars(base).items() if _is_step(f)}
        cls._fast_path_ok = all(_is_step(getattr(cls, name)) for name in steps)
        # A layer in two places is looked at once more when it has its own class again.
        cls.__jit_unused_properties__ = [
            k for k in dir(cls) if isinstance(getattr(cls, k), property)
        ]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield them; Opacus asks for them before it looks for the layer's exact class."""
        register_with_opacus(type(self))
        return super().parameters(recurse)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the layer as ``torch.jit.script`` can compile it, which calls this first."""
        return layer_as_namesake(self)

    @property
    def _namesake(self) -> nn.Module:
        """Layer of ``torch.nn`` with the same tensors, see :mod:`normkit.nn.symbolic`."""
        if namesake(type(self)) is None:
            raise AttributeError  # nn.Module.__getattr__ says of what
        return as_namesake(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, also one whose attributes had their former names."""
        super().__setstate__({_FORMER_NAMES.get(name, name): v for name, v in state.items()})
        unused = self._modules.pop("act", None)
        if unused is not None:
            warnings.warn(
                message(
                    f"act of {type(self).__name__} as data",
                    f"a pickle in which {unused!r} was registered as a child and never applied",
                    "assign it, layer.act = torch.nn.ReLU(), if the model was meant to have it",
                ),
                stacklevel=2,
            )

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checked.get(name)
        if check is not None:
            super().__setattr__(name, check(type(self).__name__, name, value))
        elif isinstance(getattr(type(self), name, None), property):
            # nn.Module would register a module under this name, past the property.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert as ``.half()`` does, but keep statistics in their type that would be infinite."""
        before = dict(self._buffers)
        result = super()._apply(fn, recurse)
        stats_range.keep_wider(type(self).__name__, before, self._buffers)
        return result

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if not local_metadata.get("assign_to_params_buffers", False):
            name = type(self).__name__
            stats_range.check_loaded(name, self._buffers, state_dict, prefix, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def act(self) -> str | tuple[str, float] | None:
        """Activation: None, a name, or ``("leaky_relu", slope)``; a module is read as these."""
        return self._act_option

    @act.setter
    def act(self, act: ActLike) -> None:
        self._act = parse_act(act)
        # Data and not the module, which may change later without the layer noticing.
        option = None if self._act is None else self._act.option
        self._act_option = act if isinstance(act, str) else option

    def _is_composed(self, input: Tensor | None = None) -> bool:
        """Return whether it is composed of PyTorch's operations and calls no kernel of its own."""
        return False

    @step
    def updates_stats(self) -> bool:
        """Return whether this forward pass updates the statistics: once for each batch.

        A checkpointed layer runs a second time within the backward pass. If the layer has only
        ever run inside a backward pass, this is not recomputation (for example an ODE adjoint), so
        statistics are updated.
        """
        if torch.compiler.is_compiling():
            return True  # a compiled graph recomputes without running this again
        if recomputing():
            return not self._stats_updated
        if not self._stats_updated:
            self._stats_updated = True
        return True

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.act is None else f"{shown}, act={self.act!r}"


def name_constructor(cls: type) -> None:
    """Copy an inherited constructor into a public class, under that class's name.

    So a call with wrong arguments names the class that was called, and none that is not public.
    """
    init = getattr(cls, "__init__")  # noqa: B009  # mypy: of the class, not of an instance
    public = cls.__module__.startswith("normkit.nn.") and not cls.__name__.startswith("_")
    if not public or "__init__" in vars(cls) or not isinstance(init, FunctionType):
        return
    if init is nn.Module.__init__:  # a mixin's, which passes on to its next base
        return
    code, scope, closure = init.__code__, init.__globals__, init.__closure__
    copied = FunctionType(code, scope, init.__name__, init.__defaults__, closure)
    copied.__kwdefaults__, copied.__annotations__ = init.__kwdefaults__, init.__annotations__
    copied.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = copied  # type: ignore[misc]


def affine_parameters(
    layer: nn.Module,
    shape: int | tuple[int, ...],
    affine: bool,
    bias: bool,
    device: Any = None,
    dtype: Any = None,
) -> None:
    """Register γ = 1 as ``weight`` and β = 0 as ``bias``, or None for either."""
    check_options(layer, device, dtype, bias)
    for name, needed, fill in (
        ("weight", affine, torch.ones),
        ("bias", affine and bias, torch.zeros),
    ):
        values = nn.Parameter(fill(shape, device=device, dtype=dtype)) if needed else None
        layer.register_parameter(name, values)


def reset_affine(layer: nn.Module) -> None:
    """Set γ to 1 and β to 0, where the layer has them."""
    for name, fill in (("weight", nn.init.ones_), ("bias", nn.init.zeros_)):
        values = getattr(layer, name)
        if values is not None:
            fill(values)


def join(parts: list[Tensor], like: Tensor, dim: int = 0) -> Tensor:
    """Concatenate ``parts`` in the memory format of ``like``.

    ``torch.cat`` alone falls back to contiguous where a part has an axis of size one.
    """
    return match_layout(parts[0] if len(parts) == 1 else torch.cat(parts, dim), like)


def match_layout(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` channels-last where ``x`` is, otherwise unchanged."""
    return y.contiguous(memory_format=layout(x)) if is_channels_last(x) else y


def is_channels_last(x: Tensor) -> bool:
    """Return True if ``x`` is dense in that memory format and not contiguous too."""
    # Inside vmap only the usual format can be asked for.
    if x.is_contiguous() or (not torch.compiler.is_compiling() and batched(x)):
        return False
    return x.is_contiguous(memory_format=layout(x))


def nested(layer: Layer, z: Tensor, residual: Tensor | None) -> Tensor:
    """Apply residual and activation after PyTorch's own layer, which takes nested tensors."""
    return finish(z, residual, layer._act)


def warn_if_recorded(layer: nn.Module, n: int) -> None:
    """Warn that the graph being recorded stays in training mode, whatever is done to it.

    For layers whose training step is no operation that tools for such graphs know. ``n``: the
    number of samples.
    """
    mode = f"{type(layer).__name__} is recorded in training mode"
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        advice = f"the graph is for batches of {concrete(n)}, and"
    elif exporting():
        advice = "move_exported_model_to_eval and its like do not switch it:"
    else:
        return
    warnings.warn(f"{mode}: {advice} record model.eval() for evaluation", stacklevel=2)
