"""What comes out of a damaged store is whole, and equal to what went in."""

from __future__ import annotations

import io
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normkit.errors import StoreError
from normkit.lab.config import RunConfig
from normkit.lab.leases import acquire
from normkit.lab.runs import Run
from normkit.lab.salvage import Salvaged, salvage
from normkit.lab.store import Store

Make = Callable[..., RunConfig]
PAGE = 4096
SEEDS = 30
CLAIMS = ("C1", "C2", "C3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_config: Make) -> Path:
    """A store with results, and one run in five stopped at a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "lab.sqlite"
    state = io.BytesIO()
    torch.save({"weight": torch.arange(5000.0)}, state)
    with Store(path) as store:
        for claim in CLAIMS:
            store.plan(claim, "quick", [(claim, make_config(seed=i)) for i in range(SEEDS)])
        store.plan("C5", "full", [("by itself", make_config(seed=0))])
        store.note("preset", "quick")
        for seed in range(SEEDS):
            config = make_config(seed=seed)
            lease = acquire(store, config.key)
            assert lease is not None
            for step in range(config.steps + 1):
                lease.record(step, 0, {"loss": seed + 1 / (step + 1), "none": None})
                lease.record(step, 0, {}, {"quantiles": [step / 7] * 60})
            if seed % 5 == 4:
                lease.checkpoint(config.steps, state.getvalue())
                lease.release()
            else:
                lease.finish(seconds=seed + 0.5, diverged_step=None)
    return path


def runs(path: Path) -> dict[str, Run]:
    with Store(path) as store:
        return {key: run for key in store.run_keys() if (run := store.get(key)) is not None}


def damage(whole: Path, path: Path, page: int, pages: int = 1, with_: bytes | None = None) -> None:
    content = bytearray(whole.read_bytes())
    size = pages * PAGE
    begin = page * PAGE
    content[begin : begin + size] = os.urandom(size) if with_ is None else with_ * size
    path.write_bytes(content)


def check(whole: Path, path: Path) -> Salvaged:
    """Salvage, and hold what came out against what went in."""
    before = path.read_bytes()
    out = path.with_name("new.sqlite")
    found = salvage(path, out)
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == sorted([path.name, out.name])
    was, came = runs(whole), runs(out)
    assert found.results + found.unfinished + found.anew == len(came)
    for key, run in came.items():
        if run.finished_training:
            assert run == was[key]
        else:
            assert run.status == "waiting"
            assert run.metrics in ({}, was[key].metrics)
    assert found.results == sum(run.finished_training for run in came.values())
    with Store(out) as store:
        assert sorted(store.plans()) == sorted(found.plans)
        for plan in found.plans:  # a plan that came is whole
            assert len(store.planned(*plan)) == (1 if plan == ("C5", "full") else SEEDS)
    return found


def test_sound_store_is_copied_completely(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(whole.read_bytes())
    found = check(whole, path)
    assert found == Salvaged(
        results=24,
        unfinished=6,
        plans=[*((claim, "quick") for claim in CLAIMS), ("C5", "full")],
    )
    with Store(tmp_path / "new.sqlite") as store:
        assert store.fact("preset") == "quick"
        config = next(run.config for run in runs(whole).values() if run.status == "waiting")
        lease = acquire(store, config.key)
        assert lease is not None
        state = lease.resume()
        assert state is not None
        assert len(torch.load(io.BytesIO(state))["weight"]) == 5000


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("with_", [None, b"\xff", b"\0"])
def test_garbage_in_the_middle_loses_few_runs(
    whole: Path, tmp_path: Path, part: float, with_: bytes | None
) -> None:
    path = tmp_path / "lab.sqlite"
    damage(whole, path, int(part * whole.stat().st_size) // PAGE, 2, with_)
    found = check(whole, path)
    assert found.results + found.unfinished >= SEEDS // 2
    assert found.anew + found.lost > 0 or found.left_out or found.results == 24


def test_every_page_may_be_garbage(whole: Path, tmp_path: Path) -> None:
    pages = whole.stat().st_size // PAGE
    losses = 0
    for page in {*range(1, 9), *range(9, pages, pages // 5)}:
        folder = tmp_path / str(page)
        folder.mkdir()
        path = folder / "lab.sqlite"
        damage(whole, path, page)
        found = check(whole, path)
        losses += found.anew + found.lost + len(found.left_out)
    assert losses


@pytest.mark.parametrize("left", [0.9, 0.5, 0.2])
def test_truncated_file_loses_only_missing_pages(whole: Path, tmp_path: Path, left: float) -> None:
    path = tmp_path / "lab.sqlite"
    content = whole.read_bytes()
    path.write_bytes(content[: int(left * len(content)) + 100])
    with pytest.raises(StoreError, match=r"normkit lab salvage .*lab\.sqlite --out"):
        Store(path, read_only=True)
    found = check(whole, path)
    assert found.anew + found.lost > 0
    assert found.results > 0 or left < 0.9


def test_claim_with_incomplete_plan_is_planned_again(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(whole.read_bytes())
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM plans WHERE claim = 'C2' AND position = 7")
    connection.commit()
    connection.close()
    found = check(whole, path)
    assert found.left_out == [("C2", "quick")]


def test_result_without_last_step_is_trained_again(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(whole.read_bytes())
    connection = sqlite3.connect(path)
    (last,) = connection.execute("SELECT max(step) FROM metrics").fetchone()
    for table in ("metrics", "vectors"):
        connection.execute(f"DELETE FROM {table} WHERE run = 1 AND step = ?", (last,))
    connection.commit()
    connection.close()
    assert check(whole, path).anew == 1


@pytest.mark.parametrize("place, value", [(6, 1), (8, 12), (8, 99)])
def test_checkpoint_with_unknown_compression_is_unreadable(
    whole: Path, tmp_path: Path, place: int, value: int
) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(whole.read_bytes())
    with sqlite3.connect(path) as connection:
        run, state = connection.execute("SELECT run, state FROM checkpoints").fetchone()
        spoilt = bytearray(state)
        # Encrypted, or by another method: in the archive's directory and before the part itself.
        for sign, further in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            spoilt[spoilt.index(sign) + place + further] = value
        connection.execute("UPDATE checkpoints SET state = ? WHERE run = ?", (spoilt, run))
    connection.close()
    found = check(whole, path)
    assert (found.anew, found.unfinished) == (1, SEEDS // 5 - 1)


def test_first_page_of_garbage_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    damage(whole, path, 0)
    with pytest.raises(StoreError, match=r"first page.*Fix"):
        salvage(path, tmp_path / "new.sqlite")
    assert not (tmp_path / "new.sqlite").exists()


def test_what_exists_is_not_written_over(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.sqlite"
    out.write_text("mine")
    with pytest.raises(StoreError, match="name another with --out"):
        salvage(whole, out)
    assert out.read_text() == "mine"


def test_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "mail.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mail (text TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        salvage(path, tmp_path / "new.sqlite")
