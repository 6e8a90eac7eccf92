"""γ and β of a model's normalization layers, of any kind."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import Parameter

from normkit.errors import OptionError, message
from normkit.handle import Skipped
from normkit.nn.adapting import AdaptedMixin
from normkit.nn.affine import AFFINE, sources
from normkit.nn.freezing import FrozenMixin, is_constant
from normkit.nn.kinds import kind_of

__all__ = ["find_affine"]


def find_affine(model: nn.Module) -> tuple[list[tuple[str, str, Parameter]], list[Skipped]]:
    """Find γ and β that may be trained: layer's name, which of the two, and the parameter.

    Raises:
        OptionError: the model is adapted already.
    """
    trainable: list[tuple[str, str, Parameter]] = []
    skipped: list[Skipped] = []
    for name, module in model.named_modules():
        if isinstance(module, AdaptedMixin):
            raise OptionError(
                message(
                    "a model that is not adapted yet",
                    f"one whose layer {name or 'itself'} is",
                    "call undo() of the first handle, or leave its block",
                )
            )
        if not _is_norm(module):
            continue
        if isinstance(module, FrozenMixin) or is_constant(module):
            why = "frozen" if isinstance(module, FrozenMixin) else "constant by construction"
            skipped.append(Skipped(name, type(module), why))
            continue
        for label, key in AFFINE.items():
            parameter = module._parameters.get(key)
            if parameter is not None and parameter.is_floating_point():
                trainable.append((name, label, parameter))
            elif sources(module, key) != []:
                why = f"its {label} is computed from other parameters"
                skipped.append(Skipped(name, type(module), why))
    return trainable, skipped


def _is_norm(module: nn.Module) -> bool:
    """Return True for known normalization layers, and others whose class is named as one."""
    return kind_of(module) is not None or is_constant(module)
