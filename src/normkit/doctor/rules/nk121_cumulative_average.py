"""Momentum None: every batch since the start weighs the same.

What it checks
    Whether a batch normalization keeps a cumulative average: a momentum of None, or normkit's
    average="cumulative".

Why it is bad
    After t batches each weighs 1/t, those of the first, long outdated weights as much as the
    present ones. The average lags behind the weights for as long as these move, and more so the
    longer the training was.

Example
    nn.BatchNorm2d(64, momentum=None), trained for 50 epochs

Use instead
    nn.BatchNorm2d(64, momentum=0.1) for training; nk.recalibrate(model, train) at its end.

When it is right
    Where the weights stand still while the average is taken, as in torch.optim.swa_utils.update_bn.
"""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import count, differs_from_training, still_in_training
from normkit.doctor.treatments import MOMENTUM, set_attributes, together


def _is_unset(one: Norm) -> bool:
    return vars(one.layer).get("momentum", 0) is None


def check(exam: Examination) -> Iterator[Finding]:
    """Find averages that never forget."""
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if one.kind == "batch" and one.stats is not None and id(one.layer) not in still
        and (_is_unset(one) or getattr(one.layer, "average", None) == "cumulative")
    ]  # fmt: skip
    if norms:
        differs = any(differs_from_training(exam, one) for one in norms)
        off = ", and it is off from the statistics of the training batches" if differs else ""
        mend = set_attributes("momentum", norms, {"momentum": MOMENTUM})
        yield Finding(
            "warning" if differs else "note",
            tuple(one.name for one in norms),
            f"The average is cumulative in {count(norms)}: batches of long-outdated weights "
            f"count as much as the last ones{off}.",
            "nk.recalibrate(model, train); momentum=0.1 to train on",
            float(len(norms)),
            together(mend, exam.recalibrate()) if all(map(_is_unset, norms)) else None,
        )
