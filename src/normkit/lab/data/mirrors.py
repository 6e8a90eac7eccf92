"""Download a data set from an official mirror, with pooch."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normkit.errors import how_to_install
from normkit.lab.data.catalogue import Spec
from normkit.lab.data.reading import UnavailableError

__all__ = ["from_mirror"]

# How long to wait for a server to answer at all, and for the next piece of a file, in seconds.
CONNECT_SECONDS = 4.0
READ_SECONDS = 20.0


def from_mirror(spec: Spec, mirror: str, folder: Path, progress: bool) -> None:
    """Download a data set's files from one official mirror.

    Raises:
        UnavailableError: no answer within a few seconds, a refusal, a wrong file.
    """
    try:
        import pooch
        import requests
    except ImportError:
        raise UnavailableError(f"pooch is missing: {how_to_install('lab')}") from None
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
    """Show a progress bar with the interface that pooch expects; False without progress."""
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
