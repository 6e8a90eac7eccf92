"""Measure inside a training step, with probes by name.

A probe is a context manager around one step's forward and backward pass. It yields a
:class:`Reading` and has filled it when it ends. It must leave the model, its buffers and the
random generators as they were: a run with a probe gives the same numbers as one without.

To add one, write a generator function here and put it in ``PROBES``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normkit.errors import OptionError, message

__all__ = ["HISTOGRAM_EDGES", "LEVELS", "PROBES", "Reading", "normal_quantiles", "probe"]

LEVELS = tuple((index + 0.5) / 100 for index in range(100))
"""The levels at which quantiles are kept: midpoints of a hundred equal shares."""

HISTOGRAM_EDGES = tuple(-6 + 12 * index / 60 for index in range(61))
"""Bounds of the histogram's bins; what lies outside is counted in no bin."""

SAMPLE = 65_536
NONLINEARITIES = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.LeakyReLU)


@dataclasses.dataclass
class Reading:
    """The readings of a probe: numbers and short vectors, by name."""

    scalars: dict[str, float | None] = dataclasses.field(default_factory=dict)
    vectors: dict[str, list[float]] = dataclasses.field(default_factory=dict)


Probe = Callable[[nn.Module], contextlib.AbstractContextManager[Reading]]


def normal_quantiles() -> tuple[float, ...]:
    """Return the quantiles of N(0, 1) at ``LEVELS``.

    >>> round(normal_quantiles()[97], 2)
    1.96
    """
    return tuple(NormalDist().inv_cdf(level) for level in LEVELS)


@contextlib.contextmanager
def activations(model: nn.Module) -> Iterator[Reading]:
    """Measure the input of the nonlinearity after each convolution, in the training step itself.

    For the k-th convolution: ``activation{k}_mean`` and ``_std``, and as vectors its quantiles at
    ``LEVELS`` and the density in the bins of ``HISTOGRAM_EDGES`` (per unit, so that it can be
    laid over a normal density). All elements of the batch count alike, whatever their channel.
    """
    reading = Reading()
    with contextlib.ExitStack() as hooks:
        for number, module in enumerate(nonlinearities(model), start=1):
            name = f"activation{number}"

            def see(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                describe(name, inputs[0].detach(), reading)

            hooks.enter_context(contextlib.closing(_Hook(module.register_forward_pre_hook(see))))
        yield reading


class _Hook:
    """A hook that ``close`` removes, for :func:`contextlib.closing`."""

    def __init__(self, handle: RemovableHandle) -> None:
        self.close = handle.remove


def nonlinearities(model: nn.Module) -> list[nn.Module]:
    """Return the first nonlinearity after each convolution, in module order.

    Raises:
        OptionError: the model has no convolution with a nonlinearity module after it.

    >>> len(nonlinearities(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())))
    1
    """
    modules: list[nn.Module] = []
    after_convolution = False
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            after_convolution = True
        elif isinstance(module, NONLINEARITIES) and after_convolution:
            modules.append(module)
            after_convolution = False
    if not modules:
        raise OptionError(
            message(
                "a nonlinearity module after a convolution, for the probe 'activations'",
                type(model).__name__,
                "use a model whose nonlinearities are modules, e.g. convnet4",
            )
        )
    return modules


def describe(name: str, tensor: Tensor, reading: Reading) -> None:
    """Add moments, quantiles and density of all elements of a tensor to a reading."""
    values = tensor.float().flatten()
    finite = bool(torch.isfinite(values).all())
    reading.scalars[f"{name}_mean"] = values.mean().item() if finite else None
    reading.scalars[f"{name}_std"] = values.std(correction=0).item() if finite else None
    if not finite:
        return
    # Every n-th element: deterministic, and over all channels as the stride is made odd.
    stride = max(1, values.numel() // SAMPLE) | 1
    sample = values[::stride]
    levels = torch.tensor(LEVELS, dtype=sample.dtype, device=sample.device)
    reading.vectors[f"{name}_quantiles"] = [
        round(value, 5) for value in torch.quantile(sample, levels).tolist()
    ]
    low, high = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]
    bins = len(HISTOGRAM_EDGES) - 1
    inside = sample[(sample >= low) & (sample <= high)]
    counts = torch.histc(inside, bins=bins, min=low, max=high)
    density = counts / (sample.numel() * (high - low) / bins)
    reading.vectors[f"{name}_density"] = [round(value, 5) for value in density.tolist()]


@contextlib.contextmanager
def gradients(model: nn.Module) -> Iterator[Reading]:
    """Measure the norm of the loss's gradient in each weight layer: ``gradient{k}_norm``."""
    reading = Reading()
    yield reading
    for number, module in enumerate(weight_layers(model), start=1):
        if module.weight.grad is not None:
            norm = module.weight.grad.norm()
            reading.scalars[f"gradient{number}_norm"] = norm.item() if norm.isfinite() else None


@contextlib.contextmanager
def layers(model: nn.Module) -> Iterator[Reading]:
    """Measure the input, the weight and the output gradient of each weight layer.

    For the k-th weight layer in order, before the optimizer's step:

    * ``layer{k}_input``: root mean square of its input;
    * ``layer{k}_weight``: Frobenius norm of its weight, without the bias;
    * ``layer{k}_gradient``: norm of the loss's gradient with respect to its output, that is before
      any normalizer. All elements of the batch count alike.

    A layer that is called more than once in the step is read over all calls together. Values that
    were not observed, or are not finite, are None.
    """
    reading = Reading()
    weighted = weight_layers(model)
    # Sums of squares in double: they neither overflow nor lose a gradient that is nearly nothing.
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)

    def add(name: str, values: Tensor) -> None:
        squares[name] += values.detach().double().square().sum().item()
        counts[name] += values.numel()

    with contextlib.ExitStack() as hooks:
        for number, module in enumerate(weighted, start=1):
            name = f"layer{number}"

            def see(
                _: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, name: str = name
            ) -> None:
                add(f"{name}_input", inputs[0])
                if out.requires_grad:
                    out.register_hook(lambda gradient: add(f"{name}_gradient", gradient))

            hooks.enter_context(contextlib.closing(_Hook(module.register_forward_hook(see))))
        yield reading
    for number, module in enumerate(weighted, start=1):
        name = f"layer{number}"
        add(f"{name}_weight", module.weight)
        for what, mean in (("input", True), ("weight", False), ("gradient", False)):
            key = f"{name}_{what}"
            value = squares[key] / (counts[key] if mean and counts[key] else 1)
            valid = counts[key] > 0 and math.isfinite(value)
            reading.scalars[key] = math.sqrt(value) if valid else None


def weight_layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Return all convolutions and dense layers, in module order.

    >>> len(weight_layers(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
    2
    """
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


PROBES: dict[str, Probe] = {"activations": activations, "gradients": gradients, "layers": layers}
"""The probes by the name that a run's description uses."""


def probe(name: str, model: nn.Module) -> contextlib.AbstractContextManager[Reading]:
    """Return the probe of this name, on this model.

    Raises:
        OptionError: there is no such probe.
    """
    if name not in PROBES:
        raise OptionError(
            message(
                f"one of the probes {', '.join(sorted(PROBES))}", repr(name), "use one of these"
            )
        )
    return PROBES[name](model)
