"""A short sweep: programs drawn from the grammar, the same each time, hold for every tool.

``python -m tests.sweep`` runs longer, with others.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sweep.tools import TOOLS, hunt

EXAMPLES = {"recalibrate": 80, "consistency": 60, "layers": 100, "accelerate": 300,
            "bad input": 100}  # fmt: skip
OTHERS = 40


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_holds_its_promise(tool: str) -> None:
    find = hunt(tool, EXAMPLES.get(tool, OTHERS), set(), Counter())
    assert find is None, f"{find and find.fault}\n{find and find.text}"
