"""Learning rate of γ and β is 0, or far from that of the other parameters.

What it checks
    The learning rates of the optimizer's groups with γ and β, against the groups with the model's
    other parameters: 0 where none of the others' is, or tenfold above or below all of them. Where a
    schedule moves them, those it began with: at its end all of them may be 0. At 0 throughout a
    part, as a backbone is before it is unfrozen, nothing is said.

Why it is bad
    At 0 these layers do not train, though they look as if they did. γ and β act on whole channels:
    at ten times the rate they move the network much more than its weights do.

Example
    [{"params": weights, "lr": 0.1}, {"params": norms, "lr": 0}]

Use instead
    One rate for all; nk.freeze(model) for layers that shall not train.

When it is right
    In recipes that were tuned for it, such as those that give γ and β a rate of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import affine_parameters, count

FAR = 10.0


def check(exam: Examination) -> Iterator[Finding]:
    """Find γ and β that learn at another pace."""
    if exam.optimizer is None:
        return
    rates = {
        id(p): float(group.get("initial_lr", group.get("lr", 0)))
        for group in exam.optimizer.param_groups
        for p in group["params"]
    }
    affine = {
        one.name: [
            rates[id(p)] for p in affine_parameters(one) if id(p) in rates and p.requires_grad
        ]
        for one in exam.norms
    }
    named = {id(p) for one in exam.norms for p in affine_parameters(one)}
    others = [
        rates[id(p)] for p in exam.model.parameters() if id(p) in rates and id(p) not in named
    ]
    if not others or max(others) == 0:  # nothing trains
        return
    zero = tuple(name for name, of_layer in affine.items() if 0 in of_layer)
    if zero and min(others) > 0:
        yield Finding(
            "warning",
            zero,
            f"The learning rate of γ and β is 0 in {count(zero)}, that of other parameters "
            f"{max(others):g}: they do not train, though requires_grad is on.",
            "one rate for all, or nk.freeze(model)",
            0.0,
        )
    low, high = min(others) / FAR, max(others) * FAR
    far = {
        name: of_layer
        for name, of_layer in affine.items()
        if any(rate and not low < rate < high for rate in of_layer)
    }
    if far:
        rate = next(rate for of_layer in far.values() for rate in of_layer if not low < rate < high)
        yield Finding(
            "note",
            tuple(far),
            f"The learning rate of γ and β is {rate:g} in {count(far)}, and {min(others):g} to "
            f"{max(others):g} of other parameters (threshold a factor of {FAR:g}).",
            "one rate for all, unless it was tuned",
            rate,
        )
