"""Which layers keep running statistics, and how: one registry for every tool."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.nn.adapting import ADAPTED, AdaptedMixin
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.freezing import is_constant
from normkit.nn.maskedbatchnorm import MaskedBatch
from normkit.nn.maskedinstancenorm import MaskedInstance
from normkit.nn.switchablenorm import Switchable

__all__ = [
    "StatsSpec",
    "definer",
    "has_own_forward",
    "in_graph",
    "keeps_stats",
    "overrides_forward",
    "qualified_name",
    "register_by_name",
    "replaces_forward",
    "running_stats",
    "stats_spec",
    "why_unknown",
]


def _unchanged(layer: Any, x: Tensor) -> Tensor:
    return x


def _no_bank(layer: Any) -> int | None:
    return None


@dataclasses.dataclass(frozen=True)
class StatsSpec:
    """Description of a layer's running statistics.

    In evaluation mode the layer normalizes with two of its tensors, a mean and a variance per
    channel, by any formula.

    Args:
        mean: name of the layer's tensor of means, (C,), or (banks, C).
        var: name of its tensor of variances, of the same shape.
        per: "batch": moments of all values of a channel, as batch normalization keeps them;
            "sample": averages over samples of each sample's own moments, as instance
            normalization does.
        values: function of the layer and its input that returns the values to take moments of,
            (N, C, \\*). For layers with channels on another axis.
        bank: function of the layer that returns the row of its tensors that this call uses; None
            where they have no rows.
        momentum: name of the layer's attribute that holds the share of the statistics that each
            batch replaces, as ``torch.nn``'s ``momentum`` does; None where it has none, or one
            that means something else, such as the share kept.
        affine: whether the layer scales and shifts each channel in evaluation mode, by these
            statistics and nothing of its input; where it does not it cannot be folded.
        mask: name of the keyword by which the layer's forward gets a boolean mask of the positions
            to take moments of, (N, \\*) or (N, 1, \\*); None where it takes none.
    """

    mean: str = "running_mean"
    var: str = "running_var"
    per: Literal["batch", "sample"] = "batch"
    values: Callable[[Any, Tensor], Tensor] = _unchanged
    bank: Callable[[Any], int | None] = _no_bank
    momentum: str | None = None
    affine: bool = True
    mask: str | None = None


# Descriptions of classes of other libraries, by qualified name.
_BY_NAME: dict[str, StatsSpec] = {}

# Methods that decide what a layer normalizes and what it remembers of it. Not the validation of
# the input: a layer that takes other ranks still has its channels on axis 1.
_STEPS = (
    "forward", "__call__", "_layer_tensors", "_forward_batch_stats", "_update_running_stats",
    "_apply_instance_norm", "_handle_no_batch_input",
)  # fmt: skip


@functools.singledispatch
def stats_spec(layer: nn.Module) -> StatsSpec | None:
    """Return how ``layer`` keeps running statistics, or None if that is unknown or it keeps none.

    Known are ``torch.nn``'s layers, this package's, their subclasses that do not override
    ``forward``, and widespread layers of other libraries (:mod:`normkit.integrations`). A subclass
    with its own ``forward`` may normalize another axis, or a part of its input.

    A generic function (:func:`functools.singledispatch`): three lines register a third-party layer
    and its subclasses, which are then recalibrated, measured and frozen like the others.

    >>> import torch
    >>> class ChannelsLastNorm(nn.Module):
    ...     def __init__(self, channels):
    ...         super().__init__()
    ...         self.register_buffer("mu", torch.zeros(channels))
    ...         self.register_buffer("v", torch.ones(channels))
    ...     def forward(self, x):     # (N, H, W, C)
    ...         return (x - self.mu) / self.v.sqrt()
    >>> @stats_spec.register(ChannelsLastNorm)
    ... def _(layer):
    ...     return StatsSpec("mu", "v", values=lambda layer, x: x.movedim(-1, 1))
    >>> stats_spec(ChannelsLastNorm(3)).mean
    'mu'
    """
    return _named_spec(layer)


@stats_spec.register
def _(layer: _BatchNorm) -> StatsSpec | None:
    if layer.running_mean is None or layer.running_var is None:
        return None
    usual = StatsSpec(mask="mask" if isinstance(layer, MaskedBatch) else None)
    return _named_spec(layer) or (None if has_own_forward(layer) else usual)


def _with_batch_axis(layer: Any, x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == layer._get_no_batch_dim() else x


@stats_spec.register
def _(layer: _InstanceNorm) -> StatsSpec | None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return None
    if isinstance(layer, MaskedInstance):  # whose samples have unlike numbers of values
        return None
    usual = StatsSpec(per="sample", values=_with_batch_axis)
    return None if has_own_forward(layer) else usual


@stats_spec.register
def _(layer: Domains) -> StatsSpec | None:
    known = layer.running_mean is not None and not has_own_forward(layer)
    return StatsSpec(bank=Domains.chosen) if known else None


@stats_spec.register
def _(layer: AdaptedMixin) -> StatsSpec | None:
    return None


@stats_spec.register
def _(layer: Switchable) -> StatsSpec | None:
    known = layer.running_mean is not None and not has_own_forward(layer)
    return StatsSpec(momentum="momentum", affine=False) if known else None


def register_by_name(name: str, spec: StatsSpec) -> None:
    """Make a class of another library known without importing it.

    The class that defines the layer's ``forward`` decides: a subclass that overrides it again is
    unknown.

    Args:
        name: its qualified name, or the end of it: a copy within another package is known too.
        spec: how it keeps running statistics.
    """
    _BY_NAME[name] = spec


def _named_spec(layer: nn.Module) -> StatsSpec | None:
    scripted = isinstance(layer, torch.jit.ScriptModule)
    if scripted or ("forward" in vars(layer) and replaces_forward(layer)):
        return None
    parts = qualified_name(definer(type(layer), "forward")).split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts) - 1))
    spec = next((_BY_NAME[end] for end in ends if end in _BY_NAME), None)
    both = () if spec is None else (getattr(layer, spec.mean, None), getattr(layer, spec.var, None))
    return spec if all(isinstance(tensor, Tensor) for tensor in both) else None


def has_own_forward(layer: nn.Module) -> bool:
    """Return True if other code than ``torch.nn``'s and this package's decides what is normalized.

    >>> layer, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    >>> layer.forward = lambda x: x
    >>> has_own_forward(layer), has_own_forward(other)
    (True, False)
    """
    replaced = "forward" in vars(layer) and replaces_forward(layer)
    return replaced or overrides_forward(type(layer))


def overrides_forward(cls: type) -> bool:
    """Return True if ``cls`` has other code than ``torch.nn``'s and this package's for its steps.

    >>> overrides_forward(nn.BatchNorm1d)
    False
    """
    return any(
        not qualified_name(definer(cls, name)).startswith(("torch.nn.", "normkit."))
        for name in _STEPS
        if hasattr(cls, name)
    )


def replaces_forward(layer: nn.Module) -> bool:
    """Return True unless the layer's own attribute ``forward`` says that it wraps its class's."""
    wrapped = inspect.unwrap(vars(layer)["forward"])
    return getattr(wrapped, "__func__", wrapped) is not type(layer).forward


def definer(cls: type, name: str) -> type:
    """Return the class among the bases of ``cls`` whose attribute ``name`` it has.

    Not one of :mod:`normkit.nn.foreign`, which computes what the class after it does.
    """
    bases = (base for base in cls.__mro__ if "_computes" not in vars(base))
    return next(base for base in bases if name in vars(base))


def qualified_name(cls: type) -> str:
    """Return module and name of ``cls``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def in_graph(module: nn.Module) -> bool:
    """Return True if ``module`` only holds tensors of a graph, as in an exported program."""
    exported = type(module).__module__.startswith("torch.export.")
    return type(module) is nn.Module or isinstance(module, fx.GraphModule) or exported


