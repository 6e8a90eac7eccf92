"""Get a data set from the system's package archive, without installing anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from normkit.lab.data.catalogue import Spec
from normkit.lab.data.reading import UnavailableError

__all__ = ["from_package"]

# A command that writes nothing for so many seconds is stopped: apt-get has no limit of its own on
# finding a server's address, and tries every list in turn.
STALL_SECONDS = 15.0
# What apt-get says when its lists are missing or older than the archive.
_OLD_LISTS = ("Unable to locate package", "no installation candidate", "404", "find a source")


def from_package(spec: Spec, folder: Path, say: Callable[[str], None]) -> None:
    """Download and unpack a Debian package's files without installing it; needs no root.

    ``apt-get download`` checks the package's signature and ``dpkg-deb -x`` only unpacks it. Where
    the system has no package lists (a fresh container) or old ones, they are fetched into
    ``folder`` too and thrown away with it.

    Args:
        spec: names the package and the folder that its files are in.
        folder: where the files are put, and all else on the way to them.
        say: receives messages about the download.

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
    command = [apt, "-q", "-c", str(config)]
    say(f"fetching the system's package {spec.package}")
    try:
        _run([*command, "download", spec.package], folder)
    except UnavailableError as error:
        if not any(sign in str(error) for sign in _OLD_LISTS):
            raise
        say("fetching the system's package lists first: it has none, or old ones")
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        command += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder / 'cache'}"]
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
    """Run a command in ``folder`` as long as it makes the folder grow."""
    name, log = Path(command[0]).name, folder / "log.txt"
    try:
        # To a file: what the command says counts as a sign of life too.
        with (
            log.open("w", encoding="utf-8") as output,
            subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            ) as process,
        ):
            try:
                _watch(process, name, folder)
            finally:
                process.kill()
    except OSError as error:
        raise UnavailableError(f"{name}: {error}") from error
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        reasons = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
        # The first names the cause, the later ones what followed from it.
        raise UnavailableError(f"{name}: {(reasons or [f'exit {process.returncode}'])[0]}")


def _watch(process: subprocess.Popen[bytes], name: str, folder: Path) -> None:
    size, since = -1, time.monotonic()
    while True:
        try:
            process.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            pass
        now = _size(folder)
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise UnavailableError(f"{name}: nothing came for {STALL_SECONDS:.0f} s")


def _size(folder: Path) -> int:
    total = 0
    # Files come and go under this walk, and one that went is no news.
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).lstat().st_size
    return total
