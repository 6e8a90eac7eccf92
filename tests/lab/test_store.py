from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normkit.errors import StoreError
from normkit.lab import schema
from normkit.lab.config import RunConfig
from normkit.lab.leases import acquire
from normkit.lab.store import Store

Make = Callable[..., RunConfig]


def test_equal_runs_of_two_claims_are_one_run(store: Store, make_config: Make) -> None:
    store.plan(
        "C1", "quick", [("with BN", make_config()), ("without BN", make_config(norm="none"))]
    )
    store.plan("C3", "quick", [("at 0.1", make_config())])
    (count,) = store.connection.execute("SELECT count(*) FROM runs").fetchone()
    assert count == 2
    assert [each.arm for each in store.planned("C1", "quick")] == ["with BN", "without BN"]
    assert store.plans() == [("C1", "quick"), ("C3", "quick")]


def test_new_plan_replaces_the_old_and_keeps_its_runs(store: Store, make_config: Make) -> None:
    store.plan("C1", "quick", [("a", make_config(seed=0)), ("a", make_config(seed=1))])
    store.plan("C1", "quick", [("a", make_config(seed=1))])
    assert [each.run.config.seed for each in store.planned("C1", "quick")] == [1]
    assert store.get(make_config(seed=0).key) is not None


def test_measurements_round_trip(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    lease = acquire(store, config.key)
    assert lease is not None
    lease.record(1, 0, {"train_loss": 2.5}, {"q": [0.5, 1.5]})
    lease.record(2, 0, {"train_loss": None})
    lease.finish(seconds=1.5, diverged_step=2)
    run = store.get(config.key)
    assert run is not None
    assert run.metrics["train_loss"] == ((1, 0, 2.5), (2, 0, None))
    assert run.vectors == {"q": {1: (0.5, 1.5)}}
    store.connection.execute("UPDATE vectors SET data = '[0.5'")
    damaged = store.get(config.key)
    assert damaged is not None
    with pytest.raises(StoreError, match="cannot be read"):
        damaged.vectors["q"]
    assert (run.status, run.diverged_step, run.seconds) == ("diverged", 2, 1.5)
    assert run.last("train_loss") is None
    assert run.versions["torch"]
    assert run.finished is not None


def test_facts(store: Store) -> None:
    assert store.fact("preset") is None
    store.note("preset", "quick")
    store.note("preset", "full")
    assert store.fact("preset") == "full"


def test_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no file .*normkit lab run"):
        Store(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("content", [b"this is no database, " * 500, b"SQLite format 3\x00" * 300])
def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"Fix"):
        Store(path)
    assert path.read_bytes() == content


def test_damaged_store_is_refused_and_left_alone(tmp_path: Path, make_config: Make) -> None:
    path = tmp_path / "lab.sqlite"
    with Store(path) as store:
        for seed in range(200):
            store.add(make_config(seed=seed))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"nothing was changed.*normkit lab salvage .*lab.sqlite"):
        Store(path)
    assert path.read_bytes() == bytes(content)


def test_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mail.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mail (text TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    Store(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"version 99.*the normkit that made it"):
        Store(path)
    assert path.read_bytes() == before


def test_older_store_is_migrated(
    tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lab.sqlite"
    with Store(path) as store:
        store.add(make_config())
    added = "ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with Store(path) as store:
        assert store.get(make_config().key) is not None
        assert store.connection.execute("SELECT mood FROM runs").fetchone()["mood"] == "calm"
        (version,) = store.connection.execute("PRAGMA user_version").fetchone()
        assert version == len(schema.MIGRATIONS)


def test_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lab.sqlite"
    Store(path).close()
    broken = "ALTER TABLE runs ADD COLUMN mood TEXT; ALTER TABLE nowhere ADD COLUMN mood TEXT"
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(StoreError):
            Store(path)
    with Store(path) as store:
        columns = {row["name"] for row in store.connection.execute("PRAGMA table_info(runs)")}
        assert "mood" not in columns


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StoreError, match="folder"):
        Store(tmp_path / "runs" / "lab.sqlite")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    Store(path).close()
    path.chmod(stat.S_IRUSR)
    with pytest.raises(StoreError, match="chmod"):
        Store(path)


def test_failed_runs_wait_again(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    lease: Any = acquire(store, config.key)
    lease.fail("no memory")
    assert acquire(store, config.key) is None
    store.retry_failed([config.key])
    assert acquire(store, config.key) is not None
