"""Fetching: from a package by stand-ins for apt-get and dpkg-deb, from a server on this machine."""

from __future__ import annotations

import dataclasses
import http.server
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normkit.errors import DataError
from normkit.lab import data
from normkit.lab.data import catalogue, debian, fetching, mirrors
from normkit.lab.data.reading import UnavailableError

NAME = "fashion-mnist"
Serve = Callable[[dict[str, bytes]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves some files on this machine; those whose name is in ``cut`` break off half-way."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(files: dict[str, bytes], cut: tuple[str, ...] = ()) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                if name not in files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(files[name])))
                self.end_headers()
                whole = files[name]
                self.wfile.write(whole[: len(whole) // 2] if name in cut else whole)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def at(small: Any, monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
    """Have the small data set published at these places, and no package of it."""
    spec = dataclasses.replace(small.spec, mirrors=places, package="", folder=None)
    monkeypatch.setitem(catalogue.SPECS, NAME, spec)


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def test_mirror_fills_the_cache(
    small: Any, serve: Serve, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = serve(small.files)
    at(small, monkeypatch, mirror)
    loaded = data.load(NAME)
    assert (loaded.origin, loaded.subset) == (mirror, False)
    assert files_in(sealed / NAME) == sorted([*small.files, "origin.txt"])
    # From now on the cache has it, and still knows where it came from.
    at(small, monkeypatch, "http://127.0.0.1:1/")
    assert data.load(NAME, allow_subset=False, offline=True).origin == mirror


@pytest.mark.parametrize("trouble", ["missing", "cut", "wrong"])
def test_bad_mirror_leaves_nothing_and_next_is_tried(
    small: Any, serve: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    last = "t10k-labels-idx1-ubyte.gz"
    files, cut = dict(small.files), ()
    if trouble == "missing":
        del files[last]
    elif trouble == "wrong":
        files[last] = files[last][:-1] + b"\xff"
    else:
        cut = (last,)
    bad = serve(files, cut)
    at(small, monkeypatch, bad)
    with pytest.raises(DataError, match=last):
        data.load(NAME, allow_subset=False)
    assert files_in(sealed / NAME) == []
    good = serve(small.files)
    at(small, monkeypatch, bad, good)
    assert data.load(NAME).origin == good


def test_damage_in_the_cache_is_repaired(
    small: Any, serve: Serve, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(small, monkeypatch, serve(small.files))
    folder = small.write(sealed / NAME)
    broken = folder / "train-images-idx3-ubyte.gz"
    broken.write_bytes(b"half a file")
    assert data.fetch(NAME, progress=False).available
    assert broken.read_bytes() == small.files[broken.name]


def test_progress_is_shown(
    small: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at(small, monkeypatch, serve(small.files))
    assert data.fetch(NAME, progress=True).available
    shown = capsys.readouterr()
    assert "train-images-idx3-ubyte.gz" in shown.err
    assert shown.out == ""


def test_silent_host_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "CONNECT_SECONDS", 0.2)
    asleep = threading.Event()

    def silent(*args: object) -> None:
        asleep.wait(20)
        raise OSError("at last")

    monkeypatch.setattr(socket, "create_connection", silent)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="no answer within"):
        mirrors._check_answer("https://example.invalid/")
    assert time.monotonic() - start < 5
    asleep.set()


def test_unreachable_host_is_reported(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("https://example.invalid/", "http://127.0.0.1:1/"):
        with pytest.raises(UnavailableError, match="no connection"):
            mirrors.from_mirror(small.spec, place, tmp_path, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interruption_leaves_nothing(small: Any, sealed: Path, error: Any) -> None:
    def fill(folder: Path) -> None:
        small.write(folder)
        raise error

    with pytest.raises((KeyboardInterrupt, UnavailableError)):
        fetching.fetched(small.spec, "test", fill)
    assert files_in(sealed / NAME) == []


def test_killed_fetch_leaves_no_complete_file(small: Any, sealed: Path) -> None:
    script = (
        "import pathlib, sys, time\n"
        "from normkit.lab.data import catalogue, fetching\n"
        "def fill(folder):\n"
        "    (folder / 'train-images-idx3-ubyte.gz').write_bytes(b'half')\n"
        "    print('half way', flush=True)\n"
        "    time.sleep(60)\n"
        "fetching.fetched(catalogue.SPECS['fashion-mnist'], 'test', fill)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)
    folder = sealed / NAME
    assert [p.name[:10] for p in folder.iterdir()] == [".incoming-"]
    # The next one is not disturbed, and clears it away once it is a day old.
    fetching.fetched(small.spec, "test", lambda f: small.write(f) and None)
    (left,) = folder.glob(".incoming-*")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(left, (two_days_ago, two_days_ago))
    fetching.fetched(small.spec, "test", lambda f: small.write(f) and None)
    assert files_in(folder) == sorted([*small.files, "origin.txt"])


def test_two_fetches_at_once(small: Any, sealed: Path) -> None:
    both_are_there = threading.Barrier(2)
    outcomes: list[int] = []

    def fill(folder: Path) -> None:
        both_are_there.wait(10)
        small.write(folder)
        both_are_there.wait(10)

    def run() -> None:
        outcomes.append(len(fetching.fetched(small.spec, "test", fill).train))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [20, 20]
    assert files_in(sealed / NAME) == sorted([*small.files, "origin.txt"])


def test_cache_that_cannot_be_written(small: Any, sealed: Path) -> None:
    sealed.write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="set NORMKIT_CACHE"):
        fetching.fetched(small.spec, "test", lambda f: small.write(f) and None)


@pytest.fixture
def tools(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stand-ins for apt-get (its script is the argument) and dpkg-deb, first on the path.

    In the script, ``$PACKAGE`` is a package of the small data set.
    """
    package = tmp_path / "package.tar"
    root = small.write(tmp_path / "root")
    with tarfile.open(package, "w") as tar:
        for path in root.iterdir():
            inside = small.spec.folder.relative_to("/") / path.name
            tar.add(path, str(inside))
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, text: str) -> None:
        (folder / name).write_text("#!/bin/sh\n" + text)
        (folder / name).chmod(0o755)

    def make(script: str) -> None:
        write("apt-get", script)
        write("dpkg-deb", 'mkdir -p "$3" && tar -xf "$2" -C "$3"\n')
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("PACKAGE", str(package))
        monkeypatch.setitem(catalogue.SPECS, NAME, dataclasses.replace(small.spec, mirrors=()))

    return make


DOWNLOAD = 'case "$*" in *download*) cp "$PACKAGE" dataset.deb;; esac\n'


@pytest.mark.usefixtures("small")
def test_package_fills_the_cache(
    tools: Callable[[str], None], small: Any, sealed: Path, tmp_path: Path
) -> None:
    tools(f'echo "$*" >> {tmp_path}/asked\n' + DOWNLOAD)
    loaded = data.load(NAME, allow_subset=False)
    assert loaded.origin == "the system's package dataset-fashion-mnist"
    assert len(loaded.train) == 20
    assert files_in(sealed / NAME) == sorted([*small.files, "origin.txt"])
    asked = (tmp_path / "asked").read_text().splitlines()
    # Only downloaded: nothing is installed, and the lists are not touched where they serve.
    assert len(asked) == 1 and asked[0].endswith("download dataset-fashion-mnist")


def test_missing_lists_are_fetched_into_a_folder_of_their_own(
    tools: Callable[[str], None], tmp_path: Path, small: Any
) -> None:
    tools(
        f'echo "$*" >> {tmp_path}/asked\n'
        'case "$*" in *Dir::State::Lists=*);; *)\n'
        '  echo "E: Unable to locate package x" >&2; exit 100;; esac\n' + DOWNLOAD
    )
    assert data.fetch(NAME, progress=False).available
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == [
        "dataset-fashion-mnist",
        "update",
        "dataset-fashion-mnist",
    ]
    assert all("/.incoming-" in line for line in asked)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'E: Temporary failure resolving' >&2; exit 100", "Temporary failure resolving"),
        ("exit 3", "exit 3"),
        ("exit 0", "brought no package"),
        ('case "$*" in *download*) echo x > a.deb;; esac', "dpkg-deb: exit"),
    ],
)
def test_package_error_is_reported(
    tools: Callable[[str], None], small: Any, script: str, message: str, sealed: Path
) -> None:
    tools(script)
    with pytest.raises(DataError, match=message):
        data.load(NAME, allow_subset=False)
    assert files_in(sealed / NAME) == []


def test_damaged_package_is_reported(
    tools: Callable[[str], None], small: Any, tmp_path: Path, sealed: Path
) -> None:
    small.files["train-images-idx3-ubyte.gz"] = small.files["t10k-images-idx3-ubyte.gz"]
    tools(DOWNLOAD)
    root = small.write(tmp_path / "root2")
    with tarfile.open(tmp_path / "package.tar", "w") as tar:
        for path in root.iterdir():
            tar.add(path, str(small.spec.folder.relative_to("/") / path.name))
    with pytest.raises(DataError, match="what came is damaged"):
        data.load(NAME, allow_subset=False)
    assert files_in(sealed / NAME) == []


def test_hanging_command_is_stopped(
    tools: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    monkeypatch.setattr(debian, "STALL_SECONDS", 0.5)
    tools("exec sleep 60")
    start = time.monotonic()
    with pytest.raises(DataError, match="nothing came for"):
        data.load(NAME, allow_subset=False)
    assert time.monotonic() - start < 20


def test_slow_command_is_not_stopped(
    tools: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, small: Any
) -> None:
    monkeypatch.setattr(debian, "STALL_SECONDS", 0.8)
    tools("for i in 1 2 3 4 5 6; do sleep 0.3; echo x >> partial; done\n" + DOWNLOAD)
    assert len(data.load(NAME, allow_subset=False).train) == 20


def test_systems_without_apt(small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no apt-get"):
        debian.from_package(small.spec, tmp_path, lambda text: None)
