"""The builds of the fused kernels as parameters of a test, each missing one with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from normkit.kernels import cpu

__all__ = ["BUILDS"]


def _parameter(name: str) -> Any:
    compiled = cpu.fused is not None and name in cpu.fused.builds
    reason = cpu.reason or f"{name} is not compiled (NORMKIT_BUILDS=all) or cannot run here"
    return pytest.param(name, marks=pytest.mark.skipif(not compiled, reason=reason))


BUILDS = [_parameter(name) for name in ("avx512", "avx2", "baseline")]
