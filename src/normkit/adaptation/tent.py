"""Adapt γ and β by entropy minimization: :func:`tent`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.parameter import Parameter, is_lazy

from normkit.adaptation.adapt import adaptation_steps
from normkit.adaptation.affine import find_affine
from normkit.adaptation.check_arguments import check_memory, check_prior
from normkit.adaptation.entropy import Logits
from normkit.adaptation.handle import Adaptation, OrderReport, set_evaluation
from normkit.adaptation.layers import find_adaptable
from normkit.adaptation.minimizer import EntropyMinimizer, minimize_in
from normkit.errors import OptionError, StatisticsError, message
from normkit.handle import Changed, Skipped, Step, list_skipped, run
from normkit.nn.freezing import can_freeze
from normkit.statistics.check_arguments import check_model
from normkit.statistics.layers.find import unwrap
from normkit.statistics.layers.preserve import is_sharded, overwrite
from normkit.surgery.freezable import check_finite

__all__ = ["Tent", "tent"]

Optimizers = Callable[[list[Parameter]], torch.optim.Optimizer]


class Tent(Adaptation):
    """Handle of :func:`tent`; ``.reset()`` also returns γ, β and the optimizer to their start.

    Attributes:
        steps: updates made since the start or the last reset.
        entropy: mean entropy of the last batch's predictions before its update, in nats.
    """

    _minimizer: EntropyMinimizer

    @property
    def steps(self) -> int:
        """Updates made since the start or the last reset."""
        return self._minimizer.steps

    @property
    def entropy(self) -> float | None:
        """Mean entropy of the last batch's predictions, in nats; None before the first."""
        return self._minimizer.entropy

    def _rows(self) -> list[str]:
        now = "" if self.entropy is None else f", entropy of the last batch {self.entropy:.3f} nats"
        rows = [*super()._rows(), f"  {self.steps} updates{now}"]
        if unreached := self._minimizer.unreached:
            rows.append(
                f"  {unreached} of the γ and β got no gradient from the last batch: unmoved"
            )
        return rows


