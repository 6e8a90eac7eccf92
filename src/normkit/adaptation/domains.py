"""Keep a bank of statistics for each of several domains: :func:`adapt_domains`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from normkit.adaptation.check_arguments import check_prior
from normkit.adaptation.handle import Adaptation
from normkit.adaptation.layers import find_adaptable
from normkit.adaptation.once import mixed_statistics
from normkit.errors import OptionError, StatisticsError, TypeMismatchError, message
from normkit.handle import Changed, Handle, Skipped, Step, list_skipped
from normkit.nn.domainbatchnorm import Domains
from normkit.nn.freezing import FrozenMixin, freeze_layer, unfreeze_layer
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import check_batches, check_function, check_model
from normkit.statistics.contexts import use_domain
from normkit.statistics.layers.find import NormLayer, unwrap
from normkit.statistics.layers.replace import Replacement
from normkit.surgery.convert import convert
from normkit.surgery.freezable import check_finite

__all__ = ["adapt_domains"]


def adapt_domains(
    model: nn.Module,
    loaders: Sequence[Iterable[Any]],
    prior: float = 0,
    *,
    forward: Forward | None = None,
) -> Adaptation:
    """Give ``model`` a bank of running statistics for each of several domains, of its own data.

    Batch normalizations become :class:`normkit.DomainBatchNorm2d` (``normkit.convert``), with as
    many banks as there are loaders; bank k is measured on loader k (``normkit.recalibrate``), with
    all other layers of the same bank, and mixed with the former statistics, which weigh as
    ``prior`` samples. γ, β and all other weights are shared. Evaluate with
    ``with normkit.use_domain(model, k): model(batch)``; without a choice a layer raises.

    Layers that have no form with banks, such as instance normalization, keep their statistics in
    all domains; they, and frozen ones, are listed.

    Args:
        model: any module with batch normalization of images or sequences.
        loaders: an iterable of batches for each domain, as for ``recalibrate``.
        prior: samples that the former statistics weigh in each bank, at least 0.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.

    Returns:
        A handle, also a context manager: ``.undo()`` restores layers and statistics exactly.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; ``loaders`` is not a sequence
            of iterables of batches.
        OptionError: no loaders; ``prior`` outside its range; an adapted model, or one with banks
            already.
        StatisticsError: no layer that can have banks; otherwise as ``recalibrate``. The model is
            restored then.

    Source: Chang et al. 2019, arXiv 1906.03950 (banks); Li et al. 2016, arXiv 1603.04779 (AdaBN).

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm2d(1)).eval()
    >>> day, night = torch.randn(100, 1, 4, 4) + 3, torch.randn(100, 1, 4, 4)
    >>> handle = adapt_domains(model, [day.split(50), night.split(50)])
    >>> model[0].running_mean.round().flatten().abs()
    tensor([3., 0.])
    >>> with use_domain(model, 1):
    ...     y = model(night)
    >>> handle.undo()
    >>> model[0].running_mean
    tensor([0.])
    """
    check_model(model, "adapt_domains", loaders)
    check_prior(prior)
    check_function(forward, "forward", "forward(model, batch)")
    loaders = _checked(loaders)
    inner = unwrap(model)
    layers, skipped = find_adaptable(inner, "adapt_domains", once=True)
    if any(isinstance(one.layer, Domains) for one in layers):
        raise OptionError(
            message(
                "layers without banks so far",
                "some with statistics by domain",
                "normkit.recalibrate(model, loader) within normkit.use_domain(model, k) "
                "measures one bank",
            )
        )
    check_finite([(one.name, one.layer) for one in layers])
    training = [(module, module.training) for module in model.modules()]
    conversion = convert(inner, ("domain", len(loaders)))
    try:
        replaced, counts, rest = _measure(inner, layers, loaders, float(prior), forward)
        if not counts:
            raise StatisticsError(
                message(
                    "a batch normalization of images or sequences, which may have banks",
                    f"a {type(inner).__name__} without one ({list_skipped(conversion.skipped)})",
                    "adapt to one domain at a time: normkit.adapt(model, batches=loader)",
                )
            )
    except BaseException:
        conversion.undo()
        raise
    finally:
        for module, mode in training:
            module.training = mode
    note = f"{len(loaders)} banks, of {', '.join(map(str, counts))} samples"
    changed = [
        Changed(row.name, row.before, row.after, note=note)
        for row in conversion.changed
        if row.name in {one.name for one in layers} - {row.name for row in rest}
    ]
    steps = [Step(_nothing, partial(_undo_conversion, conversion)),
             *(Step(_nothing, partial(_undo, one)) for one in replaced)]  # fmt: skip
    return Adaptation("adapt_domains", changed, [*skipped, *rest], steps)


def _measure(
    inner: nn.Module,
    layers: list[NormLayer],
    loaders: Sequence[Iterable[Any]],
    prior: float,
    forward: Forward | None,
) -> tuple[list[Replacement], list[int], list[Skipped]]:
    """Measure each bank; return what was replaced, the samples, and layers without banks."""
    after, _ = find_adaptable(inner, "adapt_domains", once=True)
    with_banks = [one for one in after if isinstance(one.layer, Domains)]
    rest = [
        Skipped(one.name, type(one.layer), "has no form with banks: keeps its statistics")
        for one in after
        if not isinstance(one.layer, Domains)
    ]
    replaced: list[Replacement] = []
    counts: list[int] = []
    # Measured as evaluation will run: these keep theirs.
    keeping = [one.layer for one in after if not isinstance(one.layer, Domains)]
    try:
        for layer in keeping:
            freeze_layer(layer)
        for k, loader in enumerate(loaders if with_banks else ()):
            with use_domain(inner, k):
                statistics, samples, _ = mixed_statistics(inner, with_banks, prior, loader, forward)
            chosen = {f"{one.name}[{k}]" for one in with_banks}
            bank = {name: each for name, each in statistics.items() if name in chosen}
            replaced.append(Replacement(with_banks, bank))
            counts.append(samples)
    except BaseException:
        for one in reversed(replaced):
            one.undo()
        raise
    finally:
        for layer in keeping:
            if isinstance(layer, FrozenMixin):
                unfreeze_layer(layer)
    return replaced, counts, rest


def _checked(loaders: object) -> Sequence[Iterable[Any]]:
    if not isinstance(loaders, (list, tuple)):
        raise TypeMismatchError(
            message(
                "a list of loaders, one for each domain",
                f"a {type(loaders).__name__}",
                "pass [loader_a, loader_b], and use_domain(model, 0) for the first",
            )
        )
    if not loaders:
        raise OptionError(message("at least one loader", "an empty list", "pass [loader]"))
    for one in loaders:
        check_batches(one)
    return loaders


def _nothing() -> None:
    pass


def _undo(one: Replacement) -> Skipped | None:
    one.undo()
    return None


def _undo_conversion(conversion: Handle) -> Skipped | None:
    conversion.undo()
    return None
