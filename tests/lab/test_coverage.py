"""The lab's intervals on recorded runs of which the truth is known (benchmarks/lab_coverage.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from normkit.lab.crossed import image_error
from normkit.lab.verdicts import interval

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


@pytest.mark.parametrize("arm", ["with BN", "without BN"])
def test_equal_arms_differ_in_one_study_of_forty_each_way(script: ModuleType, arm: str) -> None:
    recorded = json.loads(script.FILE.read_text(encoding="utf-8"))["recorded"]
    right = script.unpacked(recorded[arm])
    rng = np.random.default_rng(1979)
    ends = []
    for _ in range(400):
        first, second = rng.permutation(len(right))[:10].reshape(2, 5)
        images = rng.permutation(script.IMAGES)[:500]
        differences = right[first][:, images] - right[second][:, images]
        shared = image_error(list(differences)).deviation
        ends.append(interval(differences.mean(axis=1), shared=shared)[1:])
    low, high = np.transpose(ends)
    assert np.mean(low > 0) <= 0.05
    assert np.mean(high < 0) <= 0.05
