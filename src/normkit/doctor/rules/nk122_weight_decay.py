"""Optimizer decays γ and β.

What it checks
    Which γ and β are in a parameter group of the optimizer with a weight decay above 0.

Why it is bad
    Decay draws γ to 0 and β to 0, though neither makes a network simpler: the scale of what comes
    before is normalized away anyway. Channels with small gradients die (NK106). Adam adds the decay
    to the gradient, so that it is not even proportional; AdamW shrinks by a share.

Example
    optim.AdamW(model.parameters(), weight_decay=0.05)

Use instead
    Two groups, norms and biases with weight_decay=0, as most recipes for ImageNet do.

When it is right
    In short trainings with little decay it hardly matters; as a means against overfitting it was
    reported to help in some networks. Layers that store γ as its distance from 1, as Gemma's, are
    passed over: decay draws them to 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import optim

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.states import affine_parameters, stores_distance_from_one

IN_GRADIENT = (
    optim.SGD, optim.Adam, optim.Adamax, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Adagrad,
    optim.Adadelta, optim.ASGD,
)  # fmt: skip
"""Classes that add it to the gradient, unless asked for ``decoupled_weight_decay``."""
DECOUPLED = (optim.AdamW, optim.Adafactor)
"""Classes that shrink by the rate times the decay, whatever the gradient. Of others nothing is
said."""


def check(exam: Examination) -> Iterator[Finding]:
    """Find γ and β that the optimizer draws to 0."""
    if exam.optimizer is None:
        return
    decays = {
        id(p): float(group.get("weight_decay", 0))
        for group in exam.optimizer.param_groups
        for p in group["params"]
    }
    trained = {
        one.name: [p for p in affine_parameters(one) if p.requires_grad]
        for one in exam.norms
        if not stores_distance_from_one(one)
    }
    decayed = {
        name: [p for p in parameters if decays.get(id(p), 0) > 0]
        for name, parameters in trained.items()
    }
    places = tuple(name for name, parameters in decayed.items() if parameters)
    if not places:
        return
    number, total = (sum(map(len, one.values())) for one in (decayed, trained))
    most = max(decays[id(p)] for parameters in decayed.values() for p in parameters)
    cls = type(exam.optimizer)
    decoupled = cls in DECOUPLED or exam.optimizer.defaults.get("decoupled_weight_decay") is True
    way = "decoupled from the gradient" if decoupled else "added to the gradient"
    known = cls in (*IN_GRADIENT, *DECOUPLED)
    yield Finding(
        "note",
        places,
        f"{cls.__name__} decays {number:,} of {total:,} tensors γ and β, by {most:g}"
        + (f" ({way})." if known else "."),
        f"{cls.__name__}(nk.parameter_groups(model, {most:g}), …)",
        most,
    )
