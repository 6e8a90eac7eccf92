"""The time a test may take: printed where it is more, and a failure in CI where it is far more.

Processor time is counted, of the test and the processes it waits for, so that a busy machine fails
nothing; ``timeout`` in pyproject.toml ends a test that waits forever. The margin between the two
limits is for slower processors.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

EXPECTED_SECONDS = 20.0
CI_SECONDS = 40.0
PROPERTY = "processor_seconds"

_over: list[tuple[float, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    before = _processor_seconds()
    try:
        yield
    finally:
        item.user_properties.append((PROPERTY, _processor_seconds() - before))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and "slow" not in report.keywords:
        seconds = float(dict(report.user_properties).get(PROPERTY, 0.0))  # type: ignore[arg-type]
        if seconds > EXPECTED_SECONDS:
            _over.append((seconds, report.nodeid))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _failures() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _over:
        return
    terminalreporter.section(f"tests above {EXPECTED_SECONDS:g} s of processor time")
    for seconds, name in sorted(_over, reverse=True):
        terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
    terminalreporter.write_line("Make them smaller, or mark them slow.")
    if _failures():
        terminalreporter.write_line(f"In CI a test above {CI_SECONDS:g} s fails the run.", red=True)


def _failures() -> bool:
    return bool(os.environ.get("CI")) and any(seconds > CI_SECONDS for seconds, _ in _over)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
