"""SARIF: the fields that the schema of version 2.1.0 requires, and no others."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from torch import nn

import normkit as nk
from normkit.doctor import Diagnosis, Finding, Gain
from normkit.doctor.rules import RULES
from normkit.doctor.sarif import to_sarif

# From sarif-schema-2.1.0.json: by object, its required properties, and those allowed that we use.
# No object takes any other.
OBJECTS: dict[str, tuple[set[str], set[str]]] = {
    "log": ({"version", "runs"}, {"$schema"}),
    "run": ({"tool"}, {"invocations", "results", "properties"}),
    "tool": ({"driver"}, set()),
    "driver": ({"name"}, {"version", "rules"}),
    "rule": ({"id"}, {"name", "shortDescription", "fullDescription", "help"}),
    "text": ({"text"}, {"markdown"}),
    "invocation": ({"executionSuccessful"}, {"toolExecutionNotifications"}),
    "notification": ({"message"}, {"level"}),
    "result": (
        {"message"},
        {"ruleId", "ruleIndex", "level", "locations", "partialFingerprints", "properties"},
    ),
    "location": (set(), {"logicalLocations", "physicalLocation"}),
    "logical": (set(), {"fullyQualifiedName", "kind"}),
    "physical": ({"artifactLocation"}, {"region"}),
    "artifact": ({"uri"}, set()),
    "region": ({"startLine"}, set()),
}


def check(name: str, value: dict[str, Any]) -> dict[str, Any]:
    required, allowed = OBJECTS[name]
    assert required <= set(value) <= required | allowed, (name, set(value))
    return value


def validate(log: dict[str, Any]) -> None:
    json.dumps(log, allow_nan=False)
    assert check("log", log)["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = check("driver", check("tool", check("run", run)["tool"])["driver"])
    for rule in driver["rules"]:
        check("rule", rule)
        for text in ("shortDescription", "fullDescription", "help"):
            assert check("text", rule[text])["text"]
    for invocation in run["invocations"]:
        assert check("invocation", invocation)["executionSuccessful"] is True
        for notification in invocation["toolExecutionNotifications"]:
            check("text", check("notification", notification)["message"])
    for result in run["results"]:
        check("text", check("result", result)["message"])
        assert result["level"] in {"error", "warning", "note"}
        if "ruleIndex" in result:
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        for location in result["locations"]:
            check("location", location)
            for logical in location.get("logicalLocations", []):
                assert check("logical", logical)["fullyQualifiedName"]
            if "physicalLocation" in location:
                physical = check("physical", location["physicalLocation"])
                check("artifact", physical["artifactLocation"])
                assert check("region", physical["region"])["startLine"] >= 1


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.99), nn.Linear(4, 2))
    return nk.diagnose(model)


def test_required_fields_and_no_others(diagnosis: Diagnosis) -> None:
    validate(to_sarif(diagnosis))
    validate(to_sarif(diagnosis, file="train.py", line=3))


def test_rules_have_their_explanation(diagnosis: Diagnosis) -> None:
    rules = to_sarif(diagnosis)["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in RULES]
    (rule,) = (rule for rule in rules if rule["id"] == "NK104")
    assert rule["name"] == "MomentumKept"
    assert rule["shortDescription"]["text"].endswith("not the share replaced.")
    assert rule["fullDescription"]["text"].startswith("In PyTorch the momentum is")
    assert "**Use instead**" in rule["help"]["markdown"]
    assert "\n    " not in rule["help"]["markdown"]


def test_a_result_has_place_level_and_gain(diagnosis: Diagnosis) -> None:
    gain = Gain(70.0, 80.0, 10.0, 8.0, math.inf, "points", 100)
    one = dataclasses.replace(diagnosis.of("NK104")[0], gain=gain, value=math.inf)
    whole = Finding("error", ("",), "Of the model.", "mend it", rule="NK999")
    data = Finding("note", (), "Of the data.", "shuffle", rule="NK290")
    log = to_sarif(dataclasses.replace(diagnosis, findings=(one, whole, data)), file="train.py")
    validate(log)
    first, second, third = log["runs"][0]["results"]
    assert (first["ruleId"], first["level"]) == ("NK104", "warning")
    assert first["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "1"
    assert "Brings: +10.0" in first["message"]["text"]
    assert first["properties"]["gain"]["change"] == 10.0
    assert first["properties"]["gain"]["high"] is None
    assert "ruleIndex" not in second
    assert second["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "(the model)"
    assert set(third["locations"][0]) == {"physicalLocation"}
    assert (
        to_sarif(dataclasses.replace(diagnosis, findings=(data,)))["runs"][0]["results"][0][
            "locations"
        ]
        == []
    )


def test_fingerprints_tell_findings_apart_and_runs_alike(diagnosis: Diagnosis) -> None:
    one = diagnosis.of("NK104")[0]
    places = [
        one,
        dataclasses.replace(one, says="Other figures."),
        dataclasses.replace(one, places=("2",)),
    ]
    log = to_sarif(dataclasses.replace(diagnosis, findings=tuple(places)))
    a, b, c = (each["partialFingerprints"]["normkit/v1"] for each in log["runs"][0]["results"])
    assert a == b
    assert a != c
