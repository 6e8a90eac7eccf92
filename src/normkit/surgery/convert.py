"""Convert normalization layers to another kind, in place, keeping their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from normkit.errors import OptionError, message
from normkit.handle import Changed, Handle, Step, run, warn_skipped
from normkit.statistics.batches.run_model import Forward
from normkit.statistics.check_arguments import (
    check_batches,
    check_function,
    check_has_values,
    check_model,
    check_samples,
)
from normkit.statistics.layers.preserve import is_sharded
from normkit.statistics.processes.ranks import ranks_of
from normkit.surgery.conversion import to_torch
from normkit.surgery.conversion.calls import Calls, take
from normkit.surgery.conversion.kinds import TORCH, Target, To, parse
from normkit.surgery.conversion.matching import Matching
from normkit.surgery.conversion.plan import plan

__all__ = ["convert"]


def convert(
    model: nn.Module,
    to: To,
    *,
    group_size: int | None = None,
    batches: Iterable[Any] | None = None,
    samples: int | None = 512,
    forward: Forward | None = None,
) -> Handle:
    """Convert the normalization layers of ``model`` to another kind, in place.

    ==================  ======================================================================
    ``to``              each layer becomes a
    ==================  ======================================================================
    ``"batch"``         :class:`normkit.BatchNorm2d`
    ``"sync"``          :class:`normkit.SyncBatchNorm`, over all processes, or by ``group_size``
    ``("ghost", 32)``   :class:`normkit.GhostBatchNorm2d` of 32 samples
    ``"renorm"``        :class:`normkit.BatchRenorm2d`, with the paper's limits
    ``("domain", 3)``   :class:`normkit.DomainBatchNorm2d`; all banks start equal
    ``"frozen"``        :class:`normkit.FrozenBatchNorm2d`
    ``"group"``         :class:`normkit.GroupNorm` of about 16 channels a group: of the divisors of
                        C the one nearest to it in ratio
    ``("group", 32)``   :class:`normkit.GroupNorm` of 32 groups
    ``"layer"``         :class:`normkit.GroupNorm` of one group: the whole sample, of any size
    ``"instance"``      :class:`normkit.InstanceNorm2d`
    ``"torch"``         class of ``torch.nn``, exactly, for tools that know no others
    ==================  ======================================================================

    or its 1d or 3d form. Each layer stays the same object, with γ and β, momentum, activation and
    hooks; only its class and the attributes of the new kind change. So optimizers, other references
    and shared layers stay valid, the model itself may be such a layer, and a layer frozen by
    :func:`normkit.freeze` stays frozen as long as it has statistics.

    **Among batch normalizations** ("batch" to "frozen") evaluation stays as it was. ``"frozen"``
    turns γ and β into buffers, which no optimizer updates; ``"batch"`` turns those of layers that
    are constant by construction, of any library, into new parameters, which an optimizer has to be
    given. The banks of ``("domain", D)`` share γ and β. Momentum is kept, also by way of
    ``"frozen"`` or ``"group"``: for ``"renorm"`` the paper uses 0.01.

    **"group", "layer", "instance", and "batch" from these** normalize by other values. γ and β are
    taken over, running statistics leave the ``state_dict`` and return by ``undo()`` (those of a
    batch normalization from such layers start anew); the table says that the network has to be
    trained again. Layers of ``GroupNorm`` keep their groups for ``"group"``. ``"layer"`` is not
    ConvNeXt's :class:`normkit.LayerNorm2d`, which pools the channels of one position.

    ``batches`` are for solving: the converted layers, one after the other, get the γ and β with
    which mean and deviation of each channel of their outputs are the former ones on these batches
    (in evaluation mode, before residual and activation); and a batch normalization its running
    statistics. The table shows how far the outputs are from the former ones before and after, as a
    root mean square in deviations. It makes a pass over the batches for each layer. The
    lab's convolutional network falls from 82 % to 35 % as "group" with γ and β taken over and comes
    to 79 % solved; one epoch of training brings either to 85 % (docs/conversion.md). Batches
    also show how many axes the inputs have of layers that take any: without them ``GroupNorm`` and
    ``SyncBatchNorm`` do not become ``"batch"``, nor what may get (N, C) ``"instance"``.

    **"torch"** makes every layer of this package ``torch.nn``'s namesake, with tensors and hooks,
    and undoes the fused ``Sequential`` of :func:`normkit.accelerate`. Evaluation computes the same,
    and where training would differ the table says how: ghosts, renormalization and debiased
    averages end; frozen layers are put into evaluation mode, which the next ``train()`` ends.
    ``act`` becomes a module: ``name`` is now ``Sequential(layer, activation)``, whose state dict
    has ``name.0.weight`` in place of ``name.weight``. Skipped with a reason is what would compute
    something else: layers that ``torch.nn`` lacks (Scale, LayerNorm2d, several domains), a layer
    with ``act`` that is the model itself, has hooks that see the activation, or is referred to past
    the modules; and, where ``batches`` show it, one that is called with ``residual=``, which
    otherwise raises a ``TypeError`` at the next call.

    Skipped and listed for all kinds: subclasses, parametrized, lazy and scripted layers, those of
    ``torch.ao`` and of exported graphs, forms that do not exist; for ``"frozen"`` also γ and β that
    are sharded or computed from other parameters. Where no layer could be converted, a warning says
    so.

    Args:
        model: any module. Wrap it in ``DistributedDataParallel`` afterwards.
        to: the kind of layer, see the table.
        group_size: for "sync", how many processes share statistics; by ranks that follow each
            other, so the number of processes of a node keeps the exchange within nodes.
            Synchronizing over 64 GPUs took about twice the time, and groups of 8 lost no accuracy
            (github.com/facebookresearch/swav, issue 22). All processes must call this.
        batches: an iterable of batches, as :func:`normkit.recalibrate` takes them.
        samples: keep the batches up to so many samples, all of them for None. They stay in memory.
        forward: called as ``forward(model, batch)`` in place of the rule for batches.

    Returns:
        A handle: ``print`` shows which layers were converted and which skipped, and why.
        ``.undo()`` restores each layer's kind and keeps the present weights and statistics,
        except those that differ in shape or place or were solved for (of domains, of a frozen
        layer, of one without statistics): they return to their values before the conversion.

    Raises:
        TypeMismatchError: ``model`` is no module, or is scripted; ``batches`` or ``forward`` are
            none.
        OptionError: ``to`` names no such kind; groups that do not divide the channels of a layer,
            or the processes; ``batches`` to solve by in several processes or a sharded model.
        StatisticsError: a layer's statistics are not finite, for ``"frozen"``; batches on which a
            layer to solve is not finite, or none. The model is unchanged after any exception.

    Source: Wu & He 2018, arXiv 1803.08494, table 3 (16 channels a group).

    >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    >>> handle = convert(model, ("ghost", 16))
    >>> print(handle)
    convert: 1 changed, 0 skipped
      1  nn.BatchNorm2d → normkit.GhostBatchNorm2d
    >>> model[1].ghost_size
    16
    >>> handle.undo()
    >>> type(model[1]) is nn.BatchNorm2d
    True
    >>> print(convert(model, "group"))
    convert: 1 changed, 0 skipped
      1  nn.BatchNorm2d → normkit.GroupNorm: 2 groups of 16 channels
      1 layer now normalizes by other values: train the network again
    """
    check_model(model, "convert", batches)
    target = parse(to, group_size)
    stored = _stored(model, batches, samples, forward)
    calls = Calls() if stored is None else Calls.observe(model, stored[0], forward)
    if target.name == TORCH:
        changed, skipped, steps = to_torch.plan(model, calls)
        run(steps)
        return _handle(Handle("convert", changed, skipped, steps), False)
    planned = plan(model, target, calls)
    differing = planned.differing(target)
    matching = None
    if stored and differing:
        _check_alone(model)
        matching = Matching(model, differing, stored, forward)
    changed, steps = planned.rows_and_steps(model, target)
    run(steps)
    notes = [_train_again(len(differing))] if differing else []
    if matching is not None:
        changed, note = _solve(matching, target, changed, steps)
        notes.insert(0, note)
    return _handle(Handle("convert", changed, planned.skipped, steps, notes), planned.done)


def _stored(
    model: nn.Module, batches: Iterable[Any] | None, samples: int | None, forward: Forward | None
) -> list[Any] | None:
    """Validate the arguments around batches, and return those that are used."""
    check_function(forward, "forward", "forward(model, batch)")
    check_samples(samples)
    if batches is None:
        return None
    check_batches(batches)
    check_has_values(model)
    return take(batches, samples)


def _check_alone(model: nn.Module) -> None:
    """Raise where other processes would solve for other values, or hold parts of them."""
    alone = ranks_of(None).size == 1 and not is_sharded(model)
    if not alone:
        raise OptionError(
            message(
                "one process and an unsharded model to solve for γ and β",
                "batches= in several processes, or for a sharded model",
                "convert and solve before init_process_group or sharding, and load the state dict "
                "in every process",
            )
        )


def _solve(
    matching: Matching, target: Target, changed: list[Changed], steps: list[Step]
) -> tuple[list[Changed], str]:
    """Solve for γ and β, and return the rows with the distances; undo everything on errors."""
    steps.append(matching.step())
    try:
        matching.solve(measures=target.kind.across)
    except BaseException:
        for step in reversed(steps):
            step.undo()
        raise
    rows = []
    for row in changed:
        if (pair := matching.distances.get(row.name)) is not None:
            first, second = pair
            note = f"outputs {second:.2f} deviations off, {first:.2f} before solving"
            row = row._replace(note="; ".join(filter(None, (row.note, note))))
        rows.append(row)
    return rows, matching.summary()


def _train_again(layers: int) -> str:
    verb = "layer now normalizes" if layers == 1 else "layers now normalize"
    return f"{layers} {verb} by other values: train the network again"


def _handle(handle: Handle, done: bool) -> Handle:
    if not (handle.changed or done):
        warn_skipped("convert changed nothing, and", handle.skipped, stacklevel=3)
    return handle
