"""Every layer of the package once: how to make it, the shape of an input, and its namesake."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

import normkit as nk
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.layer import Layer

__all__ = ["EVERY", "Sample"]


class Sample(NamedTuple):
    """A layer's class, arguments that it needs, an input's shape, and ``torch.nn``'s namesake."""

    cls: Any
    needs: dict[str, Any]
    shape: tuple[int, ...]
    namesake: Any

    @property
    def stands_for_it(self) -> bool:
        """Return whether the layer takes its namesake's place; a masked one extends it."""
        cls = self.cls
        return issubclass(cls, self.namesake or ()) and cls.__name__ == self.namesake.__name__

    def make(self, **options: Any) -> Any:
        layer = self.cls(**{**self.needs, **options})
        if isinstance(layer, Domains):
            layer.domain = 0
        return layer

    def theirs(self, **options: Any) -> Any:
        """Return the namesake, without β for ``bias=False`` where torch lacks the option too."""
        options = {**self.needs, **options}
        lacks = "bias" not in inspect.signature(self.namesake).parameters
        bias = options.pop("bias", True) if lacks else True
        layer = self.namesake(**options)
        if not bias:
            layer.register_parameter("bias", None)
        return layer


_SHAPES = {"1d": (6, 4, 5), "2d": (6, 4, 3, 5), "3d": (2, 4, 3, 2, 5)}
_NEEDS: dict[str, dict[str, Any]] = {
    "GroupNorm": {"num_groups": 2, "num_channels": 4},
    "MaskedGroupNorm": {"num_groups": 1, "num_channels": 4},
    "AdaptiveGroupNorm": {"num_groups": 1, "num_channels": 4},
    "LayerNorm": {"normalized_shape": 5},
    "AdaptiveLayerNorm": {"normalized_shape": 5},
    "RMSNorm": {"normalized_shape": 5},
    "ZeroCenteredRMSNorm": {"normalized_shape": 5},
    "LayerNorm2d": {"num_channels": 4},
    "Ghost": {"ghost_size": 3},
    "Domain": {"domains": 2},
}


def _samples() -> Iterator[tuple[str, Sample]]:
    for name in nk.nn.__all__:
        cls: Any = getattr(nk.nn, name)
        if not (isinstance(cls, type) and issubclass(cls, Layer)):
            continue
        needs = _NEEDS.get(name)
        if needs is None:
            needs = {} if name.startswith("Lazy") else {"num_features": 4}
            needs |= next((extra for key, extra in _NEEDS.items() if name.startswith(key)), {})
        yield name, Sample(cls, needs, _SHAPES.get(name[-2:], _SHAPES["2d"]),
                           getattr(nn, name.removeprefix("Masked"), None))  # fmt: skip


EVERY = dict(_samples())
