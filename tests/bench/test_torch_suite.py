"""The command that runs PyTorch's own tests on both sides (benchmarks/torch_suite.py)."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import torch_suite
from benchmarks.torch_suite import MISSING, Result, differences, mentions_norm, read_results

TESTS = """
import unittest
import torch.nn as nn

class Layers(unittest.TestCase):
    def test_batch_norm_is_torchs(self):
        self.assertEqual(nn.modules.BatchNorm2d, nn.BatchNorm2d)
        self.assertRegex(nn.BatchNorm2d.__module__, "^torch")

    def test_group_norm(self):
        self.assertEqual(nn.GroupNorm(1, 2).num_groups, 1)

    def test_repr(self):
        self.assertIn("(0)", repr(nn.Sequential(nn.LayerNorm(2))))

    def test_failing_layer_norm(self):
        self.fail("in both")

    def test_linear(self):
        self.fail("mentions none")
"""


def test_docstrings() -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(torch_suite, optionflags=options).failed == 0


@pytest.mark.slow
def test_both_sides_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "test_small.py").write_text(TESTS)
    (tmp_path / "test_absent.py").write_text("import a_module_that_is_not_there\n")
    done = subprocess.run(
        [sys.executable, torch_suite.__file__, str(tmp_path), "test_*.py", "--json",
         str(tmp_path / "ended.json")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    said = done.stdout
    assert "test_absent.py: 1 not imported with torch.nn; 0 different" in said
    assert "test_small.py: 1 failed, 3 passed with torch.nn; 1 different, 0 explained" in said
    assert "Layers::test_batch_norm_is_torchs" in said
    assert "passed with torch.nn, failed with normkit" in said
    assert "1 differences, 1 of them not explained" in said
    ended = json.loads((tmp_path / "ended.json").read_text())["test_small.py"]["normkit"]
    assert "Regex didn't match" in ended["test_small.py::Layers::test_batch_norm_is_torchs"][1]


def test_wrong_folder_runs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, torch_suite.__file__, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Expected a folder with test_nn.py or" in done.stderr


def test_differences_with_reasons() -> None:
    passed, failed = Result("passed"), Result("failed", "no")
    theirs = {"a": passed, "b": failed, "c": passed, "d": passed}
    ours = {"a": failed, "b": passed, "d": passed, "e": failed}
    found = {each.test: each for each in differences(theirs, ours, [("a|b", "meant")])}
    assert list(found) == ["a", "b", "c", "e"]
    assert [bool(each.reason) for each in found.values()] == [True, True, False, False]
    assert found["c"].ours == found["e"].theirs == MISSING


def test_a_failed_part_is_not_overwritten(tmp_path: Path) -> None:
    ends = [("a", "failed", "part"), ("a", "passed", ""), ("b", "passed", ""), ("b", "failed", "")]
    lines = [json.dumps(dict(zip(("test", "outcome", "error"), end, strict=True))) for end in ends]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines))
    assert read_results(path) == {"a": Result("failed", "part"), "b": Result("failed")}


def test_explanations_have_valid_patterns() -> None:
    for what, why in torch_suite.EXPLAINED:
        assert mentions_norm(what) or "xpanded" in what, what
        assert why
