"""Build the fused C++ kernels beside the package; everything else is in pyproject.toml.

Two kinds of library: the engine, which needs neither torch nor Python, and the extension, which
hands it torch's tensors and is compiled for one release of torch: for the one that is installed or,
by `make wheel`, once for each of several. Without a compiler, torch or Python's headers, and where
compiling fails, the package installs all the same and computes with PyTorch's operations. The
reason is written to ``_build.json`` beside the place of the extension, where
``normkit.kernels.cpu`` reads it.

Environment:

    NORMKIT_BUILD_KERNELS   0: leave them out; 1: fail where they cannot be built
    NORMKIT_BUILDS          all, native (what this processor runs best), or names such as
                            "avx2,baseline"; default: native in place (pip install -e), else all
    NORMKIT_TORCHES         a folder with the headers of several releases of torch, each in
                            VERSION/include; default: the torch that is installed
    NORMKIT_SANITIZE        sanitizers to build with, such as "address,undefined"
    NORMKIT_PROGRESS        a file to write to what the build is at, for tools/step.py
    CXX, CXXFLAGS, LDFLAGS  as usual
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "normkit.kernels.cpu._cpu"
FOLDER = Path("src/normkit/kernels/cpu")
ENGINE, MODULE = FOLDER / "engine.cpp", FOLDER / "torch_module.cpp"
PASSES = FOLDER / "forward.cpp", FOLDER / "backward.cpp"
LIBRARY = "libnormkit_cpu" + (".dylib" if sys.platform == "darwin" else ".so")
REPORT = "_build.json"

FLAGS = [
    "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-plt", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra",
]  # fmt: skip
# Best first. The kernels are compiled once for each; which one runs is chosen at run time.
X86_BUILDS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "baseline": [],
}
# Prints the builds that this processor runs, by the conditions that the engine itself has.
PROBE = f"""
#include "{FOLDER.resolve()}/builds.h"
#include <cstdio>
int main() {{
  if (NORMKIT_RUNS_AVX512) std::puts("avx512");
  if (NORMKIT_RUNS_AVX2) std::puts("avx2");
  std::puts("baseline");
}}
"""
# The process has them loaded when the extension comes; it is found by these names, not by a path.
LIBRARIES = ["torch_cpu", "c10", "torch_python"]


class CannotBuild(Exception):  # noqa: N818
    """Why there are no fused kernels: half a sentence."""

    final = False


class LeftOut(CannotBuild):
    """As :class:`CannotBuild`, where another try would not build them either."""

    final = True


def find_compiler() -> list[str]:
    named = os.environ.get("CXX")
    default = sysconfig.get_config_var("CXX") or ""
    for command in [named] if named else [default, "c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    asked = f" (CXX names {named})" if named else ""
    raise CannotBuild(f"no C++ compiler was found when normkit was installed{asked}; install one")


@dataclass(frozen=True)
class Torch:
    """A release of torch that an extension is compiled for."""

    version: str  # without a local part
    include: Path
    cxx11: bool  # the C++ library's strings, of the kind since C++11 or before
    installed: bool

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])

    @property
    def stem(self) -> str:
        """The extension's name, which normkit.kernels.cpu looks for.

        With a dot in it no tool takes it for a module to import, whatever torch is there.
        """
        if self.installed:
            return "_cpu"
        major, minor = self.release
        return f"_cpu.torch{major}.{minor}" + ("" if self.cxx11 else "-abi0")


# Prints where torch is, and what its headers do not say.
ASK = "import json, torch; print(json.dumps([torch.__version__, torch.__file__, "
ASK += "bool(torch._C._GLIBCXX_USE_CXX11_ABI)]))"


def find_torch() -> Torch:
    """The torch that is installed, outside pip's build environment too.

    There pip hides what is installed. A torch of that environment's own would be gigabytes to
    download and perhaps another release; the one that the kernels will run with is there already,
    and a Python that ignores the hiding finds it.
    """
    said = ""
    for options in [], ["-I"]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *options, "-c", ASK], capture_output=True, text=True
        )
        if done.returncode == 0:
            version, file, cxx11 = json.loads(done.stdout.splitlines()[-1])
            return Torch(version.split("+")[0], Path(file).parent / "include", cxx11, True)
        said = said or _one_line((done.stderr.strip().splitlines() or [""])[-1])
    raise CannotBuild(
        f"torch could not be imported when normkit was installed ({said}); install torch first"
    )


def find_torches() -> list[Torch]:
    listed = os.environ.get("NORMKIT_TORCHES", "").strip()
    if not listed:
        return [find_torch()]
    found = []
    for include in Path(listed).glob("*/include"):
        # Up to 2.6 torch was published with the C++ library's strings of either kind.
        torch = Torch(include.parent.name, include, True, False)
        found += [torch] if torch.release >= (2, 7) else [torch, replace(torch, cxx11=False)]
    if not found:
        raise CannotBuild(f"NORMKIT_TORCHES names {listed}, which has no folder RELEASE/include")
    return sorted(found, key=lambda torch: torch.release)


def openmp(torch: Torch, compiler_line: str) -> list[str]:
    """Flags for the loop over torch's threads, which before 2.10 is a template over OpenMP.

    The library is linked without OpenMP, so it calls the runtime that torch has loaded; a second
    one in a process would have threads of its own. Only gcc's calls fit torch's runtime on Linux:
    elsewhere a torch before 2.10 computes on one thread.
    """
    fits = sys.platform == "linux" and "clang" not in compiler_line
    return ["-fopenmp"] if torch.release < (2, 10) and fits else []


def find_python() -> list[str]:
    folders = list(dict.fromkeys(sysconfig.get_path(k) for k in ("include", "platinclude")))
    if not any((Path(f) / "Python.h").exists() for f in folders):
        raise CannotBuild(
            "Python's C headers were not found when normkit was installed; install them "
            "(python3-dev, python3-devel)"
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


def _first_error(done: subprocess.CompletedProcess[str]) -> str:
    """The first line in which a compiler says what is wrong, or how it ended."""
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    for sign in (r"\berror\s*:", r"\berror\b", r"."):  # file names may have the word in them
        for line in lines:
            if re.search(sign, line, re.IGNORECASE):
                return _one_line(line)
    program = Path(str(done.args[0])).name
    if done.returncode < 0:
        return f"{program} was ended by signal {-done.returncode}, as where memory runs out"
    return f"{program} ended with exit code {done.returncode} and no message"


def _run(command: list[str], doing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise CannotBuild(f"{doing} failed when normkit was installed: {_first_error(done)}")
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


class Counter:
    """Count the compiled files, and tell who waits for them."""

    def __init__(self, whole: int) -> None:
        self.whole, self.done, self.lock = whole, 0, threading.Lock()
        self.tell()

    def tell(self) -> None:
        if path := os.environ.get("NORMKIT_PROGRESS"):
            Path(path).write_text(f"compiled {self.done} of {self.whole} files")

    def count(self) -> None:
        with self.lock:
            self.done += 1
            self.tell()


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


def choose_builds(compiler: list[str], native: bool) -> list[str]:
    """Names of the builds to compile, best first."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    known = list(X86_BUILDS) if x86 else ["baseline"]
    wanted = os.environ.get("NORMKIT_BUILDS", "").strip() or ("native" if native else "all")
    if wanted == "all" or len(known) == 1:
        return known
    if wanted != "native":
        names = [name for part in wanted.split(",") if (name := part.strip())] or [wanted]
        if unknown := [name for name in names if name not in known]:
            raise CannotBuild(f"NORMKIT_BUILDS names {unknown[0]}, which is none of {known}")
        return [name for name in known if name in names]
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
            source.write_text(PROBE)
            _run(
                [*compiler, "-std=c++20", str(source), "-o", str(program)], "probing the processor"
            )
            words = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return known  # where nothing may be run, one of all will do
    return [next(name for name in known if name in words.stdout.split())]


