"""Momentum 0: training never moves the running statistics.

What it checks
    Whether a layer with running statistics that is neither frozen nor in evaluation mode while the
    model trains has a momentum of 0. An instance normalization with a momentum of None counts too,
    which PyTorch takes for 0 there.

Why it is bad
    In training mode the layer normalizes with each batch, in evaluation with statistics that no
    training moves: those of the weights it was loaded with. The further fine-tuning goes, the less
    they fit. Converters from other frameworks write it (torchcrepe ships it in all six layers).

Example
    nn.BatchNorm2d(64, momentum=0.0)

Use instead
    nn.BatchNorm2d(64, momentum=0.1), and nk.recalibrate(model, train) if it was trained so. To hold
    statistics still in training too, nk.freeze(model).

When it is right
    In a model that only serves, as long as nobody trains it. In evaluation mode, with no batch
    counted, it is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import (
    affine_moved,
    count,
    never_moved,
    still_in_training,
    suits_training,
)
from normkit.doctor.treatments import MOMENTUM, set_attributes, together
from normkit.statistics.layers.find import batch_counter


def _stands_still(one: Norm) -> bool:
    unset = isinstance(one.layer, _InstanceNorm) and one.layer.momentum is None
    return one.momentum == 0 or unset


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that seem to keep an average, and keep none."""
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if one.stats is not None and id(one.layer) not in still and _stands_still(one)
    ]  # fmt: skip
    if not norms:
        return
    wrong = [one for one in norms if never_moved(one) and affine_moved(one)]
    initial = (
        f" In {count(wrong)} that is still mean 0 and variance 1, though γ and β were trained."
        if wrong
        else ""
    )
    counters = [batch_counter(one.layer) for one in norms]
    counted = any(int(counter.max()) for counter in counters if counter is not None)
    serves = not (exam.model.training or counted or wrong)
    yield Finding(
        "error" if wrong and suits_training(exam)[0] else "note" if serves else "warning",
        tuple(one.name for one in norms),
        f"Momentum is 0 in {count(norms)}, not frozen: training normalizes with each batch, "
        f"and never moves what evaluation uses.{initial}",
        "momentum=0.1, then nk.recalibrate(model, train); or nk.freeze(model) if meant",
        float(len(norms)),
        together(set_attributes("momentum", norms, {"momentum": MOMENTUM}), exam.recalibrate()),
    )
