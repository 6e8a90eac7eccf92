"""The time budget of tests is enforced, in CI, for what is not marked slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def busy():
    return sum(i for i in range(10**6))

def test_busy():
    busy()

@pytest.mark.slow
def test_slow():
    busy()
"""
RUN = """
import sys
import pytest
from tests import budget
budget.EXPECTED_SECONDS, budget.CI_SECONDS = 0.0, 0.001
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", "."], plugins=[budget]))
"""


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_a_test_above_the_budget_fails_in_ci_only(tmp_path: Path, ci: str, code: int) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: needs minutes\n")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True, text=True, cwd=tmp_path,
        # Without the options that CI adds to its own run, such as --durations.
        env={**os.environ, "CI": ci, "PYTEST_ADDOPTS": "",
             "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert "test_it.py::test_busy" in done.stdout
    assert "test_slow" not in done.stdout
