"""Layers of a model that can be adapted, and those that cannot, with the reason."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from normkit.adaptation.probe import why_other_formula
from normkit.errors import OptionError, StatisticsError, message
from normkit.handle import Skipped, list_skipped
from normkit.nn.adapting import AdaptedMixin, tensor_table
from normkit.nn.freezing import FrozenMixin, can_freeze, is_constant
from normkit.nn.stats_spec import StatsSpec, stats_spec, why_unknown
from normkit.statistics.check_arguments import check_has_values
from normkit.statistics.layers.find import NormLayer
from normkit.statistics.layers.train_overrides import KEPT, kept_in_evaluation

__all__ = ["find_adaptable"]


def find_adaptable(
    model: nn.Module, verb: str, *, once: bool = False, required: bool = True
) -> tuple[list[NormLayer], list[Skipped]]:
    """Find layers that keep running statistics and may normalize by other ones for a while.

    Args:
        verb: the function's name, for messages.
        once: their statistics are replaced once, by ``recalibrate``, which takes more layers.
        required: a model without one is an error.

    Raises:
        OptionError: the model is adapted already.
        StatisticsError: it has none, is on the meta device, or has a lazy layer without input.
    """
    check_has_values(model)
    layers: list[NormLayer] = []
    skipped: list[Skipped] = []
    in_evaluation = kept_in_evaluation(model)
    for name, layer in model.named_modules():
        if isinstance(layer, AdaptedMixin):
            raise OptionError(
                message(
                    "a model that is not adapted yet",
                    f"one whose layer {name or 'itself'} is",
                    "call undo() of the first handle, or leave its block",
                )
            )
        spec = stats_spec(layer)
        if spec is None:
            why = "constant by construction" if is_constant(layer) else why_unknown(layer)
        else:
            why = KEPT if id(layer) in in_evaluation else _why_not(name, layer, spec, once)
        if why is not None:
            skipped.append(Skipped(name, type(layer), why))
        elif spec is not None:
            layers.append(NormLayer(name, layer, spec))
    if required and not layers:
        raise _none(model, skipped, verb)
    return layers, skipped


def _why_not(name: str, layer: nn.Module, spec: StatsSpec, once: bool) -> str | None:
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise StatisticsError(
            message(
                "lazy layers to be initialized, as their first input sets their channels",
                f"a {type(layer).__name__} that has had no input",
                "run the model once on any batch",
            )
        )
    if isinstance(layer, FrozenMixin):
        return "frozen"
    if once:
        return None
    if "forward" in vars(layer):
        return "its forward was replaced"
    if is_parametrized(layer):
        return "parametrized"
    if not spec.affine:
        return "normalizes by its input beside its running statistics"
    if spec.mask is not None:
        return "normalizes by the positions of a mask"
    if not can_freeze(layer):
        return "its class customizes subclassing or copying"
    try:
        tensors = [tensor_table(layer, name)[name] for name in (spec.mean, spec.var)]
    except KeyError:
        return "its statistics are computed from other tensors"
    if any(hasattr(tensor, "device_mesh") for tensor in tensors):
        return "its statistics are distributed; adapt the model before distributing them"
    return why_other_formula(NormLayer(name, layer, spec))


def _none(model: nn.Module, skipped: list[Skipped], verb: str) -> StatisticsError:
    """Say that there is nothing to adapt, and what there is."""
    untracked = sum(
        isinstance(m, _BatchNorm) and m.running_mean is None and not m.track_running_stats
        for m in model.modules()
    )
    if skipped:
        fix = (
            "normkit.unfreeze(model) where frozen, normkit.adapt(model, batches=stream) for other "
            "formulas, or evaluate it as it is"
        )
    elif untracked:
        fix = f"nothing is needed: {untracked} layers normalize by each batch already"
    else:
        fix = (
            "evaluate it as it is: layer and group normalization take their moments from each "
            "sample; normkit.tent(model) adapts their γ and β"
        )
    return StatisticsError(
        message(
            f"for {verb} a batch or instance normalization with running statistics that is not "
            "frozen",
            f"a {type(model).__name__} without one"
            + (f" ({list_skipped(skipped)})" if skipped else ""),
            fix,
        )
    )
