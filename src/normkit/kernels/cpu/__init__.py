"""Load the fused C++ kernels, where they are built for this torch and processor.

>>> from normkit.kernels import cpu
>>> print(cpu.describe())  # doctest: +SKIP
fused C++ kernels, avx512 (of avx512, avx2, baseline built for torch 2.13.0)

``NORMKIT_KERNELS`` in the environment chooses: ``portable`` switches them off; ``avx512``,
``avx2`` or ``baseline`` forces one build. docs/kernels.md describes how they are built.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from normkit.errors import OptionError, message

__all__ = ["check_setting", "describe", "fused", "reason"]

_BUILDS = ("avx512", "avx2", "baseline")
_ALIASES = {"plain": "baseline"}
# What the extension must have: one of an earlier normkit may still lie here.
_FUNCTIONS = ("layer", "moments", "normalize", "refuses", "table")
_REINSTALL = "reinstall it with --force-reinstall --no-deps --no-build-isolation"


def _report() -> dict[str, Any]:
    """Read what setup.py wrote about the build."""
    try:
        report: dict[str, Any] = json.loads((Path(__file__).parent / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return report


def _load() -> tuple[ModuleType | None, str]:
    """Return the extension and "", or None and the reason."""
    report = _report()
    if report.get("built") is False:
        return None, f"the fused kernels are not built: {report.get('reason') or 'reason unknown'}"
    # Checked before loading: code compiled for another torch can end the process.
    if "torch" in report and (mismatch := _torch_mismatch(report["torch"])):
        return None, mismatch
    try:
        module = importlib.import_module(f"{__name__}._cpu")
    except ModuleNotFoundError:
        if report:
            return None, f"the fused kernels were built for another Python or machine; {_REINSTALL}"
        return None, f"the fused kernels are not built: normkit was not installed; {_REINSTALL}"
    except ImportError as error:
        return None, f"the fused kernels do not load ({error}); {_REINSTALL}"
    if mismatch := _torch_mismatch(module.torch_version):
        return None, mismatch
    if not all(hasattr(module, name) for name in _FUNCTIONS):
        return None, f"the fused kernels were built for another version of normkit; {_REINSTALL}"
    if not module.builds:
        return None, f"the fused kernels were built for another processor; {_REINSTALL}"
    return module, ""


def _torch_mismatch(version: str) -> str:
    installed = str(torch.__version__).split("+")[0]
    if version == installed:
        return ""
    return (
        f"the fused kernels were built for torch {version} and this is torch {installed}; since "
        f"torch changed after normkit was installed, {_REINSTALL}"
    )


def _choose(setting: str) -> tuple[ModuleType | None, str]:
    """Return what ``NORMKIT_KERNELS`` asks for, as :func:`_load` does."""
    setting = _ALIASES.get(setting, setting)
    if setting == "portable":
        return None, "NORMKIT_KERNELS=portable switches the fused kernels off"
    if setting and setting not in _BUILDS:
        raise OptionError(
            message(
                f"NORMKIT_KERNELS to be portable, {', '.join(_BUILDS[:-1])} or {_BUILDS[-1]}",
                repr(setting),
                "unset it to use the best build",
            )
        )
    module, why_not = _load()
    if not setting:
        return module, why_not
    if module is None:
        raise OptionError(
            message(f"fused kernels for NORMKIT_KERNELS={setting}", f"none: {why_not}",
                    "follow that advice, or unset NORMKIT_KERNELS")
        )  # fmt: skip
    if setting not in module.builds:
        left_out = setting not in _report().get("builds", _BUILDS)
        raise OptionError(
            message(
                "NORMKIT_KERNELS to name a build that was compiled and that this machine can run",
                f"{setting!r}, where it can run {', '.join(module.builds)}",
                "reinstall with NORMKIT_BUILDS=all, or unset NORMKIT_KERNELS"
                if left_out
                else "choose from these, or unset it",
            )
        )
    module.use(setting)
    return module, ""


fused: ModuleType | None
"""The extension, or None."""
reason: str
"""Why there is none; empty where there is."""

_error: OptionError | None = None

# Raised where kernels are first used and not on import, which no program could handle.
try:
    fused, reason = _choose(os.environ.get("NORMKIT_KERNELS", "").strip().lower())
except OptionError as error:
    fused, reason, _error = None, str(error), error


def check_setting() -> None:
    """Raise if ``NORMKIT_KERNELS`` asks for what there is not.

    Raises:
        OptionError: an unknown value, or a build that is not there or cannot run here.
    """
    if _error is not None:
        raise _error.with_traceback(None)


def describe() -> str:
    """Describe in one line what computes fused layers on a CPU.

    Raises:
        OptionError: as :func:`check_setting`.
    """
    check_setting()
    if fused is None:
        return f"portable: {reason}"
    return (
        f"fused C++ kernels, {fused.in_use()} "
        f"(of {', '.join(fused.builds)} built for torch {fused.torch_version})"
    )
