"""A store is read without a trace; a file that is no sound store is refused and left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from normkit.errors import StoreError
from normkit.lab import schema
from normkit.lab.config import RunConfig
from normkit.lab.store import Store

Make = Callable[..., RunConfig]
SEEDS = 60


@pytest.fixture
def path(tmp_path: Path, make_config: Make) -> Path:
    """A store with some planned runs, closed."""
    path = tmp_path / "stores" / "lab.sqlite"
    with Store(path) as store:
        store.plan("C1", "quick", [("arm", make_config(seed=seed)) for seed in range(SEEDS)])
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, make_config: Make) -> Path:
    """The folder of a store whose writer was killed: what it wrote is in the log."""
    folder = tmp_path_factory.mktemp("killed")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from normkit.lab.store import Store; from normkit.lab.config import RunConfig\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for text in sys.argv[2:]: store.add(RunConfig.from_json(text))\n"
        "os._exit(0)\n"
    )
    texts = [make_config(seed=seed).to_json() for seed in range(SEEDS)]
    subprocess.run([sys.executable, "-c", code, str(folder / "lab.sqlite"), *texts], check=True)
    assert (folder / "lab.sqlite-wal").stat().st_size
    return folder


@pytest.fixture
def left_with_log(tmp_path: Path, killed: Path) -> Path:
    """The store of a killed writer, for one test."""
    return Path(shutil.copytree(killed, tmp_path / "killed")) / "lab.sqlite"


def snapshot(folder: Path) -> dict[str, bytes]:
    # The index of the log is rebuilt from the log by whoever comes first, and belongs to neither.
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")
    }


def open_for_writing(path: Path) -> None:
    Store(path).close()


def open_for_reading(path: Path) -> None:
    Store(path, read_only=True).close()


both = pytest.mark.parametrize("opening", [open_for_writing, open_for_reading])


def test_reading_leaves_no_trace(path: Path) -> None:
    before = snapshot(path.parent)
    with Store(path, read_only=True) as store:
        assert len(store.planned("C1", "quick")) == SEEDS
    assert snapshot(path.parent) == before
    assert [file.name for file in path.parent.iterdir()] == ["lab.sqlite"]


def test_log_of_killed_writer_is_read_and_kept(left_with_log: Path) -> None:
    before = snapshot(left_with_log.parent)
    with Store(left_with_log, read_only=True) as store:
        assert len(store.run_keys()) == SEEDS
    assert snapshot(left_with_log.parent) == before


def test_reader_sees_what_a_writer_goes_on_to_commit(path: Path, make_config: Make) -> None:
    with Store(path) as writer, Store(path, read_only=True) as reader:
        writer.add(make_config(seed=1000))
        assert reader.get(make_config(seed=1000).key) is not None
        with pytest.raises(StoreError, match="readonly"):
            reader.note("preset", "full")


def test_store_on_a_medium_that_cannot_be_written(
    path: Path, left_with_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever runs the tests may write anywhere; what the system says is put in its place.
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    before = snapshot(path.parent)
    with Store(path, read_only=True) as store:
        assert len(store.run_keys()) == SEEDS
        assert [file.name for file in path.parent.iterdir()] == ["lab.sqlite"]
    assert snapshot(path.parent) == before
    with Store(left_with_log, read_only=True) as store:
        assert len(store.run_keys()) == SEEDS


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"),
    reason="only the superuser can mount a file system",
)
def test_store_on_a_read_only_file_system(left_with_log: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name in ("lab.sqlite-shm",):
        (left_with_log.parent / name).unlink()
    bind = ["mount", "--bind", str(left_with_log.parent), str(mounted)]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mounted)], check=True)
        with Store(mounted / "lab.sqlite", read_only=True) as store:
            assert len(store.run_keys()) == SEEDS
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_older_store_is_read_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = "ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    before = snapshot(path.parent)
    with Store(path, read_only=True) as store:
        assert store.connection.execute("SELECT DISTINCT mood FROM runs").fetchone()[0] == "calm"
        with pytest.raises(StoreError, match="readonly"):
            store.note("preset", "full")
    assert snapshot(path.parent) == before


@both
def test_newer_store_is_refused_and_left_alone(
    left_with_log: Path, opening: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(left_with_log.parent)
    monkeypatch.setattr(schema, "MIGRATIONS", ())
    with pytest.raises(StoreError, match="the normkit that made it"):
        opening(left_with_log)
    assert snapshot(left_with_log.parent) == before


@both
@pytest.mark.parametrize("content", [b"a text\n", b"a text, " * 5000, b"\0" * 5000, b"SQLite f"])
def test_file_of_another_kind_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, opening: Callable[[Path], None]
) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"sound SQLite file.*nothing was changed"):
        opening(path)
    assert snapshot(tmp_path) == {"lab.sqlite": content}


@both
def test_truncated_store_is_refused_and_left_alone(
    path: Path, opening: Callable[[Path], None]
) -> None:
    whole = path.read_bytes()
    pages = range(4096, len(whole), 4096)
    for length in (1, 99, 511, 4095, *pages, len(whole) // 2 + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="Fix"):
            opening(path)
        assert snapshot(path.parent) == {"lab.sqlite": whole[:length]}


@both
def test_garbage_in_the_pages_is_refused_and_left_alone(
    path: Path, opening: Callable[[Path], None]
) -> None:
    whole = path.read_bytes()
    for page in range(1, len(whole) // 4096):
        content = bytearray(whole)
        content[page * 4096 : page * 4096 + 4096] = os.urandom(4096)
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"sound SQLite file"):
            opening(path)
        assert snapshot(path.parent) == {"lab.sqlite": bytes(content)}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("config", "{"),
        ("config", "[]"),
        ("config", '{"model": "lenet5"}'),
        ("config", b"\xff\xfe"),
        ("versions", "no JSON"),
    ],
)
def test_unreadable_record_is_reported_as_damage(
    path: Path, make_config: Make, column: str, value: str | bytes
) -> None:
    with Store(path) as store:
        store.connection.execute(f"UPDATE runs SET {column} = CAST(? AS TEXT)", (value,))
    with Store(path, read_only=True) as store, pytest.raises(StoreError, match="sound SQLite"):
        store.get(make_config(seed=0).key)


def test_run_of_newer_version_is_reported(path: Path, make_config: Make) -> None:
    text = make_config().to_json().replace('"lr":0.1', '"lr":0.1,"optimizer":"lion"')
    with Store(path) as store:
        store.connection.execute("UPDATE runs SET config = ?", (text,))
        with pytest.raises(StoreError, match="the normkit that made it"):
            store.get(make_config(seed=0).key)


def test_empty_file_can_become_a_store_and_holds_nothing_to_read(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.touch()
    with pytest.raises(StoreError, match=r"without any.*lab\.sqlite-wal"):
        Store(path, read_only=True)
    assert path.read_bytes() == b""
    Store(path).close()
    Store(path, read_only=True).close()


def test_log_without_its_store_is_not_deleted(left_with_log: Path) -> None:
    # To SQLite, an empty file is a new database, and a log beside it is left from another.
    log = left_with_log.with_name("lab.sqlite-wal")
    content = log.read_bytes()
    for break_it in (lambda: left_with_log.write_bytes(b""), left_with_log.unlink):
        break_it()
        with pytest.raises(StoreError, match="write-ahead log belongs to"):
            Store(left_with_log)
        assert log.read_bytes() == content


def test_store_without_its_log_names_missing_log(left_with_log: Path) -> None:
    left_with_log.with_name("lab.sqlite-wal").unlink()
    before = snapshot(left_with_log.parent)
    with pytest.raises(StoreError, match=r"copy lab\.sqlite-wal with it"):
        Store(left_with_log, read_only=True)
    assert snapshot(left_with_log.parent) == before


@pytest.fixture
def cut_log(left_with_log: Path) -> Iterator[Callable[[int], Path]]:
    log = left_with_log.with_name("lab.sqlite-wal")
    whole = log.read_bytes()

    def cut(length: int) -> Path:
        log.write_bytes(whole[:length])
        left_with_log.with_name("lab.sqlite-shm").unlink(missing_ok=True)
        return left_with_log

    cut.whole = len(whole)  # type: ignore[attr-defined]
    yield cut


def test_from_a_log_that_was_cut_all_whole_transactions_are_read(
    cut_log: Callable[[int], Path],
) -> None:
    whole = cut_log.whole  # type: ignore[attr-defined]
    counts = []
    for length in range(32, whole, whole // 12):
        path = cut_log(length)
        before = snapshot(path.parent)
        try:
            with Store(path, read_only=True) as store:
                counts.append(len(store.run_keys()))
        except StoreError as error:
            assert "without any" in str(error)  # so little that the tables are not there
            counts.append(-1)
        assert snapshot(path.parent) == before
    assert counts == sorted(counts)
    assert counts[0] == -1
    assert 0 < counts[-1] < SEEDS


def test_garbage_in_the_log_ends_it(left_with_log: Path) -> None:
    log = left_with_log.with_name("lab.sqlite-wal")
    content = bytearray(log.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    log.write_bytes(content)
    left_with_log.with_name("lab.sqlite-shm").unlink(missing_ok=True)
    with Store(left_with_log, read_only=True) as store:
        found = len(store.run_keys())
    assert 0 < found < SEEDS
    with Store(left_with_log) as store:
        assert len(store.run_keys()) == found


def test_store_in_another_journal_mode_is_read_and_keeps_it(path: Path) -> None:
    # As VACUUM INTO makes them.
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = snapshot(path.parent)
    with Store(path, read_only=True) as store:
        assert len(store.run_keys()) == SEEDS
    assert snapshot(path.parent) == before


def test_path_with_uri_characters(path: Path) -> None:
    odd = path.with_name("50% of? it #1.sqlite")
    path.rename(odd)
    with Store(odd, read_only=True) as store:
        assert len(store.run_keys()) == SEEDS
