"""Layers that keep running statistics, and how each keeps them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from normkit.errors import StatisticsError, message
from normkit.handle import Skipped, list_skipped
from normkit.nn.freezing import FrozenMixin
from normkit.nn.stats_spec import StatsSpec, stats_spec, why_unknown
from normkit.statistics.check_arguments import check_has_values, check_model
from normkit.statistics.estimates.layer_statistics import LayerStatistics
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.layers.train_overrides import KEPT, kept_in_evaluation

__all__ = [
    "COUNTER",
    "NormLayer",
    "batch_counter",
    "find_norm_layers",
    "layers_by_bank",
    "named_stats",
    "running_statistics",
    "unwrap",
]


COUNTER = "num_batches_tracked"
"""Attribute that counts a layer's batches, in every layer that counts them."""


class NormLayer(NamedTuple):
    """Layer that keeps running statistics, by its first name in the model."""

    name: str
    layer: nn.Module
    spec: StatsSpec

    @property
    def eps(self) -> float:
        """Number that the layer adds to a variance before it divides."""
        return float(getattr(self.layer, "eps", None) or 0.0)

    @property
    def per_sample(self) -> bool:
        """True if its statistics are averages over samples."""
        return self.spec.per == "sample"

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Tensors of means and variances of the layer."""
        return getattr(self.layer, self.spec.mean), getattr(self.layer, self.spec.var)

    @property
    def counter(self) -> Tensor | None:
        """Count of batches of the layer, see :func:`batch_counter`."""
        return batch_counter(self.layer)

    @property
    def banks(self) -> list[tuple[str, int | None]]:
        """Name and row of each set of statistics that the layer keeps."""
        mean, _ = self.tensors
        if mean.dim() < 2:
            return [(self.name, None)]
        return [(f"{self.name}[{row}]", row) for row in range(len(mean))]

    def stats(self, row: int | None) -> tuple[Tensor, Tensor]:
        """Copy mean and variance of a row, in float64 on the CPU."""
        mean, variance = (t.detach() if row is None else t.detach()[row] for t in self.tensors)
        return mean.double().cpu(), variance.double().cpu()


def batch_counter(layer: nn.Module) -> Tensor | None:
    """Return a layer's count of batches, one or one per bank, if its averages depend on it.

    >>> batch_counter(nn.BatchNorm1d(2)), batch_counter(nn.InstanceNorm1d(2))
    (tensor(0), None)
    """
    counter = getattr(layer, COUNTER, None)
    return None if isinstance(layer, _InstanceNorm) or not isinstance(counter, Tensor) else counter


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside a parallel, compiled or averaging wrapper.

    The wrapper's own forward would broadcast buffers between processes that see different
    numbers of batches, or run a graph compiled without hooks, or hide which entries of a mapping
    the model takes.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted.

    >>> layer = nn.BatchNorm1d(2)
    >>> unwrap(nn.DataParallel(layer)) is layer
    True
    """
    check_model(model)
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def find_norm_layers(model: nn.Module) -> tuple[list[NormLayer], list[Skipped]]:
    """Find the layers whose statistics may be replaced, and those that are skipped, and why.

    Raises:
        StatisticsError: a lazy layer has not had its first input, no layer may be replaced, or
            the model is on the meta device.
    """
    check_has_values(model)
    layers: list[NormLayer] = []
    skipped: list[Skipped] = []
    in_evaluation = kept_in_evaluation(model)
    owners = _owners(model)
    for name, layer in model.named_modules():
        spec = stats_spec(layer)
        if spec is None:
            # A layer that looks like one of ours and is not: its user would want to know.
            if (why := why_unknown(layer)) is not None:
                skipped.append(Skipped(name, type(layer), why))
            continue
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():  # type: ignore[misc]
            raise StatisticsError(
                message(
                    "lazy layers to be initialized, as their first input sets their channels",
                    f"{name or type(layer).__name__}, which has had no input",
                    "run the model once on any batch",
                )
            )
        one = NormLayer(name, layer, spec)
        why = (
            _why_frozen(layer, model, in_evaluation)
            or _why_distributed(one, model)
            or _why_not_writable(one, owners)
        )
        if why is None:
            layers.append(one)
        else:
            skipped.append(Skipped(name, type(layer), why))
    if not layers:
        raise StatisticsError(
            message(
                "a layer with running statistics that is not frozen",
                f"{type(model).__name__} without one"
                + (f" ({list_skipped(skipped)})" if skipped else ""),
                "nothing is needed if no layer keeps statistics; else unfreeze the layers, or "
                "describe them with stats_spec.register",
            )
        )
    return layers, skipped


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Map each tensor of running statistics, by identity, to the layers that keep it."""
    owners: dict[int, list[str]] = {}
    for name, layer in model.named_modules():
        spec = stats_spec(layer)
        if spec is not None:
            owners.setdefault(id(getattr(layer, spec.mean)), []).append(name)
            owners.setdefault(id(getattr(layer, spec.var)), []).append(name)
    return owners


def _why_not_writable(one: NormLayer, owners: Mapping[int, Sequence[str]]) -> str | None:
    """Say why a layer's statistics cannot be its own measured ones, or None."""
    layer, names = one.layer, (one.spec.mean, one.spec.var)
    if not all(n in {*layer._buffers, *layer._parameters, *vars(layer)} for n in names):
        return "its statistics are computed from other tensors"
    others = [n for t in one.tensors for n in owners[id(t)] if n != one.name]
    return f"keeps its statistics in the same tensor as {others[0]}" if others else None


