"""Inputs of the observed layers: their values, and the inputs that none can be read from."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from normkit.core.masked import selected
from normkit.errors import ShapeError, StatisticsError, message
from normkit.handle import Skipped, list_skipped, place_name
from normkit.statistics.layers.find import NormLayer

__all__ = ["LayerInputs"]


class LayerInputs:
    """Reads the values of the layers' inputs, and keeps which layers got others."""

    def __init__(self, layers: Sequence[NormLayer]) -> None:
        self._layers = layers
        self._names = [_input_name(one.layer) for one in layers]
        self._unread: dict[str, str] = {}  # by layer, the kind of an input that is no tensor

    def values(self, index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Find the values that a call takes moments of; None in an input that has none."""
        one = self._layers[index]
        if args:
            x = args[0]
        elif (name := self._names[index]) in kwargs:
            x = kwargs[name]
        else:
            x = next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        values: Any = None
        if isinstance(x, Tensor):
            values = one.spec.values(one.layer, x.detach())
        elif x is not None:
            # What describes a layer may know other inputs too, such as sparse ones.
            with contextlib.suppress(AttributeError, TypeError):
                values = one.spec.values(one.layer, x)
        if not isinstance(values, Tensor):
            self._unread[one.name] = "None" if x is None else f"a {type(x).__name__}"
            return None
        channels = one.tensors[0].shape[-1]
        mask = None if one.spec.mask is None else kwargs.get(one.spec.mask)
        if values.dim() > 1 and values.shape[1] != channels:
            kind = type(one.layer).__name__
            raise ShapeError(
                message(
                    f"{channels} channels at {place_name(one.name)}, a {kind}",
                    f"{values.shape[1]}, in an input of shape {tuple(x.shape)}",
                    "pass batches as in training, or forward=lambda model, batch: ... that calls "
                    "the model on them",
                )
            )
        return values.detach() if mask is None else selected(values.detach(), mask)

    def check_reached(self, measured: Collection[str], batches: int) -> None:
        """Raise if ``batches`` ran and nothing was measured.

        Raises:
            StatisticsError: they reached no layer, or with no values that are known.
        """
        if measured or not batches:
            return
        raise StatisticsError(
            message(
                "at least one batch that reaches a layer with running statistics",
                f"none: {list_skipped(self.unmeasured(()))}",
                "pass forward=lambda model, batch: ... that calls the layers on tensors",
            )
        )

    def unmeasured(self, measured: Collection[str]) -> list[Skipped]:
        """List the layers, or their banks, whose statistics are not among ``measured``, and why."""
        return [
            Skipped(name, type(one.layer), self._why_unmeasured(one, row))
            for one in self._layers
            for name, row in one.banks
            if name not in measured
        ]

    def _why_unmeasured(self, one: NormLayer, row: int | None) -> str:
        if one.name in self._unread:
            return (
                f"its input was {self._unread[one.name]} and not a tensor; stats_spec.register "
                "with values= says which values it holds"
            )
        if row is not None:
            return "no batch of this domain"
        return "not called in any batch (calls of its forward past its hooks are not seen)"


def _input_name(layer: nn.Module) -> str:
    """Return the name of the first parameter of a layer's forward; empty if it has none."""
    parameters = inspect.signature(layer.forward).parameters.values()
    return next((p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD), "")
