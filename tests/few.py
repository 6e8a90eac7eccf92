"""Values of parametrized tests, of which a few run every time and all run in CI."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

__all__ = ["few"]


def few(values: Iterable[Any], chosen: Callable[..., bool]) -> list[Any]:
    """Return ``values`` as parameters, slow but for those that are ``chosen``.

    Tuples stand for several arguments of a test, and ``chosen`` takes them one by one. For values
    that others stand for; what only a slow test can show has ``pytest.mark.slow``.
    """
    parameters = []
    for value in values:
        assert type(value) is not type(pytest.param()), "marks and ids are for the test"
        each = value if isinstance(value, tuple) else (value,)
        marks = () if chosen(*each) else pytest.mark.slow
        parameters.append(pytest.param(*each, marks=marks))
    assert not all(each.marks for each in parameters), "no value is left for every day"
    return parameters
