"""Merge state dicts: weights averaged, running statistics merged as moments."""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.statistics.results.recalibration import Recalibration
from normkit.surgery.merge_checks import (
    State,
    check_alike,
    check_names,
    check_rules,
    check_states,
    check_weights,
)
from normkit.surgery.merge_rules import Rule, apply_rule
from normkit.surgery.stats_entries import StatsEntry, find_stats_entries, merge_stats

__all__ = ["merge"]


def merge(
    state_dicts: Sequence[State],
    weights: Sequence[float] | Sequence[Recalibration] | None = None,
    *,
    model: nn.Module | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> OrderedDict[str, Any]:
    r"""Merge the state dicts of one architecture, as in federated learning or a model soup.

    Parameters and other floating-point tensors are averaged; running statistics are merged as what
    they are, moments of data:

    .. math::
        \mu = \sum_k p_k \mu_k,\qquad
        \sigma^2 = \sum_k p_k \left(\sigma_k^2 + (\mu_k - \mu)^2\right),\qquad
        p_k = \frac{w_k}{\sum_j w_j}

    An average of the variances alone lacks what lies between the means, wherever the parts see
    different data. Counts of batches are added. With what :func:`normkit.recalibrate` returned as
    ``weights``, the unbiased variances :math:`s_k^2` of :math:`n_k` values each merge into that of
    all :math:`n` exactly,

    .. math::
        s^2 = \frac{1}{n - 1} \sum_k \left((n_k - 1) s_k^2 + n_k (\mu_k - \mu)^2\right);

    with numbers the result is off by a share of up to K / n for K parts. A layer that is as new
    (mean 0, variance 1, no batch counted) counts for nothing in its statistics.

    Statistics belong to weights. Where all state dicts have the same weights, as after one
    recalibration by each client, what is returned is right for them: pass ``layerwise=False`` to
    those recalibrations, since layer by layer each would measure its deeper layers behind its own
    statistics and not behind everyone's. Where the weights differ, the averaged network has
    activations that none of the parts had: recalibrate it before it is used.

    Args:
        state_dicts: what ``state_dict()`` returned, two or more, with the same names, shapes and
            types. They do not change.
        weights: how much each counts, such as its number of samples; None for all the same. Or
            what :func:`normkit.recalibrate` returned for each: its layers weigh by their values,
            the parameters by its samples.
        model: a model of this architecture, whose layers tell which entries are running statistics
            and of what kind. Without it PyTorch's names do (``running_mean``, ``running_var``),
            and they are taken for batch normalization's: instance normalization, whose variances
            have nothing between them, needs the model.
        rules: what to do with other entries, by name or pattern (``"*.step"``): ``"mean"``,
            ``"first"``, ``"max"`` or ``"sum"``. Without one, integers, flags and anything that is
            no tensor have to be equal in all.

    Returns:
        A new state dict for ``model.load_state_dict``, on the devices of the first.

    Raises:
        TypeMismatchError: an item is no state dict, or an entry is lazy, sharded, on the meta
            device, quantized or sparse.
        OptionError: fewer than two; ``weights`` do not fit or are all 0; names, shapes or types
            differ; entries that cannot be averaged differ and have no rule.
        StatisticsError: an entry holds NaN or infinity, or a result exceeds its type. Nothing has
            changed in any of the cases.

    Warns:
        UserWarning: a recalibration measured layer by layer.

    Source: McMahan et al. 2017, arXiv 1602.05629 (averaging of weights); Chan, Golub & LeVeque
    1979 (merging moments).

    >>> a, b = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    >>> for layer, mean in ((a, 0.0), (b, 2.0)):
    ...     _ = layer.running_mean.fill_(mean), layer.num_batches_tracked.fill_(3)
    >>> merged = merge([a.state_dict(), b.state_dict()])
    >>> merged["running_mean"], merged["running_var"], merged["num_batches_tracked"]
    (tensor([1.]), tensor([2.]), tensor(6))
    """
    states = check_states(state_dicts)
    shares, results = check_weights(weights, len(states))
    check_rules(rules)
    check_names(model, states[0])
    entries = find_stats_entries(states[0], model)
    check_alike(states, entries)
    merged: dict[str, Any] = {}
    for entry in entries:
        counts = _counts(entry, states[0], results)
        merged |= merge_stats(entry, states, shares, counts)
    counters = {entry.counter for entry in entries}
    for name in states[0]:
        if name in merged:
            continue
        rule = _rule(name, rules) or ("sum" if name in counters else None)
        merged[name] = apply_rule(name, [state[name] for state in states], shares, rule)
    result = OrderedDict((name, merged[name]) for name in states[0])
    if (versions := getattr(states[0], "_metadata", None)) is not None:
        result._metadata = versions  # type: ignore[attr-defined]
    return result


def _rule(name: str, rules: Mapping[str, Rule] | None) -> Rule | None:
    """Return the first rule whose name or pattern fits."""
    fitting = (rule for key, rule in (rules or {}).items() if fnmatch.fnmatchcase(name, key))
    return next(fitting, None)


def _counts(
    entry: StatsEntry, first: State, results: Sequence[Recalibration] | None
) -> Tensor | None:
    """Return how many values a layer's statistics come from, in each part; None if unknown."""
    if results is None:
        return None
    shape = first[entry.mean].shape
    banks = [entry.layer] if len(shape) < 2 else [f"{entry.layer}[{k}]" for k in range(shape[0])]
    if any(bank not in one.layers for one in results for bank in banks):
        return None
    counts = [[one.layers[bank].count for bank in banks] for one in results]
    return torch.tensor(counts if len(shape) > 1 else [row[0] for row in counts]).double()
