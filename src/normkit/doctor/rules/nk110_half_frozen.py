"""Half of a layer is frozen: γ and β, but not the running statistics, which still move.

What it checks
    Whether the γ and β of a layer have requires_grad off, while model.train() puts the layer into
    training mode and other parameters of the model train. A note where a part of the same shape
    trains beside the frozen one, which then follows it as a momentum encoder does.

Why it is bad
    requires_grad says nothing about statistics. Each batch still normalizes itself and moves the
    average, so the frozen backbone is another function at every step, drifts to the statistics of
    the new and often small data, and no longer fits its own frozen weights.

Example
    for p in backbone.parameters(): p.requires_grad = False

Use instead
    nk.freeze(backbone), which holds the statistics too, through model.train().

When it is right
    Where the statistics shall adapt to the new data, and the batches are large; in the momentum
    encoders of self-supervised learning.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from normkit.doctor.examination import Examination
from normkit.doctor.finding import Finding
from normkit.doctor.norms import Norm
from normkit.doctor.states import affine_parameters, count, still_in_training
from normkit.doctor.treatments import freezing


def check(exam: Examination) -> Iterator[Finding]:
    """Find layers of which one half is frozen."""
    if not any(p.requires_grad for p in exam.model.parameters()):
        return
    still = still_in_training(exam)
    norms: dict[bool, list[Norm]] = {False: [], True: []}
    twins = _with_a_twin(exam.model)
    for one in exam.norms:
        if one.stats is None or id(one.layer) in still or one.momentum == 0:
            continue
        affine = affine_parameters(one)
        if affine and not any(p.requires_grad for p in affine):
            norms[any(name in twins for name in _ancestors(one.name)[1:])].append(one)
    if alone := norms[False]:
        yield Finding(
            "warning",
            tuple(one.name for one in alone),
            f"γ and β are frozen (requires_grad=False) in {count(alone)} whose running statistics "
            "move with every batch in training mode, while other parameters train.",
            "nk.freeze(backbone), and model.train() leaves it frozen",
            float(len(alone)),
            freezing(alone),
        )
    if following := norms[True]:
        yield Finding(
            "note",
            tuple(one.name for one in following),
            f"γ and β are frozen (requires_grad=False) in {count(following)} whose running "
            "statistics move in training mode, in a part that has a twin that trains, as momentum "
            "encoders do.",
            "nothing if it follows its twin; nk.freeze(part) if it is to stay as it is",
            float(len(following)),
        )


def _with_a_twin(model: nn.Module) -> set[str]:
    """Name the largest frozen parts beside which one of the same tensors trains.

    Blocks of a Sequential often have the same shapes, and are no twins.
    """
    named = dict(model.named_modules())
    frozen = {name for name, module in named.items() if _is_frozen(module)}
    largest = {name for name in frozen if not any(each in frozen for each in _ancestors(name)[1:])}
    if not largest:
        return set()
    trained = [_shapes(module) for name, module in named.items() if name not in frozen]
    return {
        name
        for name in largest
        if not isinstance(named[name.rpartition(".")[0]], nn.Sequential)
        and _shapes(named[name]) in trained
    }


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _shapes(module: nn.Module) -> list[tuple[str, object]]:
    return [(name, None if is_lazy(p) else p.shape) for name, p in module.named_parameters()]


def _ancestors(name: str) -> list[str]:
    """Return the name of a module and of those around it, but for the model, the nearest first.

    >>> _ancestors("a.b.c")
    ['a.b.c', 'a.b', 'a']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
