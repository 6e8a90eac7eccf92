"""A sealed place for the data tests: no network, no system packages, no cache of this machine."""

from __future__ import annotations

import io
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normkit.lab.data import catalogue
from tests.lab.data.small import Small, make

torch.set_num_threads(1)

Archive = Callable[[dict[str, bytes]], bytes]


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is reached but the machine itself; the cache is new and empty. Gives its folder."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("NORMKIT_CACHE", str(cache))
    for name in ("NORMKIT_DATA", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: tuple[str, int]) -> None:
        if address[0] != "127.0.0.1":
            raise OSError("the tests have no network")
        connect(self, address)

    def nowhere(host: str, *args: object, **kwargs: object) -> list[object]:
        if host != "127.0.0.1":
            raise OSError("the tests have no network")
        return lookup(host, *args, **kwargs)  # type: ignore[arg-type,return-value]

    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    return cache


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to start a program or look up a host fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"this must not be called: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Small:
    """A small Fashion-MNIST, which ``load("fashion-mnist")`` takes for the whole set."""
    made = make(absent=tmp_path / "usr/share/datasets/fashion-mnist")
    monkeypatch.setitem(catalogue.SPECS, "fashion-mnist", made.spec)
    return made


@pytest.fixture
def archive() -> Archive:
    """Makes a .tar.gz of some members, in memory."""

    def make(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    return make