def _why_frozen(layer: nn.Module, model: nn.Module, in_evaluation: Container[int]) -> str | None:
    """Say why a layer's statistics are meant to stay as they are, or None."""
    if isinstance(layer, FrozenMixin):
        return "frozen"
    if getattr(layer, "momentum", None) == 0:
        return "momentum is 0"
    if id(layer) in in_evaluation:
        return KEPT
    if model.training and not layer.training:
        return "frozen: in evaluation mode while the model trains"
    return None


def _why_distributed(one: NormLayer, model: nn.Module) -> str | None:
    """Say why a layer's statistics are not this process's to write, or None."""
    distributed = any(hasattr(tensor, "device_mesh") for tensor in one.tensors)
    parameters = any(isinstance(tensor, nn.Parameter) for tensor in one.tensors)
    if distributed or (parameters and is_sharded(model)):
        return "its statistics are distributed; measure the model before distributing them"
    return None


def layers_by_bank(layers: Iterable[NormLayer]) -> dict[str, NormLayer]:
    """Map the name of each set of statistics to the layer that keeps it."""
    return {name: one for one in layers for name, _ in one.banks}


def running_statistics(layers: Iterable[NormLayer]) -> dict[str, LayerStatistics]:
    """Return the statistics that ``layers`` keep, by bank, as if they were known exactly."""
    running = {}
    for one in layers:
        for name, row in one.banks:
            mean, variance = one.stats(row)
            zeros = torch.zeros_like(mean)
            running[name] = LayerStatistics(mean, variance, zeros, zeros, 0)
    return running


def named_stats(model: nn.Module) -> dict[str, Tensor]:
    """Return all running statistics of ``model`` by their names in its state dict.

    The counts of batches, by which averages go on, are among them. A layer that stands in several
    places is listed several times, as it is there.

    >>> list(named_stats(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
    ['1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    return {
        f"{name}.{attribute}" if name else attribute: getattr(layer, attribute)
        for name, layer in model.named_modules(remove_duplicate=False)
        if (spec := stats_spec(layer)) is not None
        for attribute in (spec.mean, spec.var, COUNTER)
        if attribute != COUNTER or batch_counter(layer) is not None
    }
