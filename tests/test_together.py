"""Tests share one way to make a process group and to destroy it."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent


def test_groups_end_after_the_models_of_their_processes() -> None:
    """A model in a frame that outlives its group can hang the process (pytorch#56297)."""
    shared = {TESTS / "together.py", Path(__file__)}
    for path in {*TESTS.rglob("*.py")} - shared:
        text = path.read_text()
        assert "destroy_process_group(" not in text, f"{path}: tests.together.leave does it"
        if path.name.startswith("test_"):
            assert "init_process_group(" not in text, f"{path}: use the fixture process_group"
