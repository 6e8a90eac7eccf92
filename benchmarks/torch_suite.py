"""PyTorch's own tests, with torch.nn's layers and with normkit's in their place: what differs.

    git clone --depth 1 --branch v2.13.0 --filter blob:none --sparse \\
        https://github.com/pytorch/pytorch
    git -C pytorch sparse-checkout set test
    python benchmarks/torch_suite.py pytorch/test              # test_nn, test_modules and others
    python benchmarks/torch_suite.py pytorch/test test_fx.py   # these files alone
    python benchmarks/torch_suite.py pytorch/test --all        # also tests that mention no norm

The tests are those of PyTorch's repository, of the installed version: they are no part of the
package torch. Each file runs in two processes, in one of which ``torch.nn`` names normkit's layers
before a test is imported; PyTorch's own tools see them there too. A test counts as different if it
ends otherwise than with ``torch.nn``, whichever of the two passes: what a version fails by itself,
it fails in both. Differences that are meant are listed in ``EXPLAINED``, each with its reason; the
command fails on any other.

The same file is the plugin of pytest that the two processes load.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

FILES = (
    "test_nn.py",
    "test_modules.py",
    "test_expanded_weights.py",
    "nn/test_*.py",
)
"""Files that test layers; patterns, within the folder ``test`` of PyTorch's repository."""

EXPLAINED: tuple[tuple[str, str], ...] = ()
"""Differences that are meant: a pattern of tests, and the reason."""

SIDES = ("torch.nn", "normkit")
# What a test that is about normalization mentions, by its name or in its source.
NAMED = re.compile(r"(batch|group|layer|instance|rms)_?norm|transformer|_bn(_|$)", re.IGNORECASE)
SOURCE = re.compile(r"\b((Lazy)?(Batch|Instance)Norm[123]d|(Group|Layer|RMS)Norm)\b|\bTransformer")
_SIDE, _RESULTS, _ALL = "TORCH_SUITE_SIDE", "TORCH_SUITE_RESULTS", "TORCH_SUITE_ALL"
_MINUTES = 30


# In the two processes -----------------------------------------------------------------------


def replace_layers() -> None:
    """Let ``torch.nn`` and its modules name normkit's layers where they name their namesakes."""
    from normkit.surgery.accelerate import NAMESAKES

    for name, module in list(sys.modules.items()):
        if name == "torch.nn" or name.startswith("torch.nn."):
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value in NAMESAKES:
                    setattr(module, key, NAMESAKES[value])


def pytest_configure() -> None:
    """Put the layers in place before anything of the suite is imported."""
    if os.environ.get(_SIDE) == "normkit":
        replace_layers()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Leave out tests that are not about normalization."""
    if _ALL not in os.environ:
        items[:] = [item for item in items if mentions_norm(item.name, _function(item))]


def _function(item: Any) -> Any:
    return getattr(item, "function", None)


def mentions_norm(name: str, function: Any = None) -> bool:
    """Return whether a test mentions a normalization, by its name or in its source.

    >>> mentions_norm("test_BatchNorm_empty_cpu"), mentions_norm("test_clip_grad_norm")
    (True, False)
    """
    if NAMED.search(name):
        return True
    try:
        return bool(SOURCE.search(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError):  # made by code that has no source
        return False


def pytest_collectreport(report: Any) -> None:
    """Record what could not be imported."""
    if report.failed:
        _record(report, "not imported")


def pytest_runtest_logreport(report: Any) -> None:
    """Record how a test ended, at once: the process may die in the next one."""
    if report.when == "call" or not report.passed:
        _record(report, report.outcome)


def _record(report: Any, outcome: str) -> None:
    line: dict[str, str] = {"test": report.nodeid, "outcome": outcome}
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
        line["error"] = " ".join(text.split())[:400]
    with Path(os.environ[_RESULTS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# In the command -----------------------------------------------------------------------------


class Result(NamedTuple):
    """End of a test: passed, failed, skipped or not run; with the error, if any."""

    outcome: str
    error: str = ""


class Difference(NamedTuple):
    """Test that ends otherwise with normkit's layers."""

    test: str
    theirs: Result
    ours: Result
    reason: str
    """Why it is meant; empty if it is not."""


MISSING = Result("not run", "the process ended before, or the test is not there")


