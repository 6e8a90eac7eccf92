"""Measure inside a training step, with probes by name.

A probe is a context manager around one step's forward and backward pass. It yields a
:class:`Reading` and has filled it when it ends. It must leave the model, its buffers and the
random generators as they were: a run with a probe gives the same numbers as one without.

To add one, write a generator function in a file here and put it in ``PROBES``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from torch import nn

from normkit.errors import OptionError, message
from normkit.lab.probes.activations import (
    HISTOGRAM_EDGES,
    LEVELS,
    activations,
    channels,
    normal_quantiles,
)
from normkit.lab.probes.landscape import landscape
from normkit.lab.probes.layers import gradients, layers
from normkit.lab.probes.reading import Probe, Reading, Step

__all__ = ["HISTOGRAM_EDGES", "LEVELS", "PROBES", "Reading", "Step", "normal_quantiles", "observe"]

PROBES: dict[str, Probe] = {
    "landscape": landscape,
    "activations": activations,
    "channels": channels,
    "gradients": gradients,
    "layers": layers,
}
"""The probes by the name that a run's description uses.

One that runs the model again stands before those that watch it run: it ends after them.
"""


@contextlib.contextmanager
def observe(names: Collection[str], model: nn.Module, step: Step) -> Iterator[Reading]:
    """Observe a step with the probes of these names; yield a reading that has all of theirs.

    Raises:
        OptionError: there is no such probe.
    """
    unknown = sorted(set(names) - set(PROBES))
    if unknown:
        raise OptionError(
            message(
                f"probes out of {', '.join(sorted(PROBES))}", ", ".join(unknown), "use these only"
            )
        )
    merged = Reading()
    with contextlib.ExitStack() as stack:
        readings = [
            stack.enter_context(probe(model, step))
            for name, probe in PROBES.items()
            if name in names
        ]
        yield merged
    for reading in readings:
        merged.scalars.update(reading.scalars)
        merged.vectors.update(reading.vectors)
