"""Keep outputs of normalization layers out of memory until the backward pass needs them."""

from __future__ import annotations

import torch
from torch import nn

from normkit.compat import top_saved_tensor_hooks
from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Skipped, Step, run
from normkit.nn.adaptivegroupnorm import AdaptiveGroupNorm
from normkit.nn.adaptivelayernorm import AdaptiveLayerNorm
from normkit.nn.filterresponsenorm import FilterResponse
from normkit.nn.freezing import base_class
from normkit.nn.halfinstancenorm import HalfInstanceNorm2d
from normkit.nn.layer import Layer
from normkit.statistics.check_arguments import check_model
from normkit.surgery.accelerate import FAMILY
from normkit.surgery.memory.hooks import COMPILED, Enter, active, is_compiled, leave, stop
from normkit.surgery.modules import walk

__all__ = ["save_memory"]

# These compute more than one operation of the kernels.
_SEVERAL = (AdaptiveGroupNorm, AdaptiveLayerNorm, FilterResponse, HalfInstanceNorm2d)


def save_memory(model: nn.Module, *, blocks: bool = False) -> Handle:
    r"""Compute the outputs of ``model``'s normalization layers again in backward, not keep them.

    The convolution or linear layer after a normalization keeps its input for the backward pass:

    .. math::
        y = \mathrm{act}(\gamma\,(x - \mu)\,r + \beta)

    but the normalization keeps :math:`x`, :math:`\mu` and :math:`r` anyway. So :math:`y` is
    computed again from these when it is first read, by one elementwise pass, shared by all that
    read it, and dropped. Gradients are equal to the last bit. Activations computed with a layer
    (``act=``) and ones that follow it at once (ReLU, ReLU6, LeakyReLU, SiLU, GELU, Hardswish) are
    computed again with it. Where PyTorch's kernels compute a layer, and for pools within a sample
    on a CPU, the moments are computed once more too.

    It applies to layers of this package, in eager mode: call :func:`normkit.accelerate` first for
    those of ``torch.nn``. A tensor is recognised by the node of the graph that it comes from and by
    its version, so one that was changed in place since is kept. While the model runs it has hooks
    on saved tensors; where others are active, as within ``torch.utils.checkpoint`` or
    ``save_on_cpu``, those have precedence.

    Args:
        model: any module; what it calls counts, not what is called outside its forward pass.
        blocks: compute outputs of residual blocks again too, ``act(norm(x) + residual)``, by
            ``layer(x, residual)`` or as ``out += identity`` and an activation in place. It saves
            more, and takes one more pass for each block since the last one that was kept.

    Returns:
        A handle: ``print`` shows the layers whose outputs are computed again, and those skipped
        and why. ``.undo()`` removes the hooks.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted.
        OptionError: it is compiled, it saves memory already with another ``blocks``, or this torch
            is older than 2.8, which does not tell whether other hooks are active.

    Warns:
        UserWarning: the model, or a part of it, is compiled afterwards, which saves nothing there.

    Note:
        What is written past the version of a tensor, as by ``y.data`` or NumPy, nobody sees: write
        to ``y``. A tensor that is modified in place after it was saved raises in the backward pass,
        as without hooks; with ``blocks`` also a residual. ``torch.func`` transforms within the
        model refuse hooks on saved tensors.

    Source: Bulò et al. 2018, arXiv 1712.02616 (In-Place Activated BatchNorm, which keeps y).

    >>> import normkit as nk
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nk.BatchNorm2d(8, act="relu"), nn.Conv2d(8, 8, 3))
    >>> handle = save_memory(model)
    >>> print(handle)
    save_memory: 1 changed, 0 skipped
      1  normkit.BatchNorm2d: output computed again in backward
    >>> model(torch.randn(2, 3, 8, 8)).sum().backward()
    >>> handle.undo()
    """
    check_model(model, "save_memory")
    _check_surroundings(model)
    changed: list[Changed] = []
    skipped: list[Skipped] = []
    for name, module in walk(model):
        if isinstance(module, Layer):
            why = _why_skipped(module)
            if why is None:
                cls = base_class(type(module))
                changed.append(Changed(name, cls, cls, note="output computed again in backward"))
            else:
                skipped.append(Skipped(name, type(module), why))
        elif isinstance(module, FAMILY):
            plain = type(module).__module__.startswith("torch.nn.modules.")
            what = "a layer of torch.nn" if plain else "a subclass of torch.nn's"
            when = "first" if plain else "first, before anything wraps its layers"
            why = f"{what}: call normkit.accelerate(model) {when}"
            skipped.append(Skipped(name, type(module), why))
    before = active(model)
    if before is not None and before.blocks != blocks:
        raise OptionError(
            message(
                f"blocks={before.blocks}, as save_memory was called with before",
                f"blocks={blocks}",
                "call .undo() of that handle first, or copy the model before save_memory",
            )
        )  # fmt: skip
    if before is not None:
        skipped = [Skipped(row.name, row.after, "computed again already") for row in changed]
        changed = []
    steps = [_recording(model, blocks)] if changed else []
    run(steps)
    return Handle("save_memory", changed, skipped, steps)


def _recording(model: nn.Module, blocks: bool) -> Step:
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def do() -> None:
        handles.append(model.register_forward_pre_hook(Enter(blocks), prepend=True))
        handles.append(model.register_forward_hook(leave, always_call=True))

    def undo() -> None:
        for handle in handles:
            handle.remove()
        stop(model)

    return Step(do, undo)


def _check_surroundings(model: nn.Module) -> None:
    if any(map(is_compiled, model.modules())):
        raise OptionError(message("a model in eager mode", "a compiled one", COMPILED))
    if top_saved_tensor_hooks is None:
        raise OptionError(
            message(
                "torch 2.8 or newer for save_memory", "an older one",
                "update torch, or use torch.utils.checkpoint",
            )
        )  # fmt: skip


def _why_skipped(layer: Layer) -> str | None:
    if layer._is_composed():
        return "composed of PyTorch's operations"
    if getattr(layer, "memory_efficient", False):
        return "keeps its output in place of its input already"
    if isinstance(layer, _SEVERAL):
        return "its output is put together of several, which are kept"
    return None
