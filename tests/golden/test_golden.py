"""What handles, layers and commands print changes on purpose only.

``reprs.json`` and ``helps.json`` are recorded anew (``python -W ignore -m tests.golden.record``)
when docs/log.md says why.
"""

from __future__ import annotations

from tests.golden import record


def test_reprs() -> None:
    assert list(record.differences(record.load("reprs.json"), record.reprs())) == []


def test_helps() -> None:
    assert list(record.differences(record.load("helps.json"), record.helps())) == []


def test_guide_lists_all_rules() -> None:
    table = record.rules()
    assert record.GUIDE.read_text() == record.guide_with(table), (
        "run: python -W ignore -m tests.golden.record rules"
    )
