"""The fused kernels: what is built, what is loaded, and the reason where nothing is."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest
import torch

from normkit import errors
from normkit.kernels import cpu
from tests import forked

ROOT = Path(__file__).parents[1]
# Prints what two layers warn of on a CPU, after one on another device.
USE = """
import warnings, torch, normkit as nk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nk.LayerNorm(2, device="meta")(torch.ones(3, 2, device="meta"))
    assert not caught
    for layer in (nk.LayerNorm(2), nk.GroupNorm(1, 2)):
        layer(torch.ones(3, 2))
for each in caught:
    print(each.message)
"""
DESCRIBE = "from normkit.kernels import cpu; print(cpu.describe(), cpu.fused is None, sep='\\n')"
OTHERS = ("NORMKIT_", "LD_PRELOAD", "ASAN_", "UBSAN_", "PYTHONPATH")


def _python(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _forked(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.python(*(args or ("-c", DESCRIBE)), env={**os.environ, **env})


def _describe(**env: str) -> list[str]:
    done = _forked(**env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_kernels_can_be_switched_off() -> None:
    line, none = _describe(NORMKIT_KERNELS="portable")
    assert line == "portable: NORMKIT_KERNELS=portable switches the fused kernels off"
    assert none == "True"


def test_a_build_can_be_forced() -> None:
    if cpu.fused is None:
        pytest.skip(cpu.reason)
    for name in cpu.fused.builds:
        line, none = _describe(NORMKIT_KERNELS=name)
        assert line.startswith(f"fused C++ kernels, {name} (of ")
        assert none == "False"
    best, _ = _describe(NORMKIT_KERNELS="")
    assert best.startswith(f"fused C++ kernels, {cpu.fused.builds[0]} (of ")


def test_the_former_name_of_a_build_still_works() -> None:
    if cpu.fused is None or "baseline" not in cpu.fused.builds:
        pytest.skip(cpu.reason or "baseline is not compiled here")
    assert _describe(NORMKIT_KERNELS="plain") == _describe(NORMKIT_KERNELS="baseline")


def test_a_build_that_was_left_out_is_refused() -> None:
    if cpu.fused is None:
        pytest.skip(cpu.reason)
    names = ("avx512", "avx2", "baseline")
    missing = next((name for name in names if name not in cpu.fused.builds), None)
    if missing is None:
        pytest.skip("every build is compiled here")
    done = _forked(NORMKIT_KERNELS=missing)
    assert done.returncode == 1
    assert f"received '{missing}', where it can run {', '.join(cpu.fused.builds)}" in done.stderr


def test_ci_compiles_every_build_that_the_machine_runs() -> None:
    """Elsewhere a local install compiles one, and the tests of the others are skipped."""
    if cpu.fused is None or os.environ.get("NORMKIT_BUILDS") != "all":
        pytest.skip(cpu.reason or "NORMKIT_BUILDS=all is not set")
    assert "baseline" in cpu.fused.builds
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    for name, flag in (("avx2", " avx2 "), ("avx512", " avx512vl ")):
        assert flag not in flags or name in cpu.fused.builds


@pytest.mark.parametrize("value", ["avx1024", "on"])
def test_an_unknown_value_is_refused(value: str) -> None:
    done = _forked(NORMKIT_KERNELS=value)
    assert done.returncode == 1
    assert (
        "OptionError: Expected NORMKIT_KERNELS to be portable, avx512, avx2 or baseline; "
        f"received '{value}'. Fix: unset it to use the best build."
    ) in done.stderr


def test_an_unknown_value_where_kernels_are_used() -> None:
    """One line from the program; to others an error that they can handle, at the first layer."""
    done = _forked("-m", "normkit.cli.main", "data", "list", NORMKIT_KERNELS="wrong")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"normkit: Expected NORMKIT_KERNELS to be .* 'wrong'\. Fix: .*\n", done.stderr
    )
    use = (
        "import torch, normkit as nk\n"
        "for _ in range(2):\n"
        "    try: nk.LayerNorm(2)(torch.ones(3, 2))\n"
        "    except nk.OptionError as error: print(error)\n"
    )
    lines = _forked("-c", use, NORMKIT_KERNELS="wrong").stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("Expected NORMKIT_KERNELS") for line in lines)


def _write_report(folder: Path, report: dict[str, object] | None) -> None:
    path = folder / "normkit/kernels/cpu/_build.json"
    path.unlink(missing_ok=True)
    if report is not None:
        path.write_text(json.dumps(report))


def _copy_of_the_loader(folder: Path, report: dict[str, object] | None) -> Path:
    """The package without an extension, and a report of a build."""
    ignore = shutil.ignore_patterns("_cpu*.so", "libnormkit_cpu*", "_build.json", "lab", "report")
    shutil.copytree(Path(cpu.__file__).parents[2], folder / "normkit", ignore=ignore)
    _write_report(folder, report)
    return folder


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _copy_of_the_loader(tmp_path_factory.mktemp("copied"), None)


@pytest.mark.parametrize(
    ("report", "reason", "mends"),
    [
        ({"built": False, "reason": "no luck"}, "the fused kernels are not built: no luck", True),
        ({"built": False, "reason": "off", "final": True}, "the fused kernels are not built: off",
         False),
        ({"built": True, "torch": "1.0.0"}, "the fused kernels were built for torch 1.0.0 and ",
         True),
        ({"built": True, "torches": ["1.0.0", "1.1.2"]},
         "the fused kernels were built for torch 1.0.0, 1.1.2 and this is torch ", True),
        ({"built": True, "torches": [torch.__version__]},
         "the fused kernels were built for another Python or machine", True),
        (None, "the fused kernels are not built: normkit was not installed", True),
    ],
)  # fmt: skip
def test_the_reason_is_reported(
    report: dict[str, object] | None, reason: str, mends: bool, copied: Path
) -> None:
    _write_report(copied, report)
    folder = str(copied)
    done = _forked("-c", DESCRIBE + USE, PYTHONPATH=folder, NORMKIT_KERNELS="")
    assert done.returncode == 0, done.stderr
    line, none, *warned = done.stdout.splitlines()
    assert line.startswith(f"portable: {reason}")
    assert (f"; to build them: {errors.how_to_rebuild().partition(' -e ')[0]}" in line) == mends
    assert none == "True"
    # The first use on a CPU says it too, once.
    assert len(warned) == int(mends)
    assert all(reason in each and "; to build them: pip install " in each for each in warned)
    forced = _forked(PYTHONPATH=folder, NORMKIT_KERNELS="baseline")
    assert "OptionError: Expected fused kernels for NORMKIT_KERNELS=baseline" in forced.stderr
    assert reason in forced.stderr


def test_kernels_switched_off_warn_of_nothing(copied: Path) -> None:
    _write_report(copied, {"built": False, "reason": "no luck"})
    done = _forked("-c", USE, PYTHONPATH=str(copied), NORMKIT_KERNELS="portable")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package is built from, somewhere else."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the source tree is not here")
    folder = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns(
        "__pycache__", "_cpu*.so", "libnormkit_cpu*", "_build.json", "*.egg-info"
    )
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_command_that_builds_them_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From where the package lies, or from where it was installed, if that is still there."""
    command = "pip install --no-build-isolation --no-deps --force-reinstall"
    source, package = tmp_path / "a source", tmp_path / "site-packages/normkit"
    (source / "src/normkit").mkdir(parents=True)
    (source / "setup.py").touch()
    monkeypatch.setattr(errors, "__file__", str(source / "src/normkit/errors.py"))
    assert errors.how_to_rebuild() == f"{command} -e '{source}'"
    monkeypatch.setattr(errors, "__file__", str(package / "errors.py"))
    origin = {"url": source.as_uri(), "dir_info": {}}
    archive, wheel = tmp_path / "normkit-1.tar.gz", tmp_path / "normkit-1.whl"
    archive.touch()
    wheel.touch()
    for text, expected in (
        (json.dumps(origin), f"{command} '{source}'"),
        (json.dumps({"url": archive.as_uri()}), f"{command} '{archive}'"),
        (json.dumps({"url": wheel.as_uri()}), f"{command} and the folder of normkit"),
        (json.dumps({"url": (tmp_path / "gone").as_uri()}), f"{command} and the folder of normkit"),
        (None, f"{command} and the folder of normkit"),
    ):
        found = types.SimpleNamespace(read_text=lambda _, text=text: text)
        monkeypatch.setattr("importlib.metadata.distribution", lambda _, found=found: found)
        assert errors.how_to_rebuild().startswith(expected)


