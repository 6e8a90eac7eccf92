"""State of a layer's statistics, γ and β, as several rules ask for it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel

from normkit.doctor.examination import Examination
from normkit.doctor.norms import Norm
from normkit.doctor.scores import gain_between
from normkit.doctor.treatments import RECALIBRATE
from normkit.nn.affine import AFFINE, sources
from normkit.nn.norm_spec import norm_spec
from normkit.nn.stats_spec import has_own_forward, stats_spec
from normkit.nn.zerocenteredrmsnorm import ZeroCenteredRMSNorm
from normkit.statistics.layers.find import batch_counter
from normkit.statistics.layers.train_overrides import kept_in_evaluation

__all__ = [
    "affine_moved",
    "affine_parameters",
    "averaging_wrapper",
    "count",
    "differs_from_training",
    "drawn_at_random",
    "eps_of",
    "is_known",
    "never_moved",
    "share",
    "still_in_training",
    "stores_distance_from_one",
    "suits_training",
    "values_of",
]


def values_of(one: Norm) -> tuple[Tensor, Tensor] | None:
    """Return the running mean and variance in float64 on the CPU, of all banks; or None.

    >>> from normkit.doctor.norms import find_norms
    >>> values_of(find_norms(nn.BatchNorm1d(2))[0])
    (tensor([0., 0.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """
    stats = one.stats
    if stats is None or any(t.is_meta or nn.parameter.is_lazy(t) for t in stats):
        return None
    mean, var = (tensor.detach().cpu().double().flatten() for tensor in stats)
    return mean, var


def eps_of(one: Norm) -> float | None:
    """Return the number that is added to a variance; None where the layer has none of its own."""
    values = (getattr(one.layer, name, None) for name in ("eps", "variance_epsilon"))
    return next((float(value) for value in values if isinstance(value, (int, float))), None)


def never_moved(one: Norm) -> bool:
    """Return whether all means are exactly 0 and all variances exactly 1, as a layer is made."""
    values = values_of(one)
    return values is not None and bool((values[0] == 0).all()) and bool((values[1] == 1).all())


def affine_moved(one: Norm) -> bool | None:
    """Return whether β, or γ without one, is not all the same; None where it has neither.

    β is asked first: some networks draw γ at random when they are made, and start with β at 0.
    """
    for tensor in (one.bias, one.weight):
        if tensor is not None and not tensor.is_meta and not nn.parameter.is_lazy(tensor):
            values = tensor.detach().flatten()
            if values.numel() > 1:
                return bool((values != values[0]).any())
    return None


def drawn_at_random(norms: Iterable[Norm]) -> bool:
    """Return whether the β of all layers look drawn from one distribution around 0.

    Some networks make them so, such as RepVGG in timm. Training gives the layers different means
    and spreads. It takes some layers and many channels to tell; of fewer the answer is False.
    """
    values = []
    for one in norms:
        counter, bias = batch_counter(one.layer), one.bias
        if counter is not None and not counter.is_meta and int(counter.max()) > 0:
            return False
        if bias is not None and not bias.is_meta and not nn.parameter.is_lazy(bias):
            values.append(bias.detach().cpu().double().flatten())
    sizes = torch.tensor([float(each.numel()) for each in values])
    if len(values) < 8 or float(sizes.sum()) < 1_000:
        return False
    spread = torch.cat(values).square().mean().sqrt()
    # Of normal values, both are about standard normal in every layer.
    means = torch.stack([each.mean() for each in values]) / spread * sizes.sqrt()
    sizes_of = torch.stack([each.square().mean().sqrt() for each in values]) / spread
    spreads = sizes_of.log() * (2 * sizes).sqrt()
    return float(means.abs().max()) < 5 and float(spreads.abs().max()) < 5


def suits_training(exam: Examination) -> tuple[bool | None, str]:
    """Return whether the statistics of training batches serve the weights better than those kept.

    Weights that were trained with layers in evaluation mode fit the statistics that they were
    trained with, whatever the data's are. By the score of the evaluation batches; without them, by
    the loss on training batches with labels. None where neither decides. With it, the figures.
    """
    evaluation = exam.evaluation
    if evaluation is not None and RECALIBRATE in evaluation.tried:
        gain = gain_between(evaluation.score, evaluation.tried[RECALIBRATE])
        if gain is not None:
            return (True if gain.helps else False if gain.high < 0 else None), str(gain)
    compared = exam.training.consistency if exam.training is not None else None
    output = None if compared is None else compared.output
    if output is None or output.loss is None or output.loss_difference is None:
        return None, ""
    change, error = output.loss_difference
    decides = not math.isnan(error) and abs(change) > 3 * error
    batch, running = output.loss
    return change > 0 if decides else None, f"loss {running:.3f} → {batch:.3f} on training batches"


def affine_parameters(one: Norm) -> list[nn.Parameter]:
    """Return the parameters that γ and β are, or are computed from."""
    return [p for name in AFFINE.values() for p in sources(one.layer, name) or []]


def still_in_training(exam: Examination) -> frozenset[int]:
    """Return the identities of layers whose statistics stay while the model trains.

    Frozen ones, those that the model's own ``train()`` keeps in evaluation mode, and those in
    evaluation mode now in a model that trains.
    """
    in_evaluation = kept_in_evaluation(exam.model)
    return frozenset(
        id(one.layer)
        for one in exam.norms
        if one.stats is not None
        and (
            one.frozen
            or id(one.layer) in in_evaluation
            or (exam.model.training and not one.layer.training)
        )
    )  # fmt: skip


def differs_from_training(exam: Examination, one: Norm) -> bool | None:
    """Return whether its statistics are off from those of the training batches; None if unknown."""
    compared = exam.training.consistency if exam.training is not None else None
    if compared is None:
        return None
    gaps = [gap.matters for name, gap in compared.layers.items() if exam.norm(name) == one]
    return any(gaps) if gaps else None


def averaging_wrapper(model: object) -> AveragedModel | None:
    """Return the wrapper that averages weights among those around a model, or None."""
    while isinstance(model, nn.Module):
        if isinstance(model, AveragedModel):
            return model
        parts = model._modules
        model = parts.get("module") or parts.get("_orig_mod")
    return None


def is_known(one: Norm) -> bool:
    """Return whether γ multiplies what the layer normalizes, as it does in ``torch.nn``'s.

    A subclass with its own ``forward`` may multiply by 1 + γ, and is not known unless its formula
    is.
    """
    if (formula := norm_spec(one.layer)) is not None:
        return formula.weight == "weight" and not stores_distance_from_one(one)
    usual = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    known = isinstance(one.layer, usual) and not has_own_forward(one.layer)
    return known or stats_spec(one.layer) is not None


def stores_distance_from_one(one: Norm) -> bool:
    """Return whether γ is 1 more than the layer's weight, which decay then draws to 1."""
    formula = norm_spec(one.layer)
    cls = type(one.layer) if formula is None else formula.layer
    return issubclass(cls, ZeroCenteredRMSNorm) or bool(formula is not None and formula.offset)


def count(things: Iterable[object], word: str = "layer") -> str:
    """Return how many, in words.

    >>> count([1]), count([1, 2])
    ('1 layer', '2 layers')
    """
    number = len(list(things))
    return f"{number:,} {word}{'s' * (number != 1)}"


def share(part: Tensor) -> float:
    """Return the share of true values."""
    return float(part.to(torch.float64).mean())
