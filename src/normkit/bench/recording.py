"""Results as a JSON file: written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normkit.bench.summary import Figure, summarize
from normkit.errors import OptionError, explain

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
    """All of a run as one JSON document."""
    figures = summarize(cases, steps, l2_bytes=machine.get("l2_bytes"))
    return {
        "format": FORMAT,
        "date": date,
        "complete": complete,
        "machine": dict(machine),
        "settings": dict(settings),
        "figures": [{**dataclasses.asdict(f), "reached": f.reached} for f in figures],
        "cases": cases,
        "steps": steps,
    }


def check_target(path: Path) -> None:
    """Find out that a file cannot be written before anything is measured.

    Raises:
        OptionError: its folder is missing or not writable, or it is a folder itself.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(
            explain(
                "results go to a file in a folder that exists and can be written",
                str(path),
                "make the folder, or name another file",
            )
        )


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results; a reader sees the old file or the new one, never a part."""
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp lets nobody else read; results are for everybody.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """Read what :func:`write` wrote.

    Raises:
        OptionError: no such file, or not one of ours.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            explain("results are a JSON file", f"{path} ({error})", "normkit bench --json FILE")
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise OptionError(
            explain(
                f"results are of format {FORMAT}",
                f"{path} without it",
                "normkit bench --json FILE makes such a file",
            )
        )
    return found


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """The figures of results that were read."""
    return summarize(
        results["cases"], results["steps"], l2_bytes=results["machine"].get("l2_bytes")
    )
