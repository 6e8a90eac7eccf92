"""Running statistics are stored in a half type, in which an average cannot move.

What it checks
    Whether running statistics are float16 or bfloat16, and in which share of channels a step
    vanishes in rounding: one towards a mean a tenth of a deviation away, or a variance 10 % larger.

Why it is bad
    Each batch moves the average by momentum times the difference. If that is less than half the
    spacing of the type at that value, nothing moves: bfloat16 has 8 bits, so at a momentum of 0.01
    a variance stands still as soon as it is within 20 to 40 % of the truth.

Example
    model.bfloat16(), then training.

Use instead
    Keep these layers in float32, which torch.autocast does; input may be of a half type all the
    same. finding.mend() does it; PyTorch takes float32 buffers only together with float32 γ and β.

When it is right
    In a model that only serves: rounding the statistics once does little harm. In evaluation mode
    it is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import count, still_in_training, values_of
from normkit.doctor.treatments import MOMENTUM, together, widen

MANY = 0.25


def _stuck(one: Norm) -> Tensor:
    """Channels in which a step of a batch rounds away."""
    mean, var = values_of(one) or (torch.empty(0), torch.empty(0))
    momentum = one.momentum or MOMENTUM
    stored = [tensor.detach().cpu().flatten() for tensor in one.stats or ()]
    steps = momentum * 0.1 * var.clamp_min(0).sqrt(), momentum * 0.1 * var
    stepped = [v + step for v, step in zip((mean, var), steps, strict=True)]
    same = [new.to(old.dtype) == old for new, old in zip(stepped, stored, strict=True)]
    return same[0] | same[1]


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers whose average stands still by rounding."""
    half = (torch.float16, torch.bfloat16)
    still = still_in_training(exam)
    norms = [
        one for one in exam.norms
        if one.stats is not None and one.stats[0].dtype in half
        and id(one.layer) not in still and one.momentum != 0
    ]  # fmt: skip
    if not norms:
        return
    stuck = torch.cat([_stuck(one) for one in norms])
    part, dtype = float(stuck.double().mean()), str(norms[0].stats[0].dtype).removeprefix("torch.")  # type: ignore[index]
    yield Finding(
        "warning" if part > MANY and exam.model.training else "note",
        tuple(one.name for one in norms),
        f"The running statistics of {count(norms)} are {dtype}. In {100 * part:.0f} % of their "
        f"{len(stuck):,} channels a batch a tenth of a deviation away, or of 10 % more variance, "
        f"moves nothing in training: the step rounds away (threshold {100 * MANY:.0f} %).",
        "keep normalization layers in float32, and use torch.autocast",
        part,
        together(widen(norms), exam.recalibrate()),
    )
