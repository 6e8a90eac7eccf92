"""Fetch the headers of the releases of torch in torches.txt, for `make wheel`.

    python release/headers.py build/torch-headers

writes FOLDER/VERSION/include, and leaves alone what is there already. Any wheel of a release has
its headers: those that the extension includes are the same on every system. The wheels for macOS
are the smallest, 70 to 140 MB each, and are deleted once the headers are out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).with_name("torches.txt")
PLATFORMS = ["macosx_14_0_arm64", "macosx_11_0_arm64"]
INSIDE = "torch/include/"


def pins() -> dict[str, str]:
    """Return the checksum of each version."""
    lines = (line.split("#")[0].split() for line in PINS.read_text().splitlines())
    return {line[0]: line[1] for line in lines if line}


def download(version: str, checksum: str, folder: Path) -> Path:
    """Return the wheel of a version, which pip has compared with its checksum."""
    asked = folder / "asked.txt"
    asked.write_text(f"torch=={version} --hash={checksum}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    # What may be installed on this machine does not matter: nothing is installed.
    environment = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    subprocess.run([*command, "-d", str(folder), "-r", str(asked)], check=True, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, target: Path) -> None:
    """Write the headers in a wheel to target/include, all of them or none."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, zipfile.ZipFile(wheel) as files:
        files.extractall(folder, [name for name in files.namelist() if name.startswith(INSIDE)])
        target.mkdir(exist_ok=True)
        shutil.move(Path(folder, INSIDE), target / "include")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pins()
    for version, checksum in wanted.items():
        if not (folder / version / "include").exists():
            print(f"headers of torch {version}", flush=True)
            with tempfile.TemporaryDirectory() as downloads:
                unpack(download(version, checksum, Path(downloads)), folder / version)
    for stale in folder.iterdir():  # a version that is not listed any more
        if stale.name not in wanted:
            shutil.rmtree(stale)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
