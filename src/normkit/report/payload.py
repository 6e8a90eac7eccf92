"""Data that rides in the page: JSON that a browser reads back, and nothing else can come of it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from normkit.lab.findings import Finding

__all__ = ["BUDGET", "Download", "downloads", "embed", "pack", "plain"]

# Characters of JSON above which a block is compressed: below it, the page's source stays legible.
_COMPRESS_FROM = 100_000
# What all downloads together may add to the page, in characters.
BUDGET = 7_000_000


@dataclasses.dataclass(frozen=True)
class Download:
    """One claim's rows as the page carries them. ``block`` is empty where they had to stay out."""

    name: str
    rows: int
    block: Markup


def plain(value: Any) -> Any:
    """The value as JSON can hold it: no NaN, no infinity, no types of other libraries.

    >>> plain({"loss": float("nan"), 3: (1, 2.5, True, None)})
    {'loss': None, '3': [1, 2.5, True, None]}
    """
    # Nearly all of a page's values are of these very types.
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    # A number of another library (a numpy scalar, a 0-d tensor) knows its own plain form.
    item = getattr(value, "item", None)
    if callable(item):
        try:
            return plain(item())
        except (TypeError, ValueError, RuntimeError):
            pass
    return str(value)


def embed(value: Any, *, compress: bool = True) -> Markup:
    """JSON for a script block: no character of it can end the block or start markup.

    >>> embed({"a": "</script>"})
    Markup('{"a":"\\\\u003c/script\\\\u003e"}')
    """
    value = plain(value)
    text = htmlsafe_json_dumps(value, allow_nan=False, separators=(",", ":"))
    if not compress or len(text) < _COMPRESS_FROM:
        return text
    return embed({"gzip": pack(json.dumps(value))}, compress=False)


def pack(text: str) -> str:
    """Compress a text to base64, which a script block holds as it is and a browser unpacks.

    >>> gzip.decompress(base64.b64decode(pack("a" * 99))) == b"a" * 99
    True
    """
    # A fixed time stamp: the same findings give the same bytes.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def table(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Records as columns and rows, so that names are said once.

    >>> table([{"seed": 0, "loss": 1.5}, {"seed": 1, "epoch": 2}])
    {'columns': ['seed', 'loss', 'epoch'], 'rows': [[0, 1.5, None], [1, None, 2]]}
    """
    rows = list(records)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def about(finding: Finding) -> dict[str, Any]:
    """All of a finding that stands before its rows in the JSON download."""
    return {
        "claim": finding.key,
        "title": finding.title,
        "topic": finding.topic,
        "statement": finding.statement,
        "prediction": finding.prediction,
        "verdict": finding.word,
        "confirmed_parts": finding.confirmed,
        "parts": finding.parts,
        "sentence": finding.sentence,
        "holds": finding.holds,
        "practice": finding.practice,
        "here": finding.here and dataclasses.asdict(finding.here),
        "at_scale": [dataclasses.asdict(one) for one in finding.at_scale],
        "differs": finding.differs,
        "comparisons": [dataclasses.asdict(comparison) for comparison in finding.comparisons],
        "sources": [dataclasses.asdict(source) for source in finding.sources],
        "data": finding.data,
        "setup": dict(finding.setup),
        "runs": finding.runs,
        "diverged": finding.diverged,
        "seconds": finding.seconds,
    }


def downloads(findings: Sequence[Finding], slugs: Sequence[str]) -> list[Download]:
    """The rows of each claim, ready to embed.

    Where all of them would make the page too heavy to open on a telephone, the largest stay out
    whole: half a table would be taken for all of it.
    """
    files = [
        Download(
            name=f"normkit-{slug}",
            rows=len(finding.records),
            block=embed(
                {"name": f"normkit-{slug}", "about": about(finding), **table(finding.records)}
            ),
        )
        for finding, slug in zip(findings, slugs, strict=True)
    ]
    total = sum(len(one.block) for one in files)
    for index in sorted(range(len(files)), key=lambda i: -len(files[i].block)):
        if total <= BUDGET:
            break
        total -= len(files[index].block)
        files[index] = dataclasses.replace(files[index], block=Markup(""))
    return files
