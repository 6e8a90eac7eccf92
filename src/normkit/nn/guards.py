"""Refuse tools of PyTorch that would silently drop what a layer does.

Some of PyTorch's functions take any batch normalization, by ``isinstance``, and put something else
in its place that normalizes and no more. They know nothing of an activation, of another average or
of a frozen layer, so the model would compute something else without a word. Each reads the
layer's ``running_var`` first; there :class:`GuardedVariance` refuses. Likewise they take any
convolution by its weight; :class:`GuardedWeight` refuses where that is not what it convolves with.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import CodeType
from typing import Any

from torch import nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion

from normkit.errors import TypeMismatchError, message

__all__ = ["GuardedVariance", "GuardedWeight", "register_with_opacus"]


_SYNC = nn.SyncBatchNorm.convert_sync_batchnorm.__func__.__code__  # type: ignore[attr-defined]
# Not imported: that takes longer than all of the layers.
_MKLDNN = str(Path("torch", "utils", "mkldnn.py"))
_FOLD_CONV, _FOLD_LINEAR = (fusion.fuse_conv_bn_eval.__code__, fusion.fuse_linear_bn_eval.__code__)


class GuardedVariance:
    """Descriptor of ``running_var``: the buffer, for all but functions that would drop something.

    Classes name what they do beyond a plain batch normalization in a tuple ``_beyond``.
    """

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        if not is_compiling():
            code = sys._getframe(1).f_code
            if code is _SYNC:
                _refuse_sync(layer)
            elif code is _FOLD_CONV or code is _FOLD_LINEAR:
                _refuse_act(layer, "fold into the layer before")
            elif _is_mkldnn(code):
                _refuse_act(layer, "convert by torch.utils.mkldnn.to_mkldnn")
        buffers = layer._buffers
        # The usual case first: evaluation reads it in each call.
        if "running_var" in buffers:
            return buffers["running_var"]
        return _unusual_variance(layer, owner)


class GuardedWeight:
    """Descriptor of ``weight``: the parameter, for all but functions that would convolve with it.

    For convolutions that compute another weight from it in each call.
    """

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        if not is_compiling():
            code = sys._getframe(1).f_code
            if code is _FOLD_CONV or _is_mkldnn(code):
                raise TypeMismatchError(
                    message(
                        "a convolution whose weight is what it convolves with",
                        f"{layer!r}",
                        "put layer.to_conv() in its place first",
                    )
                )
        if "weight" in layer._parameters:
            return layer._parameters["weight"]
        raise AttributeError  # nn.Module.__getattr__ says of what


def _is_mkldnn(code: CodeType) -> bool:
    return code.co_name == "__init__" and code.co_filename.endswith(_MKLDNN)


def _unusual_variance(layer: Any, owner: type | None) -> Any:
    """Return ``running_var`` where it is no buffer, such as of a parametrized layer."""
    for base in type(layer).__mro__:
        other: Any = vars(base).get("running_var")
        if not isinstance(other, GuardedVariance) and hasattr(other, "__get__"):
            return other.__get__(layer, owner)
    if "running_var" in layer._parameters:
        return layer._parameters["running_var"]
    raise AttributeError  # nn.Module.__getattr__ says of what


def register_with_opacus(cls: type[nn.Module]) -> None:
    """Let Opacus, if it is imported, judge ``cls`` as the class of ``torch.nn`` that it extends.

    Opacus forbids batch normalization, whose samples depend on each other, by a table of exact
    classes; a subclass would pass.
    """
    opacus = sys.modules.get("opacus.validators.module_validator")
    table: dict[type, Any] = opacus.ModuleValidator.VALIDATORS if opacus else {}
    if not table or cls in table:
        return
    known = (*cls.__mro__, *((nn.SyncBatchNorm,) if issubclass(cls, _BatchNorm) else ()))
    if (base := next((c for c in known if c in table), None)) is not None:
        table[cls] = table[base]
        fixers = opacus.ModuleValidator.FIXERS  # type: ignore[union-attr]
        if base in fixers:
            fixers[cls] = functools.partial(_fix, fixers[base])


def _fix(fix: Any, layer: Any, **options: Any) -> nn.Module:
    fixed: nn.Module = fix(layer, **options)
    if getattr(layer, "_act", None) is not None and not hasattr(fixed, "_act"):
        raise TypeMismatchError(
            message(
                "layers that Opacus can replace",
                f"{layer!r}, whose activation it would drop",
                f"use normkit.GroupNorm with act={layer.act!r} in its place",
            )
        )
    return fixed


def _refuse_sync(layer: Any) -> None:
    drops = [what for base in type(layer).__mro__ for what in vars(base).get("_beyond", ())]
    if getattr(layer, "_act", None) is not None:
        drops.append("activation")
    if getattr(layer, "_average", "exponential") != "exponential":
        drops.append("average")
    if drops:
        raise TypeMismatchError(
            message(
                "layers that torch.nn.SyncBatchNorm can stand for",
                f"{layer!r}: it would drop the {' and the '.join(drops)}",
                "use normkit.SyncBatchNorm.convert_sync_batchnorm(model), which also takes layers "
                "before this one that may have been replaced already; or convert a "
                "copy.deepcopy(model) first",
            )
        )


def _refuse_act(layer: Any, do: str) -> None:
    if getattr(layer, "_act", None) is not None:
        raise TypeMismatchError(
            message(
                f"a batch normalization without an activation to {do}",
                f"{layer!r}, whose activation would be dropped",
                "set layer.act = None and put the activation's module after it",
            )
        )
