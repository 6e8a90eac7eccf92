"""SARIF 2.1.0 from a diagnosis: the format in which services for code review take findings."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.finding import Finding
from normkit.doctor.profile import plain
from normkit.doctor.rules import RULES, Rule
from normkit.handle import place_name

__all__ = ["to_sarif"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
HEADINGS = ("What it checks", "Why it is bad", "Example", "Use instead", "When it is right")


def to_sarif(diagnosis: Diagnosis, *, file: str | None = None, line: int = 1) -> dict[str, Any]:
    """Return a diagnosis as a SARIF 2.1.0 log of one run.

    Every rule is described in it, with its explanation as help; every finding is a result of its
    level ("error", "warning", "note"), at the modules' names as logical locations.

    Args:
        file: the source file of the model, relative to the repository, where a service shows the
            findings. Without it they have no place in a file, which some services require.
        line: the line in it, from 1.

    >>> from torch import nn
    >>> from normkit.doctor import diagnose
    >>> log = to_sarif(diagnose(nn.BatchNorm1d(2, momentum=0.99)), file="train.py", line=12)
    >>> [(one["ruleId"], one["level"]) for one in log["runs"][0]["results"]][0]
    ('NK104', 'warning')
    """
    index = {rule.code: number for number, rule in enumerate(RULES)}
    results = [_result(one, index.get(one.rule), file, line) for one in diagnosis.findings]
    notes = [{"level": "note", "message": {"text": note}} for note in diagnosis.notes]
    run = {
        "tool": {
            "driver": {
                "name": "normkit doctor",
                "version": importlib.metadata.version("normkit"),
                "rules": [_rule(rule) for rule in RULES],
            }
        },
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": results,
        "properties": {"headline": diagnosis.headline, "examined": diagnosis.examined},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    body = rule.text.partition("\n")[2].strip()
    name = rule.check.__module__.rpartition(".")[2].partition("_")[2]
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in name.split("_")),
        "shortDescription": {"text": f"{rule.title}."},
        "fullDescription": {"text": _section(body, HEADINGS[1])},
        "help": {"text": body, "markdown": _markdown(body)},
    }


def _section(body: str, heading: str) -> str:
    lines = body.partition(f"{heading}\n")[2].splitlines()
    inside = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        inside.append(line.strip())
    return " ".join(filter(None, inside))


def _markdown(body: str) -> str:
    """Make headings bold; the indentation of their text would be code."""
    lines = (f"**{line}**\n" if line in HEADINGS else line.strip() for line in body.splitlines())
    return "\n".join(lines)


def _result(one: Finding, index: int | None, file: str | None, line: int) -> dict[str, Any]:
    brings = "" if one.gain is None else f" Brings: {one.gain}."
    location: dict[str, Any] = {}
    if one.places:
        location["logicalLocations"] = [
            {"fullyQualifiedName": place_name(name), "kind": "module"} for name in one.places
        ]
    if file is not None:
        location["physicalLocation"] = {
            "artifactLocation": {"uri": file},
            "region": {"startLine": line},
        }
    identity = "\n".join((one.rule, *one.places))
    return {
        "ruleId": one.rule,
        **({} if index is None else {"ruleIndex": index}),
        "level": one.severity,
        "message": {"text": f"{one.says} Do: {one.do.rstrip('.')}.{brings}"},
        "locations": [location] if location else [],
        # Equal in every run that finds the same at the same places.
        "partialFingerprints": {"normkit/v1": hashlib.sha256(identity.encode()).hexdigest()},
        "properties": {
            "value": plain(one.value),
            "gain": None if one.gain is None else plain(one.gain._asdict()),
            "canMend": one.can_mend,
        },
    }
