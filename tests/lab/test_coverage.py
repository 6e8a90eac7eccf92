"""The lab's intervals on recorded runs of which the truth is known (benchmarks/lab_coverage.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lab_coverage.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_contain_the_effect_in_nineteen_of_twenty_studies(script: ModuleType) -> None:
    recorded = json.loads(script.FILE.read_text(encoding="utf-8"))
    population = script.differences(recorded["recorded"])
    assert population.shape == (len(script.SEEDS), script.IMAGES)
    assert set(np.unique(population)) == {-1, 0, 1}
    assert script.FILE.stat().st_size < 200_000
    for seeds, images in script.DESIGNS:
        contained = script.coverage(population, seeds, images)["coverage"]
        assert contained["seeds and images"] == pytest.approx(0.95, abs=0.03)
        # Which images they are is a good part of the error, and no number of seeds averages it out.
        assert contained["seeds"] < contained["seeds and images"] - 0.03
