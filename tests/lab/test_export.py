"""What an export writes is what the store has, read back by pyarrow."""

from __future__ import annotations

import dataclasses
import datetime
import json
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from normkit.errors import StoreError
from normkit.lab.claims import c05
from normkit.lab.claims.claim import Available
from normkit.lab.config import RunConfig
from normkit.lab.export import FORMATS, Format, write
from normkit.lab.export_tables import TABLES, Row
from normkit.lab.judge import judge
from normkit.lab.leases import acquire
from normkit.lab.store import Store

Make = Callable[..., RunConfig]
AWKWARD = (1 / 3, 1e-308, -1.7976931348623157e308, 0.1 + 0.2, float("inf"), float("-inf"), None)
kinds = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture
def filled(tmp_path: Path, make_config: Make, write_run: Any) -> Path:
    """A store with runs of every kind: done, diverged, failed, waiting, shared, of no claim."""
    path = tmp_path / "lab.sqlite"
    odd = make_config(
        norm="batch", norm_options=(("momentum", 0.05), ("affine", None)), probes=(("a,b", 2),)
    )
    with Store(path) as store:
        arms = c05.CLAIM.plan("quick", Available("full", 60_000, 10_000))
        store.plan("C5", "quick", arms)
        store.plan("C1", "full", [("one; \"odd\", 'arm'\n", odd), ("shared", arms[0][1])])
        for _, config in arms:
            share = 0.8 if config.norm == "batch" else 0.1 + config.seed / 1000
            write_run(store, config, {"test_accuracy": [share] * config.epochs})
        lease = acquire(store, odd.key)
        assert lease is not None
        for step, value in enumerate(AWKWARD):
            lease.record(step, 0, {"train_loss": value}, {"quantiles": [step, value or 0.0, 1 / 7]})
        lease.finish(seconds=1 / 3, diverged_step=2)
        failed = make_config(seed=7)
        store.add(failed)
        lease = acquire(store, failed.key)
        assert lease is not None
        lease.fail('Traceback, "quoted"\nand, of lines\n')
        store.add(make_config(seed=8))
    return path


def read(folder: Path, name: str, kind: Format) -> list[dict[str, Any]]:
    columns = TABLES[name].columns
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        found = parquet.read_table(path)
        assert found.schema.equals(columns)
    else:
        found = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={field.name: field.type for field in columns}
            ),
        )
    return found.to_pylist()


@kinds
def test_export_matches_store(filled: Path, tmp_path: Path, kind: Format) -> None:
    out = tmp_path / "new" / "folder"
    with Store(filled, read_only=True) as store:
        counts = write(store, out, kind)
        tables = {name: read(out, name, kind) for name in TABLES}
        assert counts == {name: len(rows) for name, rows in tables.items()}

        assert [row["run"] for row in tables["runs"]] == store.run_keys()
        metrics: dict[Any, list[Any]] = {}
        for row in tables["measurements"]:
            point = (row["step"], row["epoch"], row["value"])
            metrics.setdefault((row["run"], row["metric"]), []).append(point)
        vectors: dict[Any, list[float]] = {}
        for row in tables["vectors"]:
            of = vectors.setdefault((row["run"], row["metric"], row["step"]), [])
            assert row["index"] == len(of)
            of.append(row["value"])
        for row in tables["runs"]:
            run = store.get(row["run"])
            assert run is not None
            described = {
                name: json.loads(row[name]) if isinstance(value, tuple) else row[name]
                for name, value in vars(run.config).items()
            }
            assert RunConfig.from_json(json.dumps(described)) == run.config
            assert RunConfig.from_json(json.dumps(described)).key == row["run"]
            for name in ("status", "step", "seconds", "diverged_step", "error", "machine"):
                assert row[name] == getattr(run, name), name
            for name in ("normkit", "torch", "numpy", "python"):
                assert row[f"{name}_version"] == run.versions.get(name, "")
            if run.finished is None:
                assert row["finished"] is None
            else:
                passed = row["finished"] - datetime.datetime.fromtimestamp(
                    run.finished, tz=datetime.timezone.utc
                )
                assert abs(passed) < datetime.timedelta(milliseconds=1)
            for name, points in run.metrics.items():
                assert tuple(metrics.pop((row["run"], name))) == points
            for name, by_step in run.vectors.items():
                for step, values in by_step.items():
                    assert tuple(vectors.pop((row["run"], name, step))) == values
        assert not metrics
        assert not vectors
        assert [tuple(row.values()) for row in tables["parts"]] == [*store.parts()]
        check_verdicts(store, tables["verdicts"])


def check_verdicts(store: Store, rows: list[dict[str, Any]]) -> None:
    (found,) = judge(store, "quick")
    assert found.word == "confirmed"
    mine = [row for row in rows if row["preset"] == "quick"]
    assert len(mine) == len(found.comparisons)
    for row, effect in zip(mine, found.comparisons, strict=True):
        assert (row["claim"], row["verdict"], row["sentence"]) == ("C5", found.word, found.sentence)
        low, high = effect.needed or (None, None)
        expected = dataclasses.asdict(effect) | {"needed_low": low, "needed_high": high}
        del expected["needed"]
        assert {name: row[name] for name in expected} == expected
    # C1 at full has no pairs to compare: a row that says so.
    (bare,) = [row for row in rows if row["preset"] == "full"]
    assert (bare["claim"], bare["verdict"], bare["effect"]) == ("C1", "open", None)


