"""The base of all layers: their activation, and the validation of their input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn

from normkit.core.activations import Act, ActLike, parse_act
from normkit.core.pools import concrete
from normkit.errors import OptionError, ShapeError, TypeMismatchError, message
from normkit.kernels.dispatch import normalize
from normkit.kernels.functions import finish
from normkit.kernels.modes import exporting, recomputing
from normkit.nn.arguments import ATTRIBUTES, Check, check_options
from normkit.nn.guards import refuse_script, register_with_opacus

__all__ = ["Layer", "affine_parameters", "check_channels", "check_rank", "join", "prepare", "step"]

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
    # Every layer normalizes through this.
    _normalize = staticmethod(normalize)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _name_constructor(cls)
        steps = {name for base in cls.__mro__ for name, f in vars(base).items() if _is_step(f)}
        cls._fast_path_ok = all(_is_step(getattr(cls, name)) for name in steps)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield them; Opacus asks for them before it looks for the layer's exact class."""
        register_with_opacus(type(self))
        return super().parameters(recurse)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which calls this before anything else."""
        refuse_script(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, also one whose attributes had their former names."""
        super().__setstate__({_FORMER_NAMES.get(name, name): v for name, v in state.items()})

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checked.get(name)
        if check is not None:
            super().__setattr__(name, check(type(self).__name__, name, value))
        elif isinstance(getattr(type(self), name, None), property):
            # nn.Module would register a module under this name, past the property.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def act(self) -> str | tuple[str, float] | None:
        """The activation: None, a name, or ``("leaky_relu", slope)``; a module is read as these."""
        return self._act_option

    @act.setter
    def act(self, act: ActLike) -> None:
        self._act = parse_act(act)
        # Data and not the module, which may change later without the layer noticing.
        option = None if self._act is None else self._act.option
        self._act_option = act if isinstance(act, str) else option

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


def _name_constructor(cls: type) -> None:
    """Copy an inherited constructor into a public class, under that class's name.

    So a call with wrong arguments names the class that was called, and none that is not public.
    """
    init = getattr(cls, "__init__")  # noqa: B009  # mypy: of the class, not of an instance
    public = cls.__module__.startswith("normkit.nn.") and not cls.__name__.startswith("_")
    if not public or "__init__" in vars(cls) or not isinstance(init, FunctionType):
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
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return y.contiguous(memory_format=torch.channels_last)
    return y


def nested(layer: Layer, z: Tensor, residual: Tensor | None) -> Tensor:
    """Apply residual and activation after PyTorch's own layer, which takes nested tensors."""
    return finish(z, residual, layer._act)


def prepare(layer: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return input and residual in one floating type; refuse what no layer can normalize.

    A residual of another floating type, as autocast makes them, widens both to the wider type,
    as adding them would.

    Raises:
        TypeMismatchError: the input is not a floating-point tensor.
        ShapeError: the residual is no such tensor, or of another shape or device.
    """
    check_floating(layer, x)
    if residual is None:
        return x, None
    if (
        not isinstance(residual, Tensor)
        or not residual.is_floating_point()
        or residual.shape != x.shape
        or residual.device != x.device
    ):
        raise ShapeError(
            message(
                f"a floating-point residual of {_name(layer)} with the shape and device of its "
                "input",
                f"{_describe(residual)} for {_describe(x)}",
                "project or move the residual first",
            )
        )
    if residual.dtype != x.dtype:
        wide = torch.promote_types(residual.dtype, x.dtype)
        return x.to(wide), residual.to(wide)
    return x, residual


def check_floating(layer: nn.Module, x: object) -> None:
    """Refuse an input that is not a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeMismatchError(
            message(
                f"a floating-point tensor as input of {_name(layer)}",
                f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}",
                "convert the input first, for example with x.float()",
            )
        )


def _describe(t: object) -> str:
    if not isinstance(t, Tensor):
        return f"a {type(t).__name__}"
    return f"{tuple(t.shape)} of {t.dtype} on {t.device}"


