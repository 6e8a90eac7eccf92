"""Builds the fused C++ kernels beside the package; everything else is in pyproject.toml.

Without a compiler, torch or Python's headers, and where compiling fails for whatever reason, the
package installs all the same and computes with PyTorch's operations. Why is written to
``_build.json`` beside the place of the extension, where ``normkit.kernels.cpu`` reads it.

Environment:

    NORMKIT_BUILD_KERNELS   0: leave them out; 1: fail where they cannot be built
    NORMKIT_SANITIZE        sanitizers to build with, such as "address,undefined"
    CXX, CXXFLAGS, LDFLAGS  as everywhere
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "normkit.kernels.cpu._cpu"
FOLDER = Path("src/normkit/kernels/cpu")
KERNELS, GLUE = FOLDER / "kernels.cpp", FOLDER / "glue.cpp"
REPORT = "_build.json"

FLAGS = [
    "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-plt", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra",
]  # fmt: skip
# Best first. The kernels are compiled once for each; which one runs is chosen at run time.
X86_BUILDS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "plain": [],
}
LIBRARIES = ["-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]


class CannotBuild(Exception):  # noqa: N818
    """Why there are no fused kernels: half a sentence."""


def find_compiler() -> list[str]:
    named = os.environ.get("CXX")
    default = sysconfig.get_config_var("CXX") or ""
    for command in [named] if named else [default, "c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    asked = f" (CXX names {named})" if named else ""
    raise CannotBuild(
        f"no C++ compiler was found when normkit was installed{asked}; install one and reinstall"
    )


def find_torch() -> tuple[str, list[str], list[str], int]:
    """Its version without a local part, its folders of headers and libraries, its string ABI."""
    try:
        import torch
        from torch.utils import cpp_extension
    except Exception as error:
        raise CannotBuild(
            f"torch could not be imported when normkit was installed ({_one_line(error)}); "
            "install torch first, then normkit with --no-build-isolation"
        ) from error
    version = str(torch.__version__).split("+")[0]
    return (
        version,
        cpp_extension.include_paths(),
        cpp_extension.library_paths(),
        int(torch._C._GLIBCXX_USE_CXX11_ABI),
    )


def find_python() -> list[str]:
    folders = list(dict.fromkeys(sysconfig.get_path(k) for k in ("include", "platinclude")))
    if not any((Path(f) / "Python.h").exists() for f in folders):
        raise CannotBuild(
            "Python's C headers were not found when normkit was installed; install them "
            "(python3-dev, python3-devel) and reinstall"
        )
    return folders


def sanitizers() -> tuple[list[str], list[str]]:
    """Flags to compile with and to link with."""
    wanted = os.environ.get("NORMKIT_SANITIZE", "")
    if not wanted:
        # The plain loops over channels too, as vectors. All of -O3 takes three times as long to
        # compile and gains nothing: the loops that matter are unrolled where they are written.
        return [
            "-O2",
            "-ftree-loop-vectorize",
            "-fvect-cost-model=dynamic",
            "-fno-tree-slp-vectorize",
            "-g0",
        ], []
    on = [f"-fsanitize={wanted}"]
    # Undefined behaviour ends the process. vptr needs type information that torch hides.
    strict = ["-fno-sanitize-recover=all", "-fno-sanitize=vptr"]
    return ["-O1", "-g", "-fno-omit-frame-pointer", *on, *strict], on


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _run(command: list[str], doing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.stderr.write(done.stderr)
        lines = done.stderr.splitlines()
        first = next((x for x in lines if "error" in x.lower()), lines[-1] if lines else "no words")
        raise CannotBuild(f"{doing} failed when normkit was installed: {_one_line(first)}")
    if done.stderr:
        sys.stderr.write(done.stderr)


def _fresh(made: Path, rules: Path) -> bool:
    """Whether an object is newer than all that its dependency file (gcc's -MD) names."""
    try:
        when = made.stat().st_mtime_ns
        words = rules.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(Path(word).stat().st_mtime_ns < when for word in words)
    except (OSError, IndexError):
        return False


def _compile(command: list[str], source: Path, objects: Path, stem: str) -> Path:
    # The name holds all that the object depends on besides the sources.
    matters = [word for word in command if not word.startswith("-Wno-")]
    key = hashlib.sha256("\0".join(matters).encode()).hexdigest()[:12]
    made = objects / f"{stem}-{key}.o"
    rules = made.with_suffix(".d")
    if not _fresh(made, rules):
        fresh = made.with_suffix(f".{os.getpid()}.o")  # two installs at once do not mix
        made_with = ["-MD", "-MF", str(rules), "-c", str(source), "-o", str(fresh)]
        _run([*command, *made_with], f"compiling {source.name} ({stem})")
        fresh.replace(made)
    return made


def _objects(fallback: Path) -> Path:
    """Where objects are kept from one install to the next; pip's own folder is a new one each."""
    try:
        kept = Path("build/kernels")
        kept.mkdir(parents=True, exist_ok=True)
        return kept if os.access(kept, os.W_OK) else fallback
    except OSError:
        fallback.mkdir(parents=True, exist_ok=True)
        return fallback


def build(target: Path, scratch: Path) -> dict[str, object]:
    """Compile and link ``target``, or raise CannotBuild; what is worth knowing about the build."""
    if os.environ.get("NORMKIT_BUILD_KERNELS") == "0":
        raise CannotBuild("NORMKIT_BUILD_KERNELS=0 was set when normkit was installed")
    if sys.platform == "win32":
        raise CannotBuild("they are not built on Windows yet")
    missing = [p.name for p in (KERNELS, GLUE) if not p.exists()]
    if missing:
        raise CannotBuild(f"their source {missing[0]} was not there when normkit was installed")
    compiler = find_compiler()
    torch, headers, libraries, abi = find_torch()
    python = find_python()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    builds = X86_BUILDS if x86 else {"plain": []}
    checked, linked = sanitizers()

    more = shlex.split(os.environ.get("CXXFLAGS", ""))
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    compiler_line = version.splitlines()[0] if version else shlex.join(compiler)
    # gcc 12 takes its own AVX-512 header for reading what was never set.
    quiet = [] if "clang" in version else ["-Wno-maybe-uninitialized"]
    base = [*compiler, *checked, *FLAGS, *quiet, *more]
    glue = [
        *base,
        *(f"-DNORMKIT_HAS_{b.upper()}" for b in builds if b != "plain"),
        f'-DNORMKIT_TORCH="{torch}"',
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        # isystem: their warnings are not ours.
        *(word for folder in [*headers, *python] for word in ("-isystem", folder)),
    ]
    objects = _objects(scratch)
    suffix = hashlib.sha256(compiler_line.encode()).hexdigest()[:6]
    work = [(glue, GLUE, objects, f"glue-{suffix}")]  # the longest first
    work += [
        ([*base, f"-DNORMKIT_BUILD={b}", *flags], KERNELS, objects, f"{b}-{suffix}")
        for b, flags in builds.items()
    ]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        made = [str(o) for o in pool.map(lambda job: _compile(*job), work)]

    shared = (
        ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    )
    fresh = target.with_name(f".{os.getpid()}-{target.name}")
    _run(
        [
            *compiler, *shared, *linked, *made, "-o", str(fresh),
            *(f"-L{folder}" for folder in libraries), *LIBRARIES,
            *shlex.split(os.environ.get("LDFLAGS", "")),
        ],
        "linking",
    )  # fmt: skip
    fresh.replace(target)
    return {
        "built": True,
        "reason": "",
        "torch": torch,
        "compiler": compiler_line,
        "builds": list(builds),
        "flags": base[len(compiler) :],
    }


def _put(source: Path, target: Path) -> None:
    """Copy in one step: a process that has the old extension loaded keeps it whole."""
    fresh = target.with_name(f".{os.getpid()}-{target.name}")
    shutil.copyfile(source, fresh)
    fresh.replace(target)


class BuildKernels(build_ext):
    """setuptools' command, without its compiler: the kernels are compiled three times over."""

    def run(self) -> None:
        target, report = self._products()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # nothing stale where the build fails
        try:
            told = build(target, Path(self.build_temp))
        except Exception as error:
            if os.environ.get("NORMKIT_BUILD_KERNELS") == "1":
                raise
            reason = str(error) if isinstance(error, CannotBuild) else _one_line(repr(error))
            told = {"built": False, "reason": reason}
            print(f"normkit: installing without its fused C++ kernels: {reason}", file=sys.stderr)
        report.write_text(json.dumps(told, indent=1) + "\n")
        if self.inplace:
            for product in (target, report):
                if product.exists():
                    _put(product, FOLDER / product.name)
                else:
                    (FOLDER / product.name).unlink(missing_ok=True)

    def _products(self) -> tuple[Path, Path]:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        target = Path(self.build_lib, *NAME.split(".")).with_suffix(suffix)
        return target, target.with_name(REPORT)

    def get_outputs(self) -> list[str]:
        return [str(p) for p in self._products() if p.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {p: str(FOLDER / Path(p).name) for p in self.get_outputs()}


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=[str(p) for p in (KERNELS, GLUE) if p.exists()],
            depends=sorted(str(p) for p in FOLDER.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