def tent(
    model: nn.Module,
    prior: float = 0,
    *,
    memory: float = 0,
    optimizer: Optimizers | None = None,
    logits: Logits | None = None,
) -> Tent:
    r"""Adapt γ and β of ``model``'s normalization layers by minimizing the entropy of predictions.

    Each call of the model normalizes as in :func:`normkit.adapt` with ``prior`` and ``memory``,
    returns its output, and then makes one step of the optimizer on

    .. math:: \frac{1}{n} \sum_i - \sum_k p_{ik} \log p_{ik}

    for the softmax p of that output, with respect to γ and β alone. Layer, group and RMS
    normalization take part, and instance normalization with γ, β; statistics are adapted in those
    layers that keep running ones, if there are any.

    All else stays: weights, buffers, each ``requires_grad`` and ``.grad``, and evaluation mode, so
    dropout is off. The output carries no gradient. It works under ``no_grad``, ``inference_mode``
    and ``autocast``. A step whose loss or gradient is not finite is left out, and so is one on an
    empty batch.

    Over a long stream predictions may collapse onto few classes; call ``reset()`` now and then,
    after each batch for the episodic form. Where statistics are adapted, a stream in order is
    noticed as in ``adapt``, from at least four batches between resets. γ and β of half types are
    trained in float32. Several threads take turns.

    Args:
        model: a classifier, or one of each position, in any mode.
        prior: samples that the running statistics weigh; 0 as in the paper.
        memory: samples of the stream that statistics are of, as in ``adapt``.
        optimizer: function that makes an optimizer of a list of parameters; by default Adam with
            lr=1e-3, as in the paper for batches of 200.
        logits: function of the model's output that returns logits (N, K, \*); by default the output
            itself, or its entry ``logits``.

    Returns:
        A handle, also a context manager: ``.reset()`` returns γ, β and the optimizer exactly to
        their start, ``.undo()`` the whole model; ``.steps`` and ``.entropy`` tell what it does.

    Raises:
        TypeMismatchError: ``model`` is not a module, or is scripted; within a call: no logits.
        OptionError: an argument outside its range; an optimizer without γ and β, or one that calls
            a closure; a model that is adapted already; within the first call: probabilities.
        StatisticsError: no γ or β to train; weights that are sharded, or were made in inference
            mode; running statistics that are not finite. The model is unchanged.

    Note:
        Each process trains by itself: under ``DistributedDataParallel`` γ and β differ between
        ranks. Weights shared with other modules are trained where they are γ or β of a layer here.

    Source: Wang et al. 2021, arXiv 2006.10726.

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.randn(32, 2)
    >>> with tent(model) as handle, torch.no_grad():
    ...     for _ in range(3):
    ...         y = model(x)
    >>> handle.steps, y.requires_grad
    (3, False)
    """
    check_model(model, "tent")
    check_prior(prior)
    check_memory(memory)
    for name, function in (("optimizer", optimizer), ("logits", logits)):
        if function is not None and (isinstance(function, torch.optim.Optimizer)
                                     or not callable(function)):  # fmt: skip
            example = {
                "optimizer": "lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=.9)",
                "logits": "lambda output: output[0]",
            }[name]
            raise OptionError(
                message(f"{name} as a function", type(function).__name__, f"pass {name}={example}")
            )
    inner = unwrap(model)
    layers, unadapted = find_adaptable(inner, "tent", required=False)
    affine, skipped = find_affine(inner)
    _check(inner, [p for _, _, p in affine], skipped)
    if prior:
        check_finite([(one.name, one.layer) for one in layers])
    order = OrderReport()
    rows, steps, normalizers = adaptation_steps(inner, layers, prior, memory, order, constant=False)
    notes = {row.name: f"{row.note}, " for row in rows}
    notes_on_statistics = {row.name: f"; statistics as remembered: {row.why}" for row in unadapted}
    by_layer: dict[str, tuple[type, list[str]]] = {}
    # Before classes change.
    for name, label, _ in affine:
        layer = inner.get_submodule(name)
        by_layer.setdefault(name, (type(layer), []))[1].append(label)
    changed = [
        Changed(name, cls, cls, note=f"{notes.pop(name, '')}{' and '.join(labels)} trained"
                                     f"{notes_on_statistics.get(name, '')}")
        for name, (cls, labels) in by_layer.items()
    ]  # fmt: skip
    changed += [row for row in rows if row.name in notes]
    parameters = list({id(p): p for _, _, p in affine}.values())
    minimizer = EntropyMinimizer(parameters, optimizer or _adam, logits)
    everything = [
        set_evaluation(model), *steps, minimize_in(inner, minimizer), _restoring(parameters),
    ]  # fmt: skip
    run(everything)
    named = {row.name for row in skipped} | set(by_layer)
    skipped += [row for row in unadapted if row.name not in named]
    resets = [*(n.reset for n in normalizers), minimizer.reset]
    handle = Tent("tent", changed, skipped, everything, order=order, resets=resets)
    handle._minimizer = minimizer
    return handle


def _adam(parameters: list[Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _check(inner: nn.Module, parameters: Sequence[Parameter], skipped: Sequence[Skipped]) -> None:
    if not parameters:
        raise StatisticsError(
            message(
                "a normalization layer with γ or β that is not frozen",
                f"a {type(inner).__name__} without one"
                + (f" ({list_skipped(skipped)})" if skipped else ""),
                "normkit.unfreeze(model) first, or adapt statistics alone: normkit.adapt(model)",
            )
        )
    if any(is_lazy(p) for p in inner.parameters()):
        raise StatisticsError(
            message(
                "lazy layers to be initialized, as their first input sets their sizes",
                f"a {type(inner).__name__} with some that have had no input",
                "run the model once on any batch",
            )
        )
    if is_sharded(inner) or any(hasattr(p, "device_mesh") for p in parameters):
        raise StatisticsError(
            message("weights that are whole", "sharded ones", "adapt the model before sharding it")
        )
    if any(p.is_inference() for p in inner.parameters()):
        raise StatisticsError(
            message(
                "weights that can have gradients",
                "some made in inference mode",
                "build and load the model outside torch.inference_mode()",
            )
        )
    if not can_freeze(inner):
        raise StatisticsError(
            message(
                "a model whose class may have subclasses",
                f"a {type(inner).__name__}, which customizes subclassing or copying",
                "wrap it: normkit.tent(torch.nn.Sequential(model))",
            )
        )


def _restoring(parameters: Sequence[Parameter]) -> Step:
    """Return the step that remembers γ and β, and whose reverse restores them."""
    before: list[torch.Tensor] = []

    def do() -> None:
        before.extend(p.detach().clone() for p in parameters)

    def undo() -> None:
        for parameter, values in zip(parameters, before, strict=False):
            overwrite(parameter.detach(), values.to(parameter.device))
        before.clear()

    return Step(do, undo)
