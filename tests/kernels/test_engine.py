"""The engine stands alone: a C interface without torch or Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normkit.kernels import cpu
from tests.kernels.builds import BUILDS

FOLDER = Path(cpu.__file__).parent
LIBRARY = next(FOLDER.glob("libnormkit_cpu.*"), None)

needs_library = pytest.mark.skipif(
    LIBRARY is None or cpu.fused is None, reason=cpu.reason or "built"
)


@needs_library
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer is loaded before Python")
@pytest.mark.parametrize("build", BUILDS)
def test_ctypes_calls_it_on_numpy_arrays(build: str) -> None:
    """In a process that has no torch."""
    program = Path(__file__).with_name("engine_by_ctypes.py")
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(LIBRARY), build],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


def test_only_files_named_for_torch_include_torch_or_python() -> None:
    sources = [*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]
    if not sources:
        pytest.skip("an installed package has no sources")
    include = re.compile(r'#include [<"]((?:torch|ATen|c10|caffe2)/|Python\.h|torch_)')
    including = {p.name for p in sources if include.search(p.read_text())}
    assert including == {p.name for p in sources if p.name.startswith("torch_")}
    assert {"engine.cpp", "engine.h", "forward.cpp", "backward.cpp"} <= {p.name for p in sources}


def test_no_file_is_longer_than_350_lines() -> None:
    sources = [*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")]
    lengths = {p.name: len(p.read_text().splitlines()) for p in sources}
    assert {name: n for name, n in lengths.items() if n > 350} == {}


def test_its_header_is_c() -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not (FOLDER / "engine.h").exists():
        pytest.skip("needs a C compiler and the sources")
    program = '#include "engine.h"\nint main(void) { return nk_interface() != NK_INTERFACE; }\n'
    command = [compiler, "-std=c99", "-Wall", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c"]
    done = subprocess.run(
        [*command, f"-I{FOLDER}", "-"], input=program, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