def differences(
    theirs: Mapping[str, Result],
    ours: Mapping[str, Result],
    explained: Sequence[tuple[str, str]] = EXPLAINED,
) -> list[Difference]:
    """Return the tests that end differently, in order of their names.

    >>> ran = {"a": Result("passed"), "b": Result("failed")}
    >>> differences(ran, {"a": Result("failed", "no"), "b": Result("failed")}, [("^a$", "meant")])
    [Difference(test='a', theirs=Result(outcome='passed', ...), ours=..., reason='meant')]
    """
    found = []
    for test in sorted({*theirs, *ours}):
        a, b = theirs.get(test, MISSING), ours.get(test, MISSING)
        if a.outcome != b.outcome:
            reason = next((why for what, why in explained if re.search(what, test)), "")
            found.append(Difference(test, a, b, reason))
    return found


def read_results(path: Path) -> dict[str, Result]:
    """Return how each test ended; one that failed anywhere, such as in a subtest, has failed."""
    results: dict[str, Result] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        former = results.get(entry["test"])
        if former is None or former.outcome not in ("failed", "not imported"):
            results[entry["test"]] = Result(entry["outcome"], entry.get("error", ""))
    return results


def run_file(suite: Path, file: str, side: str, *, everything: bool) -> dict[str, Result]:
    """Run one file of tests in a process of its own; return how each of them ended."""
    with tempfile.TemporaryDirectory() as folder:
        results, settings = Path(folder) / "results.jsonl", Path(folder) / "pytest.ini"
        results.touch()
        settings.write_text("[pytest]\ntimeout = 300\n", encoding="utf-8")
        here = str(Path(__file__).parent)
        search = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        threads = str(max(1, (os.cpu_count() or 1) // len(SIDES)))
        environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": threads,
                       _SIDE: side, _RESULTS: str(results)}  # fmt: skip
        environment |= {_ALL: "1"} if everything else {}
        command = [
            sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-W", "ignore",
            "-p", "torch_suite", "-p", "no:cacheprovider", "--noconftest",
            "-c", str(settings), "--rootdir", str(suite), str(suite / file),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, env=environment, cwd=suite, capture_output=True,
                                  text=True, timeout=60 * _MINUTES, check=False)  # fmt: skip
            # 0 and 1: all ran; 2: some could not be imported; 5: none is about normalization.
            died = "" if done.returncode in (0, 1, 2, 5) else _last(done.stdout + done.stderr)
        except subprocess.TimeoutExpired:
            died = f"it takes longer than {_MINUTES} minutes"
        ended = read_results(results)
    if died:
        ended[file] = Result("not run", died)
    return ended


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def show(file: str, theirs: Mapping[str, Result], found: Sequence[Difference]) -> None:
    """Print the differences of one file."""
    counts = Counter(result.outcome for result in theirs.values())
    ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    meant = sum(bool(each.reason) for each in found)
    print(f"{file}: {ended or 'no test'} with torch.nn; {len(found)} different, {meant} explained")
    for each in found:
        print(f"  {each.test.partition('::')[2] or each.test}")
        print(f"    {each.theirs.outcome} with torch.nn, {each.ours.outcome} with normkit")
        print(f"    {each.reason or each.ours.error or each.theirs.error}")


def main() -> None:
    """Run the files on both sides and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path, help="folder test of PyTorch's repository")
    parser.add_argument("files", nargs="*", default=FILES, help=f"default: {' '.join(FILES)}")
    parser.add_argument("--all", action="store_true", help="run tests that mention no norm too")
    parser.add_argument("--json", type=Path, help="write how each test ended to this file")
    options = parser.parse_args()
    suite = options.suite.resolve()
    files = sorted({str(p.relative_to(suite)) for pattern in options.files
                    for p in suite.glob(pattern)})  # fmt: skip
    if not files:
        parser.error(f"Expected a folder with {' or '.join(options.files)}; received {suite}. "
                     "Fix: pass the folder test of PyTorch's repository.")  # fmt: skip
    record: dict[str, dict[str, dict[str, Result]]] = {}
    different: list[Difference] = []
    for file in files:
        with ThreadPoolExecutor(len(SIDES)) as pool:
            jobs = [pool.submit(run_file, suite, file, side, everything=options.all)
                    for side in SIDES]  # fmt: skip
            theirs, ours = (job.result() for job in jobs)
        found = differences(theirs, ours)
        show(file, theirs, found)
        different += found
        record[file] = dict(zip(SIDES, (theirs, ours), strict=True))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unexplained = [each for each in different if not each.reason]
    print(f"{len(different)} differences, {len(unexplained)} of them not explained")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
