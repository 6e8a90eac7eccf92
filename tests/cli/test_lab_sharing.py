"""The commands that only read a store, as a user types them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from normkit.cli import lab_list
from normkit.cli.app import app
from normkit.lab import judge as lab_judge
from normkit.lab import store as lab_store
from normkit.lab.claims import c05
from normkit.lab.claims.claim import Available
from normkit.lab.conditions import named
from normkit.lab.leases import acquire
from normkit.lab.store import Store
from normkit.report.markdown import BEGIN, END

Call = Callable[..., str]


def call(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["lab", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def fill(path: Path, preset: Any, gain: float) -> None:
    """A store with C5 at a preset, each run done in a minute."""
    arms = c05.CLAIM.plan(preset, Available("full", 60_000, 10_000))
    with Store(path) as store:
        store.plan("C5", preset, arms)
        for arm, config in arms:
            lease = acquire(store, config.key)
            if lease is None:  # known from another preset
                continue
            value = 0.3 + gain * (arm == arms[0][0]) + config.seed / 1000
            figures = {"test_accuracy": value, "epoch_train_loss": 1.0}
            figures |= {named("test_accuracy", each): value for each in config.evaluations}
            for epoch in range(config.epochs):
                step = (epoch + 1) * config.steps_per_epoch
                lease.record(step, epoch, figures)
            lease.finish(seconds=60.0, diverged_step=None)
        store.note("preset", preset)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "stores" / "lab.sqlite"
    fill(path, "full", 0.5)
    fill(path, "quick", 0.5)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["lab.sqlite"]


def row(store: Path, claim: str = "C5") -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(call("list", "--store", store, "--json"))
    return next(each for each in found if each["claim"] == claim)


def test_list_has_verdict_and_cost_of_each_preset(store: Path) -> None:
    found = row(store)
    assert found["verdicts"] == {"quick": "confirmed", "full": "confirmed"}
    assert list(found["cost"]) == ["quick", "full", "paper"]
    runs = found["cost"]["quick"]["runs"]
    assert found["cost"]["quick"]["seconds"] == 60.0 * runs
    assert found["cost"]["paper"]["seconds"] is None
    assert found["last"]["preset"] == "quick"


@pytest.mark.parametrize("command", ["report", "verdicts", "compare"])
def test_each_run_is_read_and_judged_once(
    command: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    read_run, finding = lab_store.read_run, lab_judge.finding

    def count_read(connection: Any, row: Any, path: Path) -> Any:
        reads[f"{path} {row['key']}"] += 1
        return read_run(connection, row, path)

    def count_finding(claim: Any, evidence: Any, **options: Any) -> Any:
        findings[f"{claim.key} {evidence.preset}"] += 1
        return finding(claim, evidence, **options)

    monkeypatch.setattr(lab_store, "read_run", count_read)
    monkeypatch.setattr(lab_judge, "finding", count_finding)
    if command == "compare":
        second = tmp_path / "second.sqlite"
        fill(second, "quick", 0.5)
        call("compare", store, second)
        assert findings == {"C5 full": 1, "C5 quick": 2}
    else:
        call(command, "--store", store, *(["--out", tmp_path / "a.html"] * (command == "report")))
        assert findings == {"C5 quick": 1}
    assert set(reads.values()) == {1}


def test_last_verdict_is_the_claims_own_and_not_the_stores(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    fill(path, "full", 0.5)
    with Store(path) as opened:
        opened.plan("C1", "quick", [])
        opened.note("preset", "quick")
        assert opened.last_preset("C5") == "full"
        assert opened.last_preset("C2") is None
    assert row(path)["last"]["preset"] == "full"
    assert row(path)["last"]["word"] == "confirmed"


def test_last_preset_of_older_store_is_that_of_its_last_run(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lab.sqlite"
    fill(path, "full", 0.5)
    fill(path, "quick", 0.5)
    with Store(path) as opened:
        opened.connection.execute("DELETE FROM facts WHERE name LIKE 'preset:%'")
        opened.connection.execute(
            "UPDATE runs SET finished = finished + 1000 WHERE id IN "
            "(SELECT run FROM plans WHERE preset = 'full')"
        )
        assert opened.last_preset("C5") == "full"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_list_keeps_its_lines_whole(
    store: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Console(width=width, markup=False, highlight=False, force_terminal=False)
    monkeypatch.setattr(lab_list, "console", lambda: made)
    lab_list.list_claims(store=store)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    (first,) = [number for number, line in enumerate(lines) if line.startswith("C5  ")]
    shown = [" ".join(line.split()) for line in lines[first : first + 8]]
    costs = [line for line in shown if re.match(r"(quick|full|paper) ", line)]
    assert len(costs) == 3
    assert re.fullmatch(r"quick ▸ confirmed( \d of \d)? \d+ runs [\d.]+ min", costs[0])
    assert re.fullmatch(r"full confirmed( \d of \d)? \d+ runs [\d.]+ min", costs[1])
    assert re.fullmatch(r"paper not run \d+ runs for a GPU", costs[2])


def test_verdicts_go_into_a_readme(store: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Mine\n\n{BEGIN}\n{END}\n\nmore\n")
    call("verdicts", "--store", store, "--into", readme)
    text = readme.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n| claim |")
    assert text.endswith(f"{END}\n\nmore\n")
    assert re.search(r"^\| C5 .* \| confirmed.* \| .* points.* \| \d+ \|$", text, re.MULTILINE)
    assert "unchanged" in call("verdicts", "--store", store, "--into", readme)
    table = call("verdicts", "c5", "--store", store, "--preset", "full")
    assert "(`full` preset: " in table
    assert "on " in table
    short = call("verdicts", "--store", store, "--preset", "full", "--short")
    assert "preset" not in short
    assert short.startswith("| claim | verdict | deciding effects [95 % CI] |\n")
    assert "| C5 " not in short  # no claim of the README


def test_verdicts_of_a_preset_that_was_not_run(store: Path) -> None:
    said = call("verdicts", "--store", store, "--preset", "paper", code=2)
    assert "--preset paper" in said


def test_export_and_tensorboard_name_what_they_wrote(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    assert "runs.csv" in call("export", "--store", store, "--out", out)
    found = json.loads(call("export", "--store", store, "--out", out, "--json"))
    assert found["rows"]["runs"] == len((out / "runs.csv").read_text().splitlines()) - 1
    call("export", "--store", store, "--out", out, "--format", "parquet")
    assert (out / "verdicts.parquet").is_file()
    events = tmp_path / "events"
    found = json.loads(call("tensorboard", "--store", store, "--out", events, "--json"))
    assert all(any(Path(folder).glob("events*")) for folder in found["runs"])
    assert "tensorboard --logdir" in call("tensorboard", "--store", store, "--out", events)


def test_compare_marks_what_differs(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    fill(other, "quick", -0.1)
    said = call("compare", store, other)
    assert "1 of 1 verdicts that both have differ: C5 (quick)." in said
    assert "disjoint intervals" in said
    found = json.loads(call("compare", store, other, "--json"))
    assert [(each["preset"], each["differs"]) for each in found["claims"]] == [
        ("quick", True),
        ("full", False),
    ]
    assert found["claims"][0]["effects"][0]["overlap"] is False
    assert found["shared"]["figures"][0]["runs"] == found["shared"]["runs"] > 0
    same = call("compare", store, store)
    assert "0 of 2 verdicts that both have differ." in same


READING = (
    ["report", "--out", "{out}/page.html", "--store"],
    ["list", "--store"],
    ["verdicts", "--store"],
    ["export", "--out", "{out}/tables", "--store"],
    ["tensorboard", "--out", "{out}/events", "--store"],
    ["compare", "{good}"],
    ["run", "C5", "--report", "{out}/page.html", "--store"],
)


@pytest.mark.parametrize("command", READING, ids=[command[0] for command in READING])
@pytest.mark.parametrize("what", ["text", "cut", "garbage", "newer"])
def test_every_command_refuses_a_store_that_is_none(
    command: list[str], what: str, store: Path, tmp_path: Path
) -> None:
    whole = store.read_bytes()
    content = {
        "text": b"a thesis\n" * 1000,
        "cut": whole[: len(whole) // 2],
        "garbage": whole[:8192] + b"\xa5" * 4096 + whole[12288:],
        "newer": whole[:60] + (99).to_bytes(4, "big") + whole[64:],  # user_version
    }[what]
    folder = tmp_path / "bad"
    folder.mkdir()
    bad = folder / "lab.sqlite"
    bad.write_bytes(content)
    given = [part.format(out=tmp_path / "out", good=store) for part in command]
    said = " ".join(call(*given, bad, code=2).split())
    assert "Fix:" in said
    assert ("the normkit that made it" if what == "newer" else "sound SQLite file") in said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"lab.sqlite": content}
    assert not (tmp_path / "out" / "page.html").exists()


@pytest.mark.parametrize("command", READING[:-1], ids=[command[0] for command in READING[:-1]])
def test_no_command_that_reads_makes_a_store(
    command: list[str], store: Path, tmp_path: Path
) -> None:
    given = [part.format(out=tmp_path / "out", good=store) for part in command]
    missing = tmp_path / "missing" / "lab.sqlite"
    said = call(*given, missing, code=0 if command[0] == "list" else 2)
    assert command[0] == "list" or f"no file {missing}" in " ".join(said.split())
    assert not missing.parent.exists()
