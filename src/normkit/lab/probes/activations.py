"""The inputs of the nonlinearities after convolutions: their distribution, whole or by channel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from statistics import NormalDist

import torch
from torch import Tensor, nn

from normkit.errors import OptionError, message
from normkit.lab.probes.reading import Hook, Reading, Step

__all__ = [
    "HISTOGRAM_EDGES",
    "LEVELS",
    "activations",
    "channels",
    "describe",
    "nonlinearities",
    "normal_quantiles",
]

LEVELS = tuple((index + 0.5) / 100 for index in range(100))
"""The levels at which quantiles are kept: midpoints of a hundred equal shares."""

HISTOGRAM_EDGES = tuple(-6 + 12 * index / 60 for index in range(61))
"""Bounds of the histogram's bins; what lies outside is counted in no bin."""

SAMPLE = 65_536
NONLINEARITIES = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.LeakyReLU)


def normal_quantiles() -> tuple[float, ...]:
    """Return the quantiles of N(0, 1) at ``LEVELS``.

    >>> round(normal_quantiles()[97], 2)
    1.96
    """
    return tuple(NormalDist().inv_cdf(level) for level in LEVELS)


@contextlib.contextmanager
def activations(model: nn.Module, step: Step) -> Iterator[Reading]:
    """Measure the input of the nonlinearity after each convolution, in the training step itself.

    For the k-th convolution: ``activation{k}_mean`` and ``_std``, and as vectors its quantiles at
    ``LEVELS`` and the density in the bins of ``HISTOGRAM_EDGES`` (per unit, so that it can be
    laid over a normal density). All elements of the batch count alike, whatever their channel.
    """
    reading = Reading()
    with _observed(model, lambda n, values: describe(f"activation{n}", values, reading)):
        yield reading


@contextlib.contextmanager
def channels(model: nn.Module, step: Step) -> Iterator[Reading]:
    """Measure mean and standard deviation of each channel at the same places as ``activations``.

    For the k-th convolution the vectors ``channel{k}_mean`` and ``channel{k}_std``. A layer with a
    value that is not finite is left out.
    """
    reading = Reading()

    def see(number: int, values: Tensor) -> None:
        by_channel = values.detach().float().transpose(0, 1).flatten(1)
        if torch.isfinite(by_channel).all():
            spread, mean = torch.std_mean(by_channel, dim=1, correction=0)
            reading.vectors[f"channel{number}_mean"] = [round(x, 6) for x in mean.tolist()]
            reading.vectors[f"channel{number}_std"] = [round(x, 6) for x in spread.tolist()]

    with _observed(model, see):
        yield reading


@contextlib.contextmanager
def _observed(model: nn.Module, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with the number and the input of each of :func:`nonlinearities`."""
    with contextlib.ExitStack() as hooks:
        for number, module in enumerate(nonlinearities(model), start=1):

            def before(_: nn.Module, inputs: tuple[Tensor, ...], number: int = number) -> None:
                see(number, inputs[0].detach())

            hooks.enter_context(contextlib.closing(Hook(module.register_forward_pre_hook(before))))
        yield


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