def _stand_ins(compiler: list[str], scratch: Path) -> Path:
    """A folder of empty libraries with the names of torch's.

    What is linked with them asks for torch's at run time, where those are loaded already, so no
    torch has to be there to build for it.
    """
    folder = scratch / "stand-ins"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (f"lib{library}.so" for library in LIBRARIES):
        shared = ["-shared", "-nostdlib", f"-Wl,-soname,{name}", "-x", "c", os.devnull]
        _link([*compiler, *shared], folder / name)
    return folder


def build(folder: Path, scratch: Path, native: bool) -> dict[str, object]:
    """Compile and link into `folder`, or raise CannotBuild; return what to report.

    Args:
        native: only for this processor, unless NORMKIT_BUILDS says otherwise.
    """
    if os.environ.get("NORMKIT_BUILD_KERNELS") == "0":
        raise LeftOut("NORMKIT_BUILD_KERNELS=0 was set when normkit was installed")
    if sys.platform == "win32":
        raise LeftOut("they are not built on Windows yet")
    missing = [p.name for p in (ENGINE, MODULE, *PASSES) if not p.exists()]
    if missing:
        raise CannotBuild(f"their source {missing[0]} was not there when normkit was installed")
    compiler = find_compiler()
    torches = find_torches()
    python = find_python()
    builds = choose_builds(compiler, native)
    checks, linked = sanitizers()

    more = shlex.split(os.environ.get("CXXFLAGS", ""))
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    compiler_line = version.splitlines()[0] if version else shlex.join(compiler)
    # gcc 12 takes its own AVX-512 header for reading what was never set.
    quiet = [] if "clang" in version else ["-Wno-maybe-uninitialized"]
    base = [*compiler, *checks, *FLAGS, *quiet, *more]
    engine = [*base, *(f"-DNORMKIT_HAS_{name.upper()}" for name in builds)]
    # The longest first, so that none is left for the end.
    kernels = [
        ([*base, f"-DNORMKIT_BUILD={name}", *X86_BUILDS[name]], source, f"{name}-{source.stem}")
        for source in reversed(PASSES)
        for name in builds
    ]
    kernels.append((engine, ENGINE, "engine"))
    modules = []
    for torch in torches:
        headers = [torch.include, torch.include / "torch/csrc/api/include", *python]
        command = [
            *base,
            *openmp(torch, compiler_line),
            f'-DNORMKIT_TORCH="{torch.version}"',
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11)}",
            # isystem: their warnings are not ours.
            *(word for header in headers for word in ("-isystem", str(header))),
        ]
        modules.append((command, MODULE, torch.stem))

    objects = _objects(scratch)
    suffix = hashlib.sha256(compiler_line.encode()).hexdigest()[:6]
    work = [*kernels[: len(builds)], *modules, *kernels[len(builds) :]]
    counter = Counter(len(work))

    def compile_one(job: tuple[list[str], Path, str]) -> Path:
        made = _compile(job[0], job[1], objects, f"{job[2]}-{suffix}")
        counter.count()
        return made

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        compiled = dict(zip((job[2] for job in work), pool.map(compile_one, work), strict=True))

    mac = sys.platform == "darwin"
    extra = [*linked, *shlex.split(os.environ.get("LDFLAGS", ""))]
    named = f"-Wl,-install_name,@rpath/{LIBRARY}" if mac else f"-Wl,-soname,{LIBRARY}"
    shared = ["-dynamiclib" if mac else "-shared", named]
    library = folder / LIBRARY
    _link([*compiler, *shared, *(str(compiled[job[2]]) for job in kernels), *extra], library)
    for torch in torches:
        if mac:
            shared = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-rpath,@loader_path"]
            search = torch.include.parent / "lib"
        else:
            shared = ["-shared", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
            search = _stand_ins(compiler, scratch)
        libraries = [f"-L{search}", *(f"-l{name}" for name in LIBRARIES)]
        parts = [str(compiled[torch.stem]), str(library)]
        target = folder / (torch.stem + sysconfig.get_config_var("EXT_SUFFIX"))
        _link([*compiler, *shared, *parts, *libraries, *extra], target)
    versions = list(dict.fromkeys(torch.version for torch in torches))
    return {
        "built": True,
        "reason": "",
        **({"torch": versions[0]} if torches[0].installed else {"torches": versions}),
        "compiler": compiler_line,
        "builds": builds,
        "flags": base[len(compiler) :],
    }


def _link(command: list[str], target: Path) -> None:
    fresh = target.with_name(f".{os.getpid()}-{target.name}")
    _run([*command, "-o", str(fresh)], f"linking {target.name}")
    fresh.replace(target)


def _put(source: Path, target: Path) -> None:
    """Copy in one step: a process that has the old extension loaded keeps it whole."""
    fresh = target.with_name(f".{os.getpid()}-{target.name}")
    shutil.copyfile(source, fresh)
    fresh.replace(target)


class BuildKernels(build_ext):
    """Run instead of setuptools' command: the kernels are compiled once for each build."""

    def run(self) -> None:
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        for library in self._libraries(folder):
            library.unlink()  # nothing stale where the build fails
        try:
            facts = build(folder, Path(self.build_temp), native=bool(self.inplace))
        except Exception as error:
            if os.environ.get("NORMKIT_BUILD_KERNELS") == "1":
                raise
            known = isinstance(error, CannotBuild)
            reason = str(error) if known else _one_line(repr(error))
            facts = {"built": False, "reason": reason, "final": known and error.final}
            print(f"normkit: installing without its fused C++ kernels: {reason}", file=sys.stderr)
        (folder / REPORT).write_text(json.dumps(facts, indent=1) + "\n")
        if self.inplace:
            products = [Path(product) for product in self.get_outputs()]
            for product in products:
                _put(product, FOLDER / product.name)
            for library in self._libraries(FOLDER):
                if library.name not in {product.name for product in products}:
                    library.unlink()

    def _folder(self) -> Path:
        return Path(self.build_lib, *NAME.split(".")[:-1])

    def _libraries(self, folder: Path) -> list[Path]:
        """The engine and the extensions for this Python in `folder`."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        return [*folder.glob(f"_cpu*{suffix}"), *folder.glob(LIBRARY)]

    def get_outputs(self) -> list[str]:
        folder = self._folder()
        return [str(p) for p in (*self._libraries(folder), *folder.glob(REPORT))]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {p: str(FOLDER / Path(p).name) for p in self.get_outputs()}


setup(
    ext_modules=[
        Extension(
            NAME,
            sources=[str(p) for p in (ENGINE, MODULE, *PASSES) if p.exists()],
            depends=sorted(str(p) for p in FOLDER.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
