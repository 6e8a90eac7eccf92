"""The compiled libraries ask for nothing that a machine with torch lacks, whatever it is."""

from __future__ import annotations

import ast
import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normkit.compat import release
from normkit.kernels import cpu
from tests import forked
from tests.test_build import DESCRIBE, _copy_of_the_loader

ROOT = Path(__file__).parents[1]
FOLDER = Path(cpu.__file__).parent
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
# What a system has for which the wheel is tagged, manylinux_2_34.
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)}
SYSTEM = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"}
TORCH = {"libtorch_cpu.so", "libc10.so", "libtorch_python.so"}
ENGINE = {"libnormkit_cpu.so"}
EXTENSION = sorted(FOLDER.glob(f"_cpu*{SUFFIX}"))

pytestmark = pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")
inspects = pytest.mark.skipif(
    sys.platform != "linux" or not all(map(shutil.which, ("readelf", "nm"))),
    reason="needs Linux and binutils",
)


def _run(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


@inspects
@pytest.mark.parametrize(
    ("file", "libraries"),
    [(FOLDER / "libnormkit_cpu.so", SYSTEM), *((e, SYSTEM | TORCH | ENGINE) for e in EXTENSION)],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_a_library_needs_torch_and_the_system_only(file: Path, libraries: set[str]) -> None:
    dynamic = _run("readelf", "-d", file)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert {name for name in needed if not name.startswith("ld-linux")} <= libraries
    # The engine is beside the extension; torch's libraries are loaded, and never searched for.
    assert set(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)) <= {"$ORIGIN"}
    if "CI" not in os.environ:
        return  # a newer compiler than the one that wheels are made with may ask for more
    for name, version in re.findall(r"@(\w+?)_([\d.]+)", _run("nm", "-D", "-u", file)):
        assert tuple(map(int, version.split("."))) <= NEWEST[name], f"{name}_{version}"


@inspects
def test_nothing_is_exported_but_the_interfaces() -> None:
    """A symbol more could take the place of one of torch's, or be taken for it."""
    allowed = r"PyInit__cpu|nk_\w+|__bss_start|_edata|_end"
    for file in (*EXTENSION, FOLDER / "libnormkit_cpu.so"):
        lines = _run("nm", "-D", "--defined-only", file).splitlines()
        # Of C++ only what libraries share by their rules: templates and inline functions.
        own = [line for line in lines if not re.search(rf" [uVWvw] | ({allowed})$", line)]
        assert own == [], file.name


def test_of_several_extensions_the_one_for_this_torch_is_loaded(tmp_path: Path) -> None:
    """Files for other releases, which would not even load, are not opened."""
    report = {"built": True, "torches": ["1.0.0", f"{torch.__version__.split('+')[0]}"]}
    target = _copy_of_the_loader(tmp_path, report) / "normkit/kernels/cpu"
    major, minor = release(torch.__version__)
    kind = "" if torch._C._GLIBCXX_USE_CXX11_ABI else "-abi0"
    shutil.copy(EXTENSION[0], target / f"_cpu.torch{major}.{minor}{kind}{SUFFIX}")
    for name in (f"_cpu.torch1.0{SUFFIX}", f"_cpu{SUFFIX}"):
        (target / name).write_bytes(b"not a library")
    for library in FOLDER.glob("libnormkit_cpu.*"):
        shutil.copy(library, target)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NORMKIT_KERNELS": ""}
    done = forked.python("-c", DESCRIBE, env=environment)
    assert done.stdout.startswith("fused C++ kernels, "), done.stdout + done.stderr
    # No tool that walks through packages takes them for modules, and imports one for another torch.
    walk = "import pkgutil; from normkit.kernels import cpu\n"
    walk += "print(*(m.name for m in pkgutil.walk_packages(cpu.__path__)))"
    modules = forked.python("-c", walk, env=environment).stdout.split()
    assert set(modules) == {"_cpu", "libnormkit_cpu"}


def test_setup_and_the_loader_use_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("the source tree is not here")
    tree = ast.parse((ROOT / "setup.py").read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Torch"]
    scope: dict[str, object] = {"re": re, "dataclass": __import__("dataclasses").dataclass}
    exec(compile(tree, "setup.py", "exec"), {**scope, "Path": Path}, scope)
    for version in ("2.6.0", "2.13.1"):
        for cxx11 in (True, False):
            monkeypatch.setattr(torch, "__version__", version)
            monkeypatch.setattr(torch._C, "_GLIBCXX_USE_CXX11_ABI", cxx11)
            for installed in (True, False):
                stem = scope["Torch"](version, Path(), cxx11, installed).stem  # type: ignore[operator]
                assert cpu._file_name(of_several=not installed) == stem + SUFFIX


def test_the_releases_of_a_wheel_are_all_that_are_tested() -> None:
    pins = ROOT / "release/torches.txt"
    if not pins.exists():
        pytest.skip("the source tree is not here")
    lines = [line.split() for line in pins.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", checksum) for _, checksum in lines)
    minors = [release(version) for version, _ in lines]
    assert minors == [(2, minor) for minor in range(6, 6 + len(lines))]
    documented = (ROOT / "docs/releasing.md").read_text()
    assert f"{lines[0][0]} to {lines[-1][0]}" in documented
