"""Benchmark of faults: cases build, a fault and its twin differ in the one part that is named."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normkit.doctor.rules import RULES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    faults = importlib.import_module("faults")
    run = importlib.import_module("faults.run")
    tools = importlib.import_module("faults.tools")
finally:
    sys.path.remove(str(BENCHMARKS))

CASES = {case.name: case for case in faults.CASES}
LOADERS = {"train_batches", "evaluation_batches"}


def model_of(training: Any) -> Any:
    """Return what tells two fresh models apart: modules, sharing, types, and what is trained."""
    model = training.model
    parameters = [(n, p.dtype, p.requires_grad) for n, p in model.named_parameters()]
    buffers = [(n, b.dtype) for n, b in model.named_buffers()]
    return repr(model), len(list(model.modules())), parameters, buffers


def optimizer_of(training: Any) -> Any:
    names = {id(p): n for n, p in training.model.named_parameters()}
    return [
        {**group, "params": [names.get(id(p)) for p in group["params"]]}
        for group in training.optimizer.param_groups
    ]


def weights_of(training: Any) -> list[torch.Tensor]:
    kinds = (nn.Conv2d, nn.Linear)
    return [m.weight.detach() for m in training.model.modules() if isinstance(m, kinds)]


def epoch_of(loader: Any) -> Any:
    return [(labels.tolist(), images.double().sum().item()) for images, labels in loader]


LOOKS = {
    "network": model_of,
    "optimizer": optimizer_of,
    "train_batches": lambda training: epoch_of(training.train_batches),
    "evaluation_batches": lambda training: epoch_of(training.evaluation_batches),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_and_twin_differ_in_the_part_named(name: str) -> None:
    case = CASES[name]
    assert len(case.fault) == 1 or set(case.fault) == LOADERS  # one form of input for both
    fault, twin = case.faulty.start(), case.healthy.start()
    for part, look in LOOKS.items():
        if part in case.fault:
            # NaN is unlike itself
            assert repr(look(fault)) != repr(look(twin)), part
        elif not ("network" in case.fault and part == "optimizer"):  # which follows the model
            assert repr(look(fault)) == repr(look(twin)), part
    for part in dataclasses.fields(faults.Plan):
        same = getattr(case.faulty, part.name) is getattr(case.healthy, part.name)
        assert same == (part.name not in case.fault)
    # Equal weights to start from.
    assert len(weights_of(fault)) == len(weights_of(twin))
    for ours, theirs in zip(weights_of(fault), weights_of(twin), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float())


def test_enough_cases_all_with_a_code() -> None:
    assert len(CASES) == len(faults.CASES) >= 34
    rules = {rule.code for rule in RULES}
    for case in faults.CASES:
        assert case.codes
        assert set(case.codes) <= rules, case.name
        assert case.cause.endswith(".")


def test_a_model_runs_on_its_batches() -> None:
    for case in faults.CASES:
        training = case.faulty.start()
        images, labels = next(iter(training.train_batches))
        assert training.model.eval()(images).shape == (len(labels), 10)


def test_judging() -> None:
    def found(code: str, severity: str = "warning") -> Any:
        rank = ["error", "warning", "note"].index(severity)
        return tools.Found(code, severity, rank, severity != "note", "")

    case = CASES["momentum-kept"]
    judged = tools.judge(case, "normkit", [found("NK104"), found("NK290")], [found("NK1", "note")])
    assert judged == (True, True, True, ())
    judged = tools.judge(case, "normkit", [found("NK103"), found("NK104")], [found("NK103")])
    assert judged == (True, True, True, ("NK103",))
    judged = tools.judge(case, "normkit", [found("NK103"), found("NK104")], [])
    assert judged == (True, False, True, ())
    assert tools.judge(case, "normkit", [found("NK104", "note")], []) == (False, False, False, ())
    assert tools.judge(case, "torch-audit", [found("NK104")], []) == (True, False, False, ())
    noted = dataclasses.replace(case, note=True)
    assert tools.judge(noted, "normkit", [found("NK104", "note")], []).exact
    both = [found("NK104", "note")]
    assert not tools.judge(noted, "normkit", both, both).detected


def test_results_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [tools.Found("NK104", "warning", 1, True, "Momentum 0.99.")]
    rows = [
        run.Row(name, "normkit", (0.5, 0.75), found if right else [], [], 1.5)
        for name, right in [("momentum-kept", False), ("momentum-zero", True)]
    ]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(run.as_json(rows)))
    assert run.recorded([first]) == rows
    later = [rows[0]._replace(fault=found)]
    second.write_text(json.dumps(run.as_json(later)))
    assert run.recorded([first, second]) == [*later, rows[1]]
    assert run.main(["--from", str(first), "--from", str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| normkit | 2 of 2 | 1 of 2 | 1 of 2 | 0 of 2 |"
    assert "| momentum-kept | 50.0, 75.0 | NK104 | **exact** NK104 |" in lines
    assert "| momentum-zero | 50.0, 75.0 | NK103 | detected NK104 |" in lines


def test_a_case_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--only", "no-such-case"]) == 2
    assert "momentum-kept" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.minutes
def test_five_cases(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["momentum-kept", "momentum-zero", "statistics-reset", "one-nan-batch", "pruned"]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    run.main(["--tool", "normkit", *(part for name in names for part in ("--only", name))])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| normkit | 5 of 5 | 5 of 5 | 5 of 5 | 0 of 5 |"


def test_training_changes_what_it_should() -> None:
    """Train one plan on few images: weights move, and nothing else is needed."""
    plan = dataclasses.replace(
        CASES["momentum-kept"].healthy,
        train_batches=lambda: faults.data.train_batches(count=256),
    )
    before = plan.start().model.state_dict()
    after = plan.train().model
    assert isinstance(after, nn.Module)
    assert any(not torch.equal(before[k], v) for k, v in after.state_dict().items())


def test_a_seed_makes_the_same_training_again() -> None:
    plan = CASES["momentum-kept"].healthy
    for look in (weights_of, lambda training: epoch_of(training.train_batches)):
        assert repr(look(plan.start(1))) == repr(look(plan.start(1)))
        assert repr(look(plan.start(1))) != repr(look(plan.start(0)))
