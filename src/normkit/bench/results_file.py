"""JSON file of results, written atomically."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normkit.bench.summary import Figure, summarize
from normkit.errors import OptionError, message

__all__ = ["FORMAT", "check_target", "document", "read", "write"]

FORMAT = 1
"""Version of the file's layout."""


def document(
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    cases: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    *,
    date: str,
    complete: bool,
) -> dict[str, Any]:
    """Return one run as a JSON document."""
    results = {"machine": dict(machine), "cases": cases, "steps": steps}
    return {
        "format": FORMAT,
        "date": date,
        "complete": complete,
        "settings": dict(settings),
        "figures": [{**dataclasses.asdict(f), "reached": f.reached} for f in figures(results)],
        **results,
    }


def check_target(path: Path) -> None:
    """Check that a file can be written, before measuring.

    Raises:
        OptionError: its folder is missing or not writable, or the path is a folder.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(
            message(
                "a file name in an existing, writable folder",
                str(path),
                "create the folder, or choose another file",
            )
        )


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results atomically: a reader sees the old file or the new one."""
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp creates a private file; give it the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """Read a file that :func:`write` wrote.

    Raises:
        OptionError: the file is missing or is not a results file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            message(
                "a JSON file of results",
                f"{path} ({error})",
                "create one with normkit bench --out FILE",
            )
        ) from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise OptionError(
            message(
                f"results in format {FORMAT}",
                f"{path} in another",
                "create the file with normkit bench --out FILE",
            )
        )
    try:
        figures(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise OptionError(
            message(
                "results as normkit bench wrote them",
                f"{path}, which was changed or lacks a part ({type(error).__name__}: {error})",
                "create the file again with normkit bench --out FILE",
            )
        ) from error
    return results


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a results document."""
    machine = results["machine"]
    return summarize(
        results["cases"],
        results["steps"],
        l2_bytes=machine.get("l2_bytes"),
        libc=machine.get("libc") or "",
    )
