"""Too small an ε for its type.

What it checks
    Whether ε is 0, or below 1e-7 in a layer whose parameters or statistics are float16. Frozen
    layers do not count: detectors set theirs to 0, and their variances are known.

Why it is bad
    Where all values of a pool are equal, as in padding, empty regions and dead channels, the layer
    multiplies by 1/√ε. With 0, LayerNorm and GroupNorm then return NaN, and RMSNorm where all
    values are 0. BatchNorm raises ValueError in training mode. In float16, which ends at 65,504,
    gradients overflow from about 1e-9, and batch normalization returns NaN from about 1e-10;
    GradScaler then skips steps.

Example
    nn.LayerNorm(768, eps=1e-12).half()

Use instead
    ε = 1e-5; or these layers in float32, or bfloat16, whose range is that of float32.

When it is right
    In a model that only serves, LayerNorm in float16 is unharmed. That is a note.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding, Severity, Treatment
from normkit.doctor.norms import Norm
from normkit.doctor.states import count, eps_of, still_in_training, values_of
from normkit.doctor.treatments import set_attributes

SMALL, USUAL = 1e-7, 1e-5


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers that an input without variance breaks."""
    norms = [one for one in exam.norms if not one.frozen]
    eps = {one.name: eps_of(one) for one in norms}
    tiny = [one for one in norms if 0 < (eps[one.name] or 0) < SMALL and _is_half(one)]
    for (severity, what), zero in _without_eps(exam, norms).items():
        yield Finding(
            severity,
            tuple(one.name for one in zero),
            f"ε is 0 in {count(zero)}: {what}.",
            f"eps={USUAL:g}",
            0.0,
            _larger(zero),
        )
    if tiny:
        least = min(eps[one.name] or SMALL for one in tiny)
        yield Finding(
            "warning" if exam.model.training else "note",
            tuple(one.name for one in tiny),
            f"ε is {least:g} in {count(tiny)} in float16 (threshold {SMALL:g}): an input without "
            f"variance is multiplied by {least**-0.5:,.0f} on the way back, and float16 ends at "
            "65,504.",
            f"eps={USUAL:g}, or these layers in float32",
            least,
            _larger(tiny),
        )


def _without_eps(exam: Examination, norms: list[Norm]) -> dict[tuple[Severity, str], list[Norm]]:
    """Group the layers with an ε of 0 by what becomes of an input without variance."""
    groups: dict[tuple[Severity, str], list[Norm]] = {}
    still = still_in_training(exam)
    for one in norms:
        if eps_of(one) != 0:
            continue
        values = values_of(one)
        severity: Severity = "warning"
        if one.kind == "rms":
            what = "an input of zeros alone, such as padding, gives NaN"
        elif one.kind != "batch":
            what = "an input without variance gives NaN"
            if one.kind == "instance" and not type(one.layer).__module__.startswith("normkit."):
                severity = "note"
                what = (
                    "an input without variance gives β on the CPU, which PyTorch does not promise"
                )
        elif one.stats is None or (exam.model.training and id(one.layer) not in still):
            what = "PyTorch raises ValueError when it normalizes by the batch"
        elif values is not None and bool((values[1] == 0).any()):
            what = "a channel of variance 0 gives NaN"
        else:
            severity, what = "note", "evaluation is fine, and training mode raises ValueError"
        groups.setdefault((severity, what), []).append(one)
    return groups


def _larger(norms: list[Norm]) -> Treatment | None:
    named = all(hasattr(one.layer, "eps") for one in norms)
    return set_attributes("eps", norms, {"eps": USUAL}, trial=True) if named else None


def _is_half(one: Norm) -> bool:
    tensors = (one.weight, *(one.stats or ()))
    return any(tensor is not None and tensor.dtype == torch.float16 for tensor in tensors)