def why_unknown(layer: nn.Module) -> str | None:
    """Return why no tool touches a layer that seems to keep statistics; None if it is known."""
    if stats_spec(layer) is not None or not keeps_stats(layer):
        return None
    if isinstance(layer, AdaptedMixin):
        return ADAPTED
    if isinstance(layer, torch.jit.ScriptModule):
        return "scripted"
    if is_constant(layer):
        return "constant by construction"
    if in_graph(layer):
        return "in an exported graph, which updates it itself: change the model before its export"
    if type(layer).__module__.startswith("torch.ao."):
        return "a torch.ao module"
    if "forward" in vars(layer) and replaces_forward(layer):
        return "its forward was replaced"
    if isinstance(layer, MaskedInstance) and not has_own_forward(layer):
        return "its samples may have unlike numbers of positions, by their masks"
    if isinstance(layer, _InstanceNorm) and not layer.track_running_stats:
        return "normalizes by its input, as its track_running_stats is off"
    kind = "a subclass with its own forward" if isinstance(layer, _NormBase) else "unknown"
    return f"{kind}; stats_spec.register makes it known"


def running_stats(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the mean and variance that ``layer`` keeps for evaluation mode, or None.

    By its :class:`StatsSpec`; otherwise buffers with PyTorch's names count, as in a scripted layer.
    """
    spec = stats_spec(layer)
    if spec is not None:
        return getattr(layer, spec.mean), getattr(layer, spec.var)
    buffers = layer._buffers  # no dict in a scripted module
    both = [buffers[name] for name in ("running_mean", "running_var") if name in buffers]
    mean, var = both if len(both) == 2 else (None, None)
    return None if mean is None or var is None else (mean, var)


def keeps_stats(layer: nn.Module) -> bool:
    """Return whether ``layer`` keeps a mean and a variance for evaluation mode.

    >>> keeps_stats(nn.BatchNorm2d(3)), keeps_stats(nn.InstanceNorm2d(3)), keeps_stats(nn.ReLU())
    (True, False, False)
    """
    return running_stats(layer) is not None
