"""Load the fused C++ kernels, where they are built for this torch and processor.

>>> from normkit.kernels import cpu
>>> print(cpu.describe())  # doctest: +SKIP
fused C++ kernels, avx512 (of avx512, avx2, baseline built for torch 2.13.0)

An install compiles one extension, ``_cpu``, for the torch that is there. A wheel has one for each
of several releases, such as ``_cpu.torch2.9``, and the one for this torch is loaded.

``NORMKIT_KERNELS`` in the environment chooses: ``portable`` switches them off; ``avx512``,
``avx2`` or ``baseline`` forces one build. docs/kernels.md describes how they are built.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from normkit.compat import release, same_binary, untested
from normkit.errors import OptionError, how_to_rebuild, message

__all__ = ["check_setting", "describe", "fused", "reason", "warn_once", "why_not"]

_BUILDS = ("avx512", "avx2", "baseline")
_ALIASES = {"plain": "baseline"}
# What the extension must have: one of an earlier normkit may still lie here.
_FUNCTIONS = ("again", "kept", "layer", "moments", "normalize", "refuses", "table")

# The extension or None; why there is none; the command that mends it, if one does.
_Loaded = tuple[ModuleType | None, str, str]


def _report() -> dict[str, Any]:
    """Read what setup.py wrote about the build."""
    try:
        report: dict[str, Any] = json.loads((Path(__file__).parent / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return report


def _load() -> _Loaded:
    """Load the extension, if it is there and was built for this torch and this processor."""
    report = _report()
    if report.get("built") is False:
        why_not = f"the fused kernels are not built: {report.get('reason') or 'reason unknown'}"
        return None, why_not, "" if report.get("final") else how_to_rebuild()
    # Checked before loading: code compiled for another torch can end the process.
    one, several = report.get("torch"), report.get("torches")
    built_for = several or ([one] if one else [])
    if built_for and not any(map(_fits, built_for)):
        return _absent(_mismatch(built_for))
    file = Path(__file__).parent / _file_name(of_several=bool(several))
    if not file.exists():
        if report:
            return _absent("the fused kernels were built for another Python or machine")
        return _absent("the fused kernels are not built: normkit was not installed")
    try:
        module = _open(file)
    except ImportError as error:
        return _absent(f"the fused kernels do not load ({error})")
    if not _fits(module.torch_version):
        return _absent(_mismatch([module.torch_version]))
    if not all(hasattr(module, name) for name in _FUNCTIONS):
        return _absent("the fused kernels were built for another version of normkit")
    if not module.builds:
        return _absent("the fused kernels were built for another processor")
    return module, "", ""


def _absent(why_not: str) -> _Loaded:
    return None, why_not, how_to_rebuild()


def _fits(built_for: str) -> bool:
    return same_binary(built_for, str(torch.__version__))


def _mismatch(built_for: list[str]) -> str:
    installed = str(torch.__version__).split("+")[0]
    versions = ", ".join(built_for)
    return f"the fused kernels were built for torch {versions} and this is torch {installed}"


def _file_name(of_several: bool) -> str:
    """Return the name of the extension for this torch: ``Torch.stem`` in setup.py."""
    stem = "_cpu"
    if of_several:
        major, minor = release(str(torch.__version__))
        stem += f".torch{major}.{minor}" + ("" if torch._C._GLIBCXX_USE_CXX11_ABI else "-abi0")
    return stem + importlib.machinery.EXTENSION_SUFFIXES[0]


def _open(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{__name__}._cpu", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _choose(setting: str) -> _Loaded:
    """Load what ``NORMKIT_KERNELS`` asks for, as :func:`_load` does."""
    setting = _ALIASES.get(setting, setting)
    if setting == "portable":
        return None, "NORMKIT_KERNELS=portable switches the fused kernels off", ""
    if setting and setting not in _BUILDS:
        raise OptionError(
            message(
                f"NORMKIT_KERNELS to be portable, {', '.join(_BUILDS[:-1])} or {_BUILDS[-1]}",
                repr(setting),
                "unset it to use the best build",
            )
        )
    module, why_not, fix = _load()
    if not setting:
        return module, why_not, fix
    if module is None:
        raise OptionError(
            message(f"fused kernels for NORMKIT_KERNELS={setting}", f"none: {why_not}",
                    f"{fix}, or unset NORMKIT_KERNELS" if fix else "unset NORMKIT_KERNELS")
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
    return module, "", ""


fused: ModuleType | None
"""The extension, or None."""
reason: str
"""Why there is none; empty where there is."""

_fix: str
_error: OptionError | None = None
_warned = False

# Raised where kernels are first used and not on import, which no program could handle.
try:
    fused, reason, _fix = _choose(os.environ.get("NORMKIT_KERNELS", "").strip().lower())
except OptionError as error:
    fused, reason, _fix, _error = None, str(error), "", error


def check_setting() -> None:
    """Raise if ``NORMKIT_KERNELS`` asks for what there is not.

    Raises:
        OptionError: an unknown value, or a build that is not there or cannot run here.
    """
    if _error is not None:
        raise _error.with_traceback(None)


def why_not() -> str:
    """Return why there are no fused kernels, and the command that builds them, if one does."""
    return f"{reason}; to build them: {_fix}" if _fix else reason


def warn_once() -> None:
    """Warn that layers run without the fused kernels, if that can be mended: once in a process."""
    global _warned
    if _fix and not _warned:
        _warned = True
        warnings.warn(
            f"normkit computes without its fused kernels, and so slower: {_with_torch(why_not())}; "
            "NORMKIT_KERNELS=portable switches this warning off",
            stacklevel=2,
        )


def describe() -> str:
    """Describe in one line what computes fused layers on a CPU.

    Raises:
        OptionError: as :func:`check_setting`.
    """
    check_setting()
    if fused is None:
        return _with_torch(f"portable: {why_not()}")
    return _with_torch(
        f"fused C++ kernels, {fused.in_use()} "
        f"(of {', '.join(fused.builds)} built for torch {fused.torch_version})"
    )


def _with_torch(line: str) -> str:
    """Add to ``line`` that torch is none of the releases tested, if it is none."""
    return f"{line}; {note}" if (note := untested()) else line
