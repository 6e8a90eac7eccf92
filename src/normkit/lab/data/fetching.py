"""Fetching a data set into the cache: from the system's package, or from the official mirrors.

Whatever is fetched goes into a new folder inside the cache, is checked and read there, and only
then moved, file by file, to its name. An interruption leaves nothing that looks like a whole file,
and two processes that fetch at once have a folder each and end with the same files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from normkit.errors import DataError
from normkit.lab.data.catalogue import Spec
from normkit.lab.data.reading import UnavailableError, cache_folder, find, read
from normkit.lab.data.split import Dataset

__all__ = ["fetched", "from_mirror", "from_package"]

ORIGIN_FILE = "origin.txt"
# How long to wait for a server to answer at all, and for the next piece of a file, in seconds.
CONNECT_SECONDS = 4.0
READ_SECONDS = 20.0
PACKAGE_SECONDS = 300.0
_DAY = 86_400.0


def fetched(spec: Spec, origin: str, fill: Callable[[Path], None]) -> Dataset:
    """Have ``fill`` put a data set's files into a new folder, check them, keep them in the cache.

    Raises:
        UnavailableError: ``fill`` could not, what it brought is damaged, or the cache is read-only.
    """
    folder = cache_folder() / spec.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        # In the cache itself: only within one file system does a move replace at once.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as name:
            incoming = Path(name)
            fill(incoming)
            dataset = read(spec, incoming, origin)
            for _, path in find(spec, incoming):
                path.replace(folder / path.name)
            note = incoming / ORIGIN_FILE
            note.write_text(origin + "\n", encoding="utf-8")
            note.replace(folder / ORIGIN_FILE)
    except DataError as error:
        raise UnavailableError(f"what came is damaged: {error}") from error
    except OSError as error:
        raise UnavailableError(f"cannot write to {folder} ({error}); set NORMKIT_CACHE") from error
    return dataset


def _remove_abandoned(folder: Path) -> None:
    # Left by a process that was killed. A day, so that nobody's running download is meant.
    for old in folder.glob(".incoming-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _DAY:
                shutil.rmtree(old)


def from_package(spec: Spec, folder: Path, say: Callable[[str], None]) -> None:
    """Get a Debian package's files without installing it; needs no root.

    ``apt-get download`` checks the package's signature and ``dpkg-deb -x`` only unpacks it. Where
    the system has no package lists (a fresh container), they are fetched into ``folder`` too and
    thrown away with it.

    Raises:
        UnavailableError: no such tools, no such package, no network.
    """
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if not apt or not dpkg or spec.folder is None:
        raise UnavailableError("this system has no apt-get and dpkg-deb")
    # Read after the system's own configuration. Hooks are cleared: they change the system.
    config = folder / "apt.conf"
    config.write_text(
        "#clear APT::Update::Pre-Invoke;\n"
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        'Acquire::Retries "0";\n'
        'Acquire::http::Timeout "5";\n'
        'Acquire::https::Timeout "5";\n',
        encoding="utf-8",
    )
    say(f"fetching the system's package {spec.package}")
    command = [apt, "-q", "-c", str(config)]
    try:
        _run([*command, "download", spec.package], folder)
    except UnavailableError:
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        command += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
        say("fetching the system's package lists, as it has none or old ones")
        _run([*command, "-o", "APT::Update::Error-Mode=any", "update"], folder)
        _run([*command, "download", spec.package], folder)
    packages = list(folder.glob("*.deb"))
    if not packages:
        raise UnavailableError(f"apt-get brought no package {spec.package}")
    unpacked = folder / "unpacked"
    _run([dpkg, "-x", str(packages[0]), str(unpacked)], folder)
    source = unpacked / spec.folder.relative_to("/")
    for file in spec.files:
        path = source / f"{file.name}.gz"
        if path.is_file() and not path.is_symlink():
            path.replace(folder / path.name)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=PACKAGE_SECONDS,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("E:")]
        reason = lines[-1] if lines else f"exit status {error.returncode}"
        raise UnavailableError(f"{Path(command[0]).name}: {reason.removeprefix('E: ')}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise UnavailableError(f"{Path(command[0]).name}: {error}") from error


def from_mirror(spec: Spec, mirror: str, folder: Path, progress: bool) -> None:
    """Download a data set's files from one official place.

    Raises:
        UnavailableError: no answer within a few seconds, a refusal, a wrong file.
    """
    try:
        import pooch
        import requests
    except ImportError:
        raise UnavailableError("pooch is missing: pip install 'normkit[lab]'") from None
    # pooch tells where it puts each file; here that is a folder that is gone a moment later.
    pooch.get_logger().setLevel(logging.WARNING)
    if not requests.utils.get_environ_proxies(mirror):
        _check_answer(mirror)
    for file in spec.files if spec.is_idx else spec.files[:1]:
        name = f"{file.name}.gz" if spec.is_idx else file.name
        with _bar(name, progress) as bar:
            try:
                pooch.retrieve(
                    mirror + name,
                    known_hash=f"md5:{file.md5}",
                    fname=name,
                    path=folder,
                    downloader=pooch.HTTPDownloader(
                        progressbar=bar,
                        chunk_size=1 << 18,
                        timeout=(CONNECT_SECONDS, READ_SECONDS),
                    ),
                )
            except (requests.exceptions.RequestException, ValueError) as error:
                raise UnavailableError(
                    f"{name}: {type(error).__name__}: {str(error)[:160]}"
                ) from error


def _check_answer(mirror: str) -> None:
    # requests limits the time for connecting, not for finding the address, and gives each
    # address of a host the whole time again. A thread is the only way to bound both.
    url = urllib.parse.urlsplit(mirror)
    outcome: list[str] = []

    def knock() -> None:
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), CONNECT_SECONDS).close()
            outcome.append("")
        except OSError as error:
            outcome.append(f"no connection ({error})")

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    reason = outcome[0] if outcome else f"no answer within {CONNECT_SECONDS:.0f} s"
    if reason:
        raise UnavailableError(reason)


@contextlib.contextmanager
def _bar(name: str, progress: bool) -> Iterator[Any]:
    """A progress bar with the face that pooch expects, or False."""
    if not progress:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as shown:
        yield _Bar(shown, shown.add_task(name, total=None))


class _Bar:
    def __init__(self, shown: Any, task: Any) -> None:
        self._shown, self._task, self._total = shown, task, 0

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, value: int) -> None:
        self._total = value
        self._shown.update(self._task, total=value)

    def update(self, amount: int) -> None:
        self._shown.advance(self._task, amount)

    def reset(self) -> None:
        self._shown.update(self._task, completed=0)

    def close(self) -> None:
        self._shown.update(self._task, completed=self._total)
