"""Layers of other libraries in ``accelerate``: those that the kernels compute, and the others."""

from __future__ import annotations

import re
from types import NoneType

from torch import nn

from normkit.handle import Changed, Step
from normkit.nn.foreign import ForeignMixin, foreign_class
from normkit.nn.freezing import base_class, can_freeze
from normkit.nn.norm_formula import activation
from normkit.nn.norm_spec import norm_spec, why_no_norm_spec
from normkit.surgery.class_change import class_change

__all__ = [
    "computed_class",
    "foreign_change",
    "knows_foreign",
    "why_not_foreign",
    "why_unknown_norm",
]

# Not NormalEstimator, and not NormMlp, which holds one.
_NORM = re.compile(r".*(Norm|BN|Normalization|RMS)(Act|Fp32|Gated|1P|[123]d)*")


def knows_foreign(module: nn.Module) -> bool:
    """Return True if ``module`` is a layer of another library that is registered here."""
    return norm_spec(module) is not None or why_no_norm_spec(module) is not None


def why_not_foreign(module: nn.Module) -> str | None:
    """Return why a registered layer is left to its library; None if it is not."""
    if isinstance(module, ForeignMixin) or (why := why_no_norm_spec(module)) is None:
        return None if can_freeze(module) else "its class customizes subclassing or copying"
    return why


def why_unknown_norm(module: nn.Module) -> str | None:
    """Return why a layer whose name says that it normalizes is left; None for all others."""
    cls = base_class(type(module))
    if not _NORM.fullmatch(cls.__name__) or cls.__module__.startswith(("torch.", "normkit.")):
        return None
    if isinstance(module, ForeignMixin) or any(
        True for c in module.children() for _ in c.parameters()
    ):
        return None  # such as a convolution and a normalization together
    return "unknown; normkit.nn.norm_spec.register_norm makes it known"


def foreign_change(name: str, module: nn.Module) -> tuple[Changed, Step] | None:
    """Return the row and the step that let kernels compute ``module``, if it is not so yet."""
    spec = norm_spec(module)
    if spec is None or isinstance(module, ForeignMixin):
        return None
    cls = base_class(type(module))
    after = foreign_class(cls, spec)
    act, _ = activation(module, spec)
    called = [k for k in spec.then if type(getattr(module, k, None)) not in (nn.Identity, NoneType)]
    # The activation comes first of those that do something.
    fused = () if act is None else (f"{name}.{called[0]}".lstrip("."),)
    note = f"computed as normkit.{spec.layer.__name__}"
    return Changed(name, cls, after, fused, note), class_change(name, module, after)


def computed_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class here that computes ``layer``, or the class of ``torch.nn`` that it is."""
    if isinstance(layer, ForeignMixin):
        return layer._formula.layer
    if (spec := norm_spec(layer)) is not None:
        return spec.layer
    cls: type[nn.Module] = base_class(type(layer))
    return cls
