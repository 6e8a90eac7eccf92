"""Triton kernels for GPUs.

Triton is imported by what holds kernels and by nothing else: importing :mod:`normkit` and this
module needs no Triton and no GPU. :mod:`normkit.kernels.triton.gpu` is the way that calls ask for,
:mod:`normkit.kernels.triton.schedule` chooses the kernels.
"""

from __future__ import annotations

import importlib.util

__all__ = ["takes_cpu", "why_not"]

takes_cpu: bool = False
"""Private switch for tests and benchmarks on machines without a GPU.

True lets the way take tensors of a CPU, which Triton's interpreter computes, slowly. It wants
``TRITON_INTERPRET=1`` in the environment before Triton is imported, and
``NORMKIT_KERNELS=portable`` before normkit is, since the C++ kernels would be preferred::

    TRITON_INTERPRET=1 NORMKIT_KERNELS=portable python -c "
    import normkit as nk
    from normkit.kernels import triton
    triton.takes_cpu = True
    ..."
"""


def _installed() -> bool:
    try:
        spec = importlib.util.find_spec("triton")
    except ValueError:  # a stand-in, which some packages put there where it is missing
        return False
    return spec is not None and spec.origin is not None


_INSTALLED = _installed()


def why_not() -> str | None:
    """Return why there are no kernels, as a clause after 'because', or None."""
    if _INSTALLED:
        return None
    return "Triton is not installed, which PyTorch for GPUs brings (pip install triton)"
