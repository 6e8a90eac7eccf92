"""The guide's tables are those of the recorded measurement, and it shows what is promised."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "adaptation.json").read_text())


def test_the_guide_has_the_recorded_tables() -> None:
    pytest.importorskip("scipy")
    path = ROOT / "benchmarks" / "adaptation_tables.py"
    spec = importlib.util.spec_from_file_location("adaptation_tables", path)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.text_of(RESULT) in (ROOT / "docs" / "adaptation.md").read_text()
    assert len(RESULT["seeds"]) >= 5


def test_sorted_streams_are_noticed_and_shuffled_ones_are_not() -> None:
    for how, least, most in (("sorted", 0.95, 1.0), ("shuffled", 0.0, 0.05)):
        of = [one["noticed"] for seed in RESULT["seeds"] for one in seed["order"]
              if one["stream"] == how]  # fmt: skip
        assert len(of) >= 100
        assert least <= fmean(of) <= most
