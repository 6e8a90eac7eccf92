"""What all layers share: the activation they may apply, and the checks of what comes in."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from normkit.core.activations import Act, ActLike, parse_act
from normkit.errors import OptionError, ShapeError, TypeMismatchError, explain
from normkit.kernels.modes import recomputing

__all__ = ["Layer", "affine_parameters", "check_channels", "check_rank", "join", "prepare"]


# Methods that forward is made of.
_STEPS = {"_batched", "_by_batch", "_by_memory", "_check_input_dim", "_plain_average", "_remember",
          "_tensors", "counts"}  # fmt: skip


class Layer(nn.Module):
    """Mixin: an optional activation, kept as data and shown in the layer's ``repr``.

    It stands before the ``torch.nn`` class among the bases and leaves that class's constructor
    and state alone.
    """

    # Class attributes, so that a layer unpickled from before they existed still has them.
    _act: Act | None = None
    _act_given: ActLike = None
    _has_moved: bool = False
    # Whether forward may be one call: not where somebody's subclass has changed one of its steps.
    _usual: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith("normkit."):
            cls._usual = cls._usual and _STEPS.isdisjoint(vars(cls))

    @property
    def act(self) -> ActLike:
        """The activation as it was given: None, a name, or ``("leaky_relu", slope)``."""
        return self._act_given

    @act.setter
    def act(self, act: ActLike) -> None:
        self._act = parse_act(act)
        self._act_given = act

    def counts(self) -> bool:
        """Whether this forward pass moves the statistics: once for each batch.

        A checkpointed layer runs a second time within the backward pass. A layer that has never
        run outside one is no checkpointed layer, but belongs to something solved backward.
        """
        if torch.compiler.is_compiling():
            return True  # a compiled graph repeats what it needs without running this again
        if recomputing():
            return not self._has_moved
        if not self._has_moved:
            self._has_moved = True
        return True

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if self.act is None else f"{shown}, act={self.act!r}"


def affine_parameters(
    layer: nn.Module,
    shape: int | tuple[int, ...],
    affine: bool,
    bias: bool,
    device: Any = None,
    dtype: Any = None,
) -> None:
    """Register γ = 1 as ``weight`` and β = 0 as ``bias``, or None for either."""
    for name, wanted, make in (
        ("weight", affine, torch.ones),
        ("bias", affine and bias, torch.zeros),
    ):
        values = nn.Parameter(make(shape, device=device, dtype=dtype)) if wanted else None
        layer.register_parameter(name, values)


def reset_affine(layer: nn.Module) -> None:
    """Set γ to 1 and β to 0, where the layer has them."""
    for name, fill in (("weight", nn.init.ones_), ("bias", nn.init.zeros_)):
        values = getattr(layer, name)
        if values is not None:
            fill(values)


def join(parts: list[Tensor], like: Tensor, dim: int = 0) -> Tensor:
    """Concatenate ``parts`` in the memory format of ``like``.

    Left to itself ``torch.cat`` falls back to contiguous where a part has an axis of size one.
    """
    return laid_like(parts[0] if len(parts) == 1 else torch.cat(parts, dim), like)


def laid_like(y: Tensor, x: Tensor) -> Tensor:
    """``y`` channels-last where ``x`` is, otherwise as it is."""
    if (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return y.contiguous(memory_format=torch.channels_last)
    return y


def nested(layer: Layer, z: Tensor, residual: Tensor | None) -> Tensor:
    """Residual and activation after PyTorch's own layer, the one that knows nested tensors."""
    z = z if residual is None else z + residual
    return z if layer._act is None else layer._act(z)


def prepare(layer: nn.Module, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Refuse what no layer can normalize: integers, complex numbers, a residual that differs.

    A residual of another floating type, as autocast makes them, widens both to the wider type,
    as adding them would.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeMismatchError(
            explain(
                f"{_name(layer)} normalizes floating-point tensors",
                f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}",
                "convert the input first, for example with x.float()",
            )
        )
    if residual is None:
        return x, None
    if (
        not isinstance(residual, Tensor)
        or not residual.is_floating_point()
        or residual.shape != x.shape
        or residual.device != x.device
    ):
        raise ShapeError(
            explain(
                f"the residual of {_name(layer)} is a floating-point tensor of the shape and on "
                "the device of its input",
                f"{_describe(residual)} for {_describe(x)}",
                "project or move the residual before it is added",
            )
        )
    if residual.dtype != x.dtype:
        wide = torch.promote_types(residual.dtype, x.dtype)
        return x.to(wide), residual.to(wide)
    return x, residual


def _describe(t: object) -> str:
    if not isinstance(t, Tensor):
        return f"a {type(t).__name__}"
    return f"{tuple(t.shape)} of {t.dtype} on {t.device}"


def as_leaf(layer: nn.Module, x: fx.Proxy, residual: object) -> Any:
    """Record the layer as one node of a graph, as ``torch.fx`` does for ``torch.nn``'s layers."""
    args = (x,) if residual is None else (x, residual)
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(layer), args, {})  # type: ignore[attr-defined]


def check_rank(layer: nn.Module, x: Tensor, ranks: tuple[int, ...], shape: str, other: str) -> None:
    """Refuse an input whose number of axes is not one of ``ranks``.

    ``shape`` names the expected shape, ``other`` what to do instead.
    """
    if x.dim() not in ranks:
        expected = " or ".join(f"{r}D" for r in ranks)
        raise ShapeError(
            explain(
                f"{_name(layer)} expected {expected} input {shape}",
                f"{x.dim()}D input {tuple(x.shape)}",
                other,
            )
        )


def check_channels(layer: nn.Module, x: Tensor, dim: int = 1) -> None:
    """Refuse an input with another number of channels than the layer's tensors have.

    The tensors are asked and not ``num_features``, which a lazy layer, a pruned one or a loaded
    one may not have kept up to date. A layer without tensors takes any number, as PyTorch's do.
    """
    for name in ("weight", "running_mean"):
        tensor = getattr(layer, name, None)
        if tensor is not None:
            check_count(layer, x, tensor.numel(), dim)
            return


def check_count(layer: nn.Module, x: Tensor, channels: int, dim: int = 1) -> None:
    """Refuse an input with another number of channels than the layer was made for."""
    if x.shape[dim] != channels:
        raise ShapeError(
            explain(
                f"{_name(layer)} was made for {channels} channels on axis {dim}",
                f"{x.shape[dim]} in an input of shape {tuple(x.shape)}",
                f"make the layer with {x.shape[dim]}, or move the channels to axis {dim} "
                "(channels last is a memory format, not another order of axes)",
            )
        )


def check_more_than_one(layer: nn.Module, x: Tensor, count: int, per: str) -> None:
    """Refuse to take a variance of a single value."""
    if count == 1:
        raise ShapeError(
            explain(
                f"Expected more than 1 value per {per} when training: {_name(layer)} cannot take "
                "the variance of one",
                f"input size {list(x.shape)}",
                "use a larger batch, drop_last=True in the loader, or evaluation mode",
            )
        )


def check_eps(layer: nn.Module, eps: float, training: bool) -> None:
    """Refuse an ε that does not keep the division finite."""
    if eps < 0 or (training and eps == 0):
        raise OptionError(
            explain(
                f"{_name(layer)}: eps must be positive (in evaluation it may be 0)",
                f"eps={eps}",
                "use 1e-5, PyTorch's default",
            )
        )


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
