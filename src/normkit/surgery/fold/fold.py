"""Fold normalization layers into the layers before or after them, for evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from normkit.compat import has_global_hooks
from normkit.errors import DataError, OptionError, StatisticsError, message
from normkit.handle import Changed, Handle, run, warn_skipped
from normkit.statistics.batches.run_model import Forward, check_batch
from normkit.statistics.batches.tensors import tensors_in
from normkit.statistics.check_arguments import check_function, check_has_values, check_model
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.printing.describe import some
from normkit.surgery.fold.hosts import is_host
from normkit.surgery.fold.passes import Passes
from normkit.surgery.fold.plan import NOT_REACHED
from normkit.surgery.fold.trial import try_folds
from normkit.surgery.fold.values import Recording
from normkit.surgery.modules import walk

__all__ = ["check_arguments", "fold", "fold_model"]


def fold(model: nn.Module, example: Any, *, forward: Forward | None = None) -> Handle:
    r"""Fold batch normalization into the layers before or after it, in place, for evaluation.

    In evaluation a batch normalization scales and shifts each channel, y = s·x + t, which the
    convolution before it can do with other weights,

    .. math::
        s\,(W x + b) + t = (s W)\,x + (s b + t), \qquad s = \gamma / \sqrt{\sigma^2 + \epsilon},
        \quad t = \beta - s \mu

    or the one after it, W(s·x + t) + b = (W s)·x + (b + W t). Folded are the batch normalizations
    of ``torch.nn`` and of this package, frozen ones, instance normalization with running
    statistics and :class:`normkit.Scale`; into convolutions of any rank, transposed and grouped
    ones, linear layers, and γ and β of another normalization before it. Activations of a layer
    (``act=``) remain as a module of ``torch.nn`` in its place, else an ``nn.Identity`` does.

    Which layer comes before another is not read from the order in which they were defined: the
    example is run, and its values are followed. Between the two there may be what passes a scale
    and shift: averages, reshaping, concatenation; maxima if no scale is negative; and into the
    layer after, padding with zeros if there is no shift. A layer is folded if that is exact for
    every use of its neighbour in this pass: one that is called several times, whose output is used
    elsewhere, seen by a hook or written to, whose weights are tied, parametrized or pruned, is
    left, and the reason listed. What the example does not reach is left too. Where the model's code
    takes another path for other inputs (a layer chosen by an argument), that path is not seen: it
    is wrong where it uses a layer that has changed, and the handle says so where there are layers
    that the example did not reach. Twice the samples and images larger by 1 are tried too.

    Each fold is checked in float64, on random values, and the whole model on the example; a fold
    that fails is reverted and listed.

    Args:
        model: any module in evaluation mode. Afterwards it is for evaluation alone: its
            normalization is gone, and its ``state_dict`` lacks the entries of folded layers and
            has a bias for each layer that had none. Wrap or compile it afterwards.
        example: a batch, as :func:`normkit.recalibrate` takes them: a tensor, a tuple that begins
            with the model's input, or a mapping. One or two samples are enough.
        forward: function that runs the model on the example, ``forward(model, example)``; for
            models that take something else.

    Returns:
        A handle: ``print`` shows which layers were folded and into which, and which were not and
        why. ``.undo()`` restores all layers and weights bit for bit.

    Raises:
        TypeMismatchError: ``model`` is no module, is scripted, or needs other inputs.
        OptionError: it is in training mode, wrapped, compiled or sharded.
        StatisticsError: it has no values, is lazy, or returns no tensor; or the folded model as a
            whole differs from what it was.
        DataError: the example holds no tensor. The model is unchanged in all these cases.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> handle = fold(model, torch.randn(1, 3, 8, 8))
    >>> print(handle)
    fold: 1 changed, 0 skipped
      1  nn.BatchNorm2d → nn.Identity: into 0...
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d and model[0].bias is None
    True
    """
    check_arguments(model, "fold", example, forward)
    return fold_model(model, Passes(model, example, forward))


def fold_model(model: nn.Module, passes: Passes) -> Handle:
    """Fold a model whose arguments were checked, and which ran on the example."""
    folds, skipped, recording = try_folds(model, passes)
    notes = _notes(model, recording)
    if not folds:
        warn_skipped("fold changed nothing, and", skipped)
        return Handle("fold", [], skipped, [], notes)
    steps = [fold.step() for fold in folds]
    before = passes.run()
    run(steps)
    try:
        notes.insert(0, passes.check_own(before))
    except BaseException:
        for step in reversed(steps):
            step.undo()
        raise
    if unreached := [row.name for row in skipped if row.why == NOT_REACHED]:
        notes.append(
            f"the example takes one of several paths, without {some(unreached)}: another path is "
            "wrong where it uses a layer that has changed"
        )
    notes.append("for evaluation: in training, what was folded does not normalize any more")
    changed = [
        Changed(f.merge.name, f.cls, type(f.rest), note=f"into {', '.join(f.merge.hosts)}")
        for f in folds
    ]
    return Handle("fold", changed, skipped, steps, notes)


def check_arguments(model: nn.Module, verb: str, example: Any, forward: Forward | None) -> None:
    """Raise where the model cannot be folded, before it is run.

    Raises:
        TypeMismatchError, OptionError, StatisticsError, DataError: as :func:`fold`.
    """
    check_model(model, verb, example)
    check_function(forward, "forward", "forward(model, example)")
    check_has_values(model)
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise StatisticsError(
                message("an initialized model", f"{name or 'a model'}, lazy and without input yet",
                        "run the model once on any batch")
            )  # fmt: skip
        compiled = "_orig_mod" in module._modules or module._compiled_call_impl is not None
        wrapped = isinstance(
            module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
        )
        if compiled or wrapped:
            kind = "a compiled one" if compiled else f"one in {type(module).__name__}"
            at = f" at {name}" if name else ""
            raise OptionError(
                message("a model that is neither compiled nor wrapped", kind + at,
                        "pass the module inside, and compile or wrap it afterwards")
            )  # fmt: skip
    if is_sharded(model):
        raise OptionError(message("a model whose weights are not sharded", "a sharded one",
                                  "gather its weights first"))  # fmt: skip
    if has_global_hooks():
        raise OptionError(message("no hooks for the calls of all modules", "some, as of a profiler",
                                  "remove them while folding"))  # fmt: skip
    if model.training:
        raise OptionError(message("a model in evaluation mode, as only there batch normalization "
                                  "is a scale and shift", "a model in training mode",
                                  "call model.eval() first"))  # fmt: skip
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise OptionError(message("to be called outside autocast, which would round the checks",
                                  "a call inside it", f"call {verb} before the block"))  # fmt: skip
    check_batch(model, example, forward)
    if any(tensor.numel() == 0 for tensor in tensors_in(example)[:1]):
        raise DataError(message("an example with a sample", "an empty one", "pass one sample"))


def _notes(model: nn.Module, recording: Recording) -> list[str]:
    """Return what a reader has to know beside the table."""
    rows = [(name, m) for name, m in walk(model) if is_host(m) and id(m) not in recording.reached]
    if not rows:
        return []
    return [f"not reached by the example, and as it was: {some([name for name, _ in rows])}"]
