"""Fused C++ kernels, where they were built and this torch and machine can run them.

>>> from normkit.kernels import cpu
>>> print(cpu.describe())  # doctest: +SKIP
fused C++ kernels, avx512 (of avx512, avx2, plain built for torch 2.13.0)

``NORMKIT_KERNELS`` in the environment chooses: ``portable`` switches them off; ``avx512``,
``avx2`` or ``plain`` forces one build. docs/kernels.md says how they are built and rebuilt.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import torch

from normkit.errors import OptionError, explain

__all__ = ["describe", "fused", "reason"]

_BUILDS = ("avx512", "avx2", "plain")
_REINSTALL = "reinstall it with --force-reinstall --no-deps --no-build-isolation"


def _load() -> tuple[ModuleType | None, str]:
    """The extension and "", or None and why not."""
    try:
        told = json.loads((Path(__file__).parent / "_build.json").read_text())
    except (OSError, ValueError):
        told = {}
    if told.get("built") is False:
        return None, f"the fused kernels are not built: {told.get('reason') or 'no reason is kept'}"
    # Asked before loading: code made for another torch can end the process.
    if "torch" in told and (other := _made_for_another(told["torch"])):
        return None, other
    try:
        module = importlib.import_module(f"{__name__}._cpu")
    except ModuleNotFoundError:
        if told:
            return None, f"the fused kernels were built for another Python or machine; {_REINSTALL}"
        return None, f"the fused kernels are not built: normkit was not installed; {_REINSTALL}"
    except ImportError as error:
        return None, f"the fused kernels do not load ({error}); {_REINSTALL}"
    if other := _made_for_another(module.torch_version):
        return None, other
    if not module.builds:
        return None, "the fused kernels were built for another processor"
    return module, ""


def _made_for_another(version: str) -> str:
    here = str(torch.__version__).split("+")[0]
    if version == here:
        return ""
    return (
        f"the fused kernels were built for torch {version} and this is torch {here}; since torch "
        f"changed after normkit was installed, {_REINSTALL}"
    )


def _choose(asked: str) -> tuple[ModuleType | None, str]:
    """What ``NORMKIT_KERNELS`` asks for."""
    if asked == "portable":
        return None, "NORMKIT_KERNELS=portable switches the fused kernels off"
    if asked and asked not in _BUILDS:
        raise OptionError(
            explain(
                f"NORMKIT_KERNELS must be portable, {', '.join(_BUILDS[:-1])} or {_BUILDS[-1]}",
                repr(asked),
                "unset it, and the best one is taken",
            )
        )
    module, why = _load()
    if not asked:
        return module, why
    if module is None:
        raise OptionError(
            explain(f"NORMKIT_KERNELS={asked} needs the fused kernels", why, "do that, or unset it")
        )
    if asked not in module.builds:
        raise OptionError(
            explain(
                "NORMKIT_KERNELS must name a build that this machine can run",
                f"{asked!r} where it can run {', '.join(module.builds)}",
                "name one of these, or unset it",
            )
        )
    module.use(asked)
    return module, ""


fused: ModuleType | None
"""The extension, or None."""
reason: str
"""Why there is none; empty where there is."""

fused, reason = _choose(os.environ.get("NORMKIT_KERNELS", "").strip().lower())


def describe() -> str:
    """What computes fused layers on a CPU, in one line."""
    if fused is None:
        return f"portable: {reason}"
    return (
        f"fused C++ kernels, {fused.in_use()} "
        f"(of {', '.join(fused.builds)} built for torch {fused.torch_version})"
    )