def as_leaf(layer: nn.Module, x: fx.Proxy, residual: object) -> Any:
    """Record the layer as one node of a graph, as ``torch.fx`` does for ``torch.nn``'s layers."""
    args = (x,) if residual is None else (x, residual)
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), args, {})  # type: ignore[attr-defined]


def warn_if_recorded(layer: nn.Module, n: int) -> None:
    """Warn that the graph being recorded stays in training mode, whatever is done to it.

    For layers whose training step is no operation that tools for such graphs know. ``n``: the
    number of samples.
    """
    mode = f"{_name(layer)} is recorded in training mode"
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        advice = f"the graph is for batches of {concrete(n)}, and"
    elif exporting():
        advice = "move_exported_model_to_eval and its like do not switch it:"
    else:
        return
    warnings.warn(f"{mode}: {advice} record model.eval() for evaluation", stacklevel=2)


def check_rank(layer: nn.Module, x: Tensor, ranks: tuple[int, ...], shape: str, fix: str) -> None:
    """Refuse an input whose number of axes is not one of ``ranks``.

    ``shape`` names the expected shape, ``fix`` what to do.
    """
    if not isinstance(x, Tensor):
        check_floating(layer, x)
    if x.dim() not in ranks:
        expected = " or ".join(f"{r}D" for r in ranks)
        raise ShapeError(
            message(
                f"{expected} input {shape} of {_name(layer)}",
                f"{x.dim()}D input {tuple(x.shape)}",
                fix,
            )
        )


def check_batch_axis(layer: nn.Module, x: Tensor) -> None:
    """Refuse an input without a batch axis and channels."""
    if not isinstance(x, Tensor):
        check_floating(layer, x)
    if x.dim() < 2:
        raise ShapeError(
            message(
                f"at least 2D input (N, C, ...) of {_name(layer)}",
                f"{x.dim()}D input {tuple(x.shape)}",
                "add the batch axis",
            )
        )


def check_channels(layer: nn.Module, x: Tensor, dim: int = 1) -> None:
    """Refuse an input with another number of channels than the layer's tensors have.

    The tensors decide and not ``num_features``, which may be out of date in a lazy, pruned or
    loaded layer. A layer without tensors takes any number, as PyTorch's do.
    """
    for name in ("weight", "running_mean"):
        tensor = getattr(layer, name, None)
        if tensor is not None:
            check_count(layer, x, tensor.shape.numel(), dim)
            return


def check_count(layer: nn.Module, x: Tensor, channels: int, dim: int = 1) -> None:
    """Refuse an input whose axis ``dim`` does not have ``channels`` entries."""
    if concrete(x.shape[dim]) != channels:
        raise ShapeError(
            message(
                f"{channels} channels on axis {dim} of the input of {_name(layer)}",
                f"{x.shape[dim]} in an input of shape {tuple(x.shape)}",
                f"construct the layer with {x.shape[dim]} channels, or move the channels to axis "
                f"{dim} (channels last is a memory format, not another order of axes)",
            )
        )


def check_more_than_one(layer: nn.Module, x: Tensor, count: int, per: str) -> None:
    """Refuse a pool of a single value, which has no variance."""
    if concrete(count) == 1:
        raise ShapeError(
            message(
                f"more than 1 value per {per} when training {_name(layer)}",
                f"input size {list(x.shape)}",
                "use a larger batch, drop_last=True in the loader, or evaluation mode",
            )
        )


def check_eps(layer: nn.Module, eps: float, training: bool) -> None:
    """Refuse an ε that does not keep the division finite."""
    if eps < 0 or (training and eps == 0):
        raise OptionError(
            message(
                # The words of torch.nn's error, which its own tests look for.
                f"a valid eps for {_name(layer)}: eps must be positive, or 0 in evaluation",
                f"eps={eps}",
                "use 1e-5, PyTorch's default",
            )
        )


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
