"""Every rule is explained under the same five headings, and says what it measured."""

from __future__ import annotations

import re

import pytest

from normkit.doctor.rules import RULES, Rule

HEADINGS = ["What it checks", "Why it is bad", "Example", "Use instead", "When it is right"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_five_headings(rule: Rule) -> None:
    lines = rule.text.splitlines()
    assert [line for line in lines if re.match(r"[A-Z]", line)][1:] == HEADINGS
    assert lines[0].endswith(".")
    for heading in HEADINGS:  # none is empty
        assert lines[lines.index(heading) + 1].startswith("    ")


def test_codes_are_unique_and_sorted() -> None:
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"NK[123]\d\d", code) for code in codes)


def test_rules_yield_to_rules_that_exist() -> None:
    codes = {rule.code for rule in RULES}
    assert {code for rule in RULES for code in rule.yields_to} <= codes
