"""Merge state dicts: weights averaged, running statistics merged as moments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from normkit.surgery.merging.check import (
    State,
    check_names,
    check_same,
    check_state,
    check_states,
    check_stats,
    check_tensors,
)
from normkit.surgery.merging.entries import find_stats_entries
from normkit.surgery.merging.measured import averages_over_samples, measured_counts
from normkit.surgery.merging.moments import merge_stats
from normkit.surgery.merging.rules import Rule, apply_rule, merge_counts, read_rules
from normkit.surgery.merging.weights import Weights, read_weights

__all__ = ["merge"]


def merge(
    state_dicts: Iterable[State],
    weights: Weights | None = None,
    *,
    model: nn.Module | None = None,
    start: State | None = None,
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
    all :math:`n` values exactly,

    .. math::
        s^2 = \frac{1}{n - 1} \sum_k \left((n_k - 1) s_k^2 + n_k (\mu_k - \mu)^2\right);

    with numbers the part within is too large by about 1 / n_k of itself. A layer that is as new
    (mean 0, variance 1, no batch counted) counts for nothing in its statistics, nor does what a
    recalibration has not measured, such as other domains.

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
            and unless recalibrations tell otherwise they are taken for batch normalization's:
            instance normalization, whose variances have nothing between them, needs the model.
        start: the state dict that all of them began from, as in a round of federated learning:
            its batches are counted once. Without it they would be counted K times a round.
        rules: what to do with entries, by name or pattern (``"*.step"``): ``"mean"``,
            ``"first"``, ``"max"`` or ``"sum"``; of running means and variances ``"first"`` alone.
            Without one, integers, flags and anything that is no tensor have to be equal in all.

    Returns:
        A new state dict for ``model.load_state_dict``, on the devices of the first.

    Raises:
        TypeMismatchError: an item is no state dict, or an entry is lazy, sharded, on the meta
            device, quantized or sparse.
        OptionError: fewer than two, or two that share their tensors; ``weights`` do not fit, are
            all 0, or are recalibrations of something else; names, shapes or types differ; entries
            that cannot be averaged differ and have no rule; a rule fits no entry.
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
    if start is not None:
        check_state(start, "start")
    shares, results = read_weights(weights, len(states))
    check_names(model, states[0])
    others = {f"number {number}": state for number, state in enumerate(states[1:], start=2)}
    check_same(states[0], others if start is None else {**others, "start": start})
    check_tensors(states)
    entries = find_stats_entries(states[0], model)
    check_stats(states, entries)
    by_name = read_rules(rules, states[0].keys(), entries)
    measured = {} if results is None else measured_counts(entries, states, results)
    merged: dict[str, Any] = {}
    for entry in entries:
        if entry.mean in by_name:
            continue
        if results is not None and averages_over_samples(entry, results):
            entry = entry._replace(per_sample=True)
        merged |= merge_stats(entry, states, shares, measured.get(entry.layer))
    counters = {entry.counter for entry in entries} - by_name.keys()
    for name in states[0].keys() - merged.keys():
        values = [state[name] for state in states]
        if name in counters:
            merged[name] = merge_counts(name, values, None if start is None else start[name])
        else:
            merged[name] = apply_rule(name, values, shares, by_name.get(name))
    result = OrderedDict((name, merged[name]) for name in states[0])
    if (versions := getattr(states[0], "_metadata", None)) is not None:
        result._metadata = versions.copy()  # type: ignore[attr-defined]
    return result