def test_a_torch_that_is_not_tested_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "untested", lambda: "torch 9.9 is newer than tested")
    assert cpu.describe().endswith("; torch 9.9 is newer than tested")


def _clean() -> dict[str, str]:
    """Settings that the tests themselves may run under, blank."""
    return {k: "" for k in os.environ if k.startswith(OTHERS)}


def _wheel(tree: Path, out: Path, **env: str) -> Path:
    wheel = ["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(out), "."]
    done = _python(*wheel, cwd=tree, **{**_clean(), **env})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel_file,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(out / "installed")
    return out / "installed"


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (
            {"CC": "/nonexistent", "CXX": "/nonexistent"},
            "no C++ compiler was found when normkit was installed (CXX names /nonexistent); "
            "install one",
        ),
        ({"CXX": "false"}, "installed: false ended with exit code 1 and no message"),
        ({"NORMKIT_BUILD_KERNELS": "0"}, "NORMKIT_BUILD_KERNELS=0 was set"),
    ],
)
def test_install_without_kernels_reports_the_reason(
    env: dict[str, str], reason: str, tree: Path, tmp_path: Path
) -> None:
    installed = _wheel(tree, tmp_path, **env)
    line, none = _describe(**{**_clean(), "PYTHONPATH": str(installed)})
    assert line.startswith("portable: the fused kernels are not built: ")
    assert reason in line
    assert none == "True"