@kinds
def test_parts_that_a_run_plays_are_in_its_row(filled: Path, tmp_path: Path, kind: Format) -> None:
    with Store(filled, read_only=True) as store:
        write(store, tmp_path / "out", kind)
    rows = {row["run"]: row for row in read(tmp_path / "out", "runs", kind)}
    shared = rows[c05.CLAIM.plan("quick", Available("full", 60_000, 10_000))[0][1].key]
    assert (shared["claims"], shared["presets"]) == ("C1; C5", "full; quick")
    assert shared["arms"].startswith("shared; ")
    assert [row["claims"] for row in rows.values() if row["status"] in ("failed", "waiting")] == [
        "",
        "",
    ]


def test_every_field_of_a_run_has_a_column_of_its_type() -> None:
    columns = TABLES["runs"].columns
    assert len(set(columns.names)) == len(columns.names)
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    for field in dataclasses.fields(RunConfig):
        assert columns.field(field.name).type == types.get(str(field.type), pa.string())


def test_large_table_is_written_in_batches(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normkit.lab import export

    monkeypatch.setattr(export, "PIECE", 3)
    with Store(filled, read_only=True) as store:
        for kind in get_args(Format):
            counts = write(store, tmp_path / kind, kind)
            assert len(read(tmp_path / kind, "measurements", kind)) == counts["measurements"] > 9


def test_only_files_of_an_export_are_replaced(filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "runs.csv").write_text("of somebody else")
    (out / "notes.txt").write_text("mine")
    with Store(filled, read_only=True) as store:
        with pytest.raises(StoreError, match=r"runs\.csv in .*from elsewhere"):
            write(store, out, "csv")
        assert (out / "runs.csv").read_text() == "of somebody else"
        (out / "runs.csv").unlink()
        write(store, out, "csv")
        write(store, out, "csv")
    names = {path.name for path in out.iterdir()}
    assert names == {"about.json", "notes.txt", *(f"{name}.csv" for name in TABLES)}
    assert (out / "notes.txt").read_text() == "mine"
    about = json.loads((out / "about.json").read_text())
    assert about["tables"]["parts"]["columns"]["position"] == "int64"


@kinds
def test_interrupted_export_changes_nothing(
    filled: Path, tmp_path: Path, kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(store: Store) -> Iterator[Row]:
        raise OSError(28, "No space left on device")
        yield ()

    with Store(filled, read_only=True) as store:
        with monkeypatch.context() as patch:
            patch.setitem(TABLES, "verdicts", dataclasses.replace(TABLES["verdicts"], rows=full))
            with pytest.raises(StoreError, match="free some space"):
                write(store, out, kind)
        assert list(out.iterdir()) == []
        assert write(store, out, kind)["runs"] > 0


def test_tables_are_of_one_moment(filled: Path, tmp_path: Path, make_config: Make) -> None:
    out = tmp_path / "out"
    rows = TABLES["runs"].rows

    def slow(store: Store) -> Iterator[Row]:
        yield from rows(store)
        with Store(filled) as other:
            other.plan("C1", "full", [("new", make_config(seed=99))])

    with Store(filled, read_only=True) as store, pytest.MonkeyPatch.context() as patch:
        before = store.parts()
        patch.setitem(TABLES, "runs", dataclasses.replace(TABLES["runs"], rows=slow))
        write(store, out, "csv")
        assert store.parts() != before
    assert [tuple(row.values()) for row in read(out, "parts", "csv")] == before


def test_export_does_not_name_its_machine(filled: Path, tmp_path: Path, make_config: Make) -> None:
    out = tmp_path / "out"
    with Store(filled) as store:
        config = make_config(seed=70)
        store.add(config)
        lease = acquire(store, config.key)
        assert lease is not None
        try:
            Path(tmp_path / "secret").read_text()
        except OSError as error:
            lease.fail("".join(traceback.format_exception(error)).replace(str(error), "gone"))
        run = store.get(config.key)
        assert run is not None
        assert "File" in run.error
        write(store, out, "csv")
    (row,) = (row for row in read(out, "runs", "csv") if row["run"] == config.key)
    assert row["error"] == "FileNotFoundError: gone"
    for file in out.iterdir():
        assert str(tmp_path) not in file.read_text()
        assert socket.gethostname() not in file.read_text()


def test_folder_that_is_a_file_is_refused(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with Store(filled, read_only=True) as store, pytest.raises(StoreError, match="--out"):
        write(store, tmp_path / "out", "csv")


def test_empty_store_has_empty_tables(tmp_path: Path) -> None:
    Store(tmp_path / "lab.sqlite").close()
    with Store(tmp_path / "lab.sqlite", read_only=True) as store:
        for kind in FORMATS:
            assert set(write(store, tmp_path / kind, kind).values()) == {0}
            assert read(tmp_path / kind, "runs", kind) == []
