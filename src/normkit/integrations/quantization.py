"""``torch.ao.quantization``: fuse and quantize these layers as those of ``torch.nn``.

Its eager mode (``fuse_modules``, ``prepare``, ``convert``, and the forms for quantization-aware
training) looks up exact classes in tables; the namesakes are added to them here. Its graph mode
traces a model, in whose graph they name a module of ``torch.nn`` (:mod:`normkit.nn.symbolic`). An
exported graph (PT2E) has PyTorch's operations; its quantizers for quantization-aware training also
look for the name of ``torch.nn``'s class, which a graph of these layers lacks (docs/tools.md).
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import nn

from normkit.errors import TypeMismatchError, message
from normkit.nn.freezing import frozen_class, is_frozen
from normkit.nn.namesakes import as_namesake, namesake
from normkit.surgery.accelerate import NAMESAKES

__all__: list[str] = []

Fuser = Callable[..., nn.Module]
_AO = "torch.ao.quantization"


def _add_fusers(table: MutableMapping[tuple[type, ...], Fuser]) -> None:
    """Add each row of a table of fusible modules again, with these layers and frozen ones."""
    torchs = dict(table)
    for types in torchs:
        place, norm = next(((i, t) for i, t in enumerate(types) if t in NAMESAKES), (0, None))
        if norm is not None:
            ours = NAMESAKES[norm]
            for cls in (ours, frozen_class(ours), frozen_class(norm)):
                others = (*types[:place], cls, *types[place + 1 :])
                table[others] = _fuser(torchs, types)


def _fuser(table: Mapping[tuple[type, ...], Fuser], types: tuple[type, ...]) -> Fuser:
    """Return a function that fuses modules with a layer of ours as PyTorch fuses ``types``."""

    def fuse(is_qat: bool, *modules: Any) -> nn.Module:
        norm = next(m for m in modules if namesake(type(m)) in NAMESAKES)
        drops = []
        if is_qat and is_frozen(norm):
            drops.append("frozen state")
        if is_qat and getattr(norm, "average", "exponential") != "exponential":
            drops.append("average")
        plain = [as_namesake(m) if m is norm else m for m in modules]
        longer = types
        if getattr(norm, "act", None) is not None:
            longer = (*types, nn.ReLU)
            plain.append(nn.ReLU().train(norm.training))
            if norm.act != "relu" or types[-1] not in NAMESAKES or longer not in table:
                drops.append("activation")
        if drops:
            raise TypeMismatchError(
                message(
                    "layers that torch.ao.quantization can fuse",
                    f"{norm!r}: it would drop the {' and the '.join(drops)}",
                    "leave it out of the list of modules to fuse, or put its activation's module "
                    "after it and set act to None",
                )
            )
        return table[longer](is_qat, *plain)

    return fuse


class _Swap:
    """Entry of a table of quantized modules: quantizes what ``torch.nn``'s layer would be."""

    def __init__(self, quantized: Any) -> None:
        self.quantized = quantized

    def from_float(self, layer: Any) -> nn.Module:
        """Return the quantized form of a layer, or one that computes as it does and is named."""
        if layer.act is None:
            quantized: nn.Module = self.quantized.from_float(layer)
            return quantized
        warnings.warn(
            f"{layer!r} stays in floating point: quantized layers have no activation; give it to a "
            "convolution by fuse_modules, or put its module after the layer",
            stacklevel=2,
        )
        same: nn.Module = object.__new__(type(layer))
        children = {k: v for k, v in layer._modules.items() if k != "activation_post_process"}
        # The caller moves the hooks, while it goes through those of the layer.
        hooks: dict[str, Any] = {
            key: OrderedDict() for key in ("_forward_hooks", "_forward_pre_hooks")
        }
        vars(same).update(vars(layer), _modules=children, **hooks)
        return same


def _tables(module: str, name: str) -> Any:
    return getattr(sys.modules.get(f"{_AO}.{module}"), name, {})


# torch imports these modules itself, in all releases that have them.
_add_fusers(_tables("fuser_method_mappings", "_DEFAULT_OP_LIST_TO_FUSER_METHOD"))
_static = _tables("quantization_mappings", "DEFAULT_STATIC_QUANT_MODULE_MAPPINGS")
_static |= {ours: _Swap(_static[cls]) for cls, ours in NAMESAKES.items() if cls in _static}
