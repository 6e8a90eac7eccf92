"""Differences between releases of torch, each with the release and the reason.

The package is written for the newest torch; what an older one lacks is made up for here and nowhere
else. Each item names the release that brought it, and what stands in for it before. What only the
kernels see is in ``kernels/cpu/torch_versions.h``; docs/torch-versions.md says what was run.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedParameter, is_lazy

__all__ = [
    "TRAINS_WITH_ZERO_EPS",
    "LazyOptionalBias",
    "OptionalBias",
    "allows_saved_tensor_hooks",
    "exporting",
    "has_global_hooks",
    "release",
    "same_binary",
    "tells_exporting",
    "top_saved_tensor_hooks",
    "untested",
]

OLDEST, NEWEST = (2, 6), (2, 15)
"""First and last release that the package has been tried with; docs/torch-versions.md says how."""


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version of torch.

    >>> release("2.9.1+cu128"), release("2.14.0a0+git1234")
    ((2, 9), (2, 14))
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else NEWEST


def untested(version: str = str(torch.__version__)) -> str:
    """Return that torch is outside the range of releases tried, or an empty string.

    >>> untested("2.9.1")
    ''
    >>> untested("3.0.0")
    'torch 3.0.0 is newer than the releases that normkit has been tried with, 2.6 to 2.15'
    """
    if OLDEST <= release(version) <= NEWEST:
        return ""
    side = "older" if release(version) < OLDEST else "newer"
    tried = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST, NEWEST))
    return f"torch {version} is {side} than the releases that normkit has been tried with, {tried}"


def same_binary(built: str, installed: str) -> bool:
    """Return whether an extension compiled for one version of torch runs with another.

    It does within a release, whose patches keep the interface, and a build of no release, such as
    a nightly one, fits itself only.

    >>> same_binary("2.9.0", "2.9.1+cpu"), same_binary("2.9.1", "2.10.0")
    (True, False)
    >>> same_binary("2.15.0", "2.15.0.dev20261101"), same_binary("2.15.0a0", "2.15.0a0+git1234")
    (False, True)
    """
    built, installed = built.split("+")[0], installed.split("+")[0]
    released = all(re.fullmatch(r"\d+\.\d+(\.\d+)*", each) for each in (built, installed))
    return built == installed or (released and release(built) == release(installed))


_RELEASE = release(str(torch.__version__))


# ---- 2.8: the flag of torch.compiler.is_exporting, also for strict exports; 2.12: Dynamo answers
# it right ----


def _exporting_by_flag() -> bool:
    """Return what ``is_exporting`` is to return.

    Before 2.12 Dynamo took it for True whatever it traced for (pytorch#176347). It reads the flag.
    """
    return torch.compiler._is_exporting_flag


def _exporting_by_settings() -> bool:
    """Return whether an export runs the model; there is no flag for it, or none of a strict one.

    ``strict=False`` alone says that it compiles. Dynamo allows recurrent layers while it exports.
    """
    return torch.compiler._is_compiling_flag or (
        torch.compiler.is_compiling() and torch._dynamo.config.allow_rnn
    )


exporting: Callable[[], bool] = (
    torch.compiler.is_exporting
    if _RELEASE >= (2, 12)
    else _exporting_by_flag
    if _RELEASE >= (2, 8)
    else _exporting_by_settings
)
"""Whether ``torch.export`` records the call."""

tells_exporting = _RELEASE >= (2, 12)
"""Whether torch itself tells an export from compiling. Where not, compiled graphs hold no
operations of this package, which an exported graph must not hold."""


# ---- 2.8: torch.nn.modules.module._has_any_global_hook ----

_GLOBAL_HOOKS = [
    hooks
    for name, hooks in vars(torch_module).items()
    if re.match("_global_(forward|backward)_", name) and isinstance(hooks, dict)
]


def _any_global_hook() -> bool:
    return any(_GLOBAL_HOOKS)


has_global_hooks: Callable[[], Any] = getattr(
    torch_module, "_has_any_global_hook", _any_global_hook
)
"""Whether a hook is registered for the calls of all modules."""


# ---- 2.10: batch normalization refuses ε = 0 in training (pytorch#166756) ----

TRAINS_WITH_ZERO_EPS = _RELEASE < (2, 10)
"""Whether models may rely on training with ε = 0."""


# ---- 2.12: bias= of batch, instance and group normalization ----

_TAKES_BIAS = "bias" in inspect.signature(nn.BatchNorm2d).parameters


allows_saved_tensor_hooks: Callable[[], bool] = getattr(
    torch._C._autograd, "_saved_tensors_hooks_is_enabled", lambda: True
)
"""Return whether hooks on saved tensors may be entered, which transforms forbid."""

top_saved_tensor_hooks: Callable[[bool], Any] | None = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", None
)
"""Return the pair of hooks on saved tensors that is active in this thread, or None; from 2.8 on."""


class OptionalBias(nn.Module):
    """Mixin that gives a normalization of ``torch.nn`` ``bias=False``, where it lacks it.

    It stands right before the class of ``torch.nn`` among the bases. From 2.12 on it hands
    everything over as it is.
    """

    def __init__(self, *args: Any, bias: bool = True, **options: Any) -> None:
        _construct(self, super().__init__, args, options, bias)

    def reset_parameters(self) -> None:
        """Set γ to 1 and β, if there is one, to 0."""
        with _stand_in(self):
            super().reset_parameters()  # type: ignore[misc]


class LazyOptionalBias(nn.Module):
    """:class:`OptionalBias` for the lazy forms, which make their parameters at the first input."""

    def __init__(self, *args: Any, bias: bool = True, **options: Any) -> None:
        _construct(self, super().__init__, args, options, bias)

    def initialize_parameters(self, *args: Any, **options: Any) -> None:
        """Give the parameters the sizes of the first input."""
        with _stand_in(self):
            super().initialize_parameters(*args, **options)  # type: ignore[misc]


def _construct(
    layer: nn.Module,
    init: Callable[..., None],
    args: tuple[Any, ...],
    options: dict[str, Any],
    bias: bool,
) -> None:
    if _TAKES_BIAS:
        init(*args, bias=bias, **options)
        return
    init(*args, **options)
    if not bias:
        layer.register_parameter("bias", None)


@contextlib.contextmanager
def _stand_in(layer: nn.Module) -> Iterator[None]:
    """Give ``layer`` a β for the moment, if it lacks it and its class expects one beside γ."""
    weight = layer._parameters.get("weight")
    if _TAKES_BIAS or weight is None or layer._parameters.get("bias", weight) is not None:
        yield
        return
    bias: nn.Parameter
    if is_lazy(weight):
        bias = UninitializedParameter(device=weight.device, dtype=weight.dtype)
    else:
        bias = nn.Parameter(torch.empty_like(weight), requires_grad=False)
    layer._parameters["bias"] = bias
    try:
        yield
    finally:
        layer._parameters["bias"] = None