@pytest.mark.parametrize(
    ("stderr", "stdout", "code", "reason"),
    [
        ("In file included from errors.h:1:\nx.h:3:9: fatal error: no y.h\n 3 |", "", 1,
         "x.h:3:9: fatal error: no y.h"),
        ("\n", "cl : Error D8021\n", 2, "cl : Error D8021"),
        ("\nkilled\n", "", 1, "killed"),
        ("", "", 4, "c++ ended with exit code 4 and no message"),
        ("", "", -9, "c++ was ended by signal 9, as where memory runs out"),
    ],
)  # fmt: skip
def test_the_first_error_of_a_compiler_is_the_reason(
    stderr: str, stdout: str, code: int, reason: str
) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("the source tree is not here")
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = {"_one_line", "_first_error"}
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    scope = {"re": re, "Path": Path, "subprocess": subprocess}
    exec(compile(tree, "setup.py", "exec"), scope)
    done = subprocess.CompletedProcess(["/usr/bin/c++", "-c"], code, stdout, stderr)
    assert scope["_first_error"](done) == reason  # type: ignore[operator]


def test_install_fails_where_kernels_are_required(tree: Path, tmp_path: Path) -> None:
    env = {**_clean(), "CXX": "/nonexistent", "NORMKIT_BUILD_KERNELS": "1"}
    done = _python("setup.py", "build", "--build-base", str(tmp_path), cwd=tree, **env)
    assert done.returncode == 1
    assert "no C++ compiler was found" in done.stderr


def test_the_sdist_holds_the_sources(tree: Path, tmp_path: Path) -> None:
    done = _python("setup.py", "sdist", "-d", str(tmp_path), cwd=tree, **_clean())
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    folder = tree / "src/normkit/kernels/cpu"
    sources = {p.name for pattern in ("*.cpp", "*.h") for p in folder.glob(pattern)}
    assert {"engine.cpp", "torch_module.cpp", "torch_node.h", "columns_shape.h"} <= sources
    assert {f"src/normkit/kernels/cpu/{name}" for name in sources} <= names
    assert "setup.py" in names


@pytest.mark.slow
@pytest.mark.minutes
def test_a_wheel_holds_the_extension_and_not_its_sources(tree: Path, tmp_path: Path) -> None:
    if cpu.fused is None:
        pytest.skip(cpu.reason)
    installed = _wheel(tree, tmp_path)
    folder = installed / "normkit/kernels/cpu"
    assert not [*folder.glob("*.cpp"), *folder.glob("*.h")]
    assert [*folder.glob("libnormkit_cpu.*")]
    line, _ = _describe(**{**_clean(), "PYTHONPATH": str(installed)})
    assert line.startswith("fused C++ kernels, ")
    assert "baseline built for" in line  # a wheel holds every build


def test_extension_of_an_earlier_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    version = str(torch.__version__).split("+")[0]
    earlier = types.SimpleNamespace(torch_version=version, builds=("baseline",), layer=None)
    monkeypatch.setattr(cpu, "_open", lambda file: earlier)
    monkeypatch.setattr(cpu, "_report", lambda: {"built": True, "torch": version})
    module, reason, fix = cpu._load()
    assert module is None
    assert "another version of normkit" in reason and "--force-reinstall" in fix
