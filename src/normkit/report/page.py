"""The page: findings in, one self-contained HTML file out.

The page asks the network for nothing, and its content security policy forbids it to: scripts and
styles run only if they are the very ones written here, told by their hashes.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from normkit.errors import StoreError, message
from normkit.lab.findings import Family, Finding, PartWord, Verdict
from normkit.report import intervals, payload, text, views

__all__ = ["render", "write"]

_WORDS: tuple[Verdict, ...] = ("confirmed", "partly", "refuted", "open")
_PART_WORDS: tuple[PartWord, ...] = ("confirmed", "too small to matter", "opposite", "open")
# Beside each of the examples.
_RULES = (
    "the interval lies above zero, and the effect is at least what matters (the edge of the band).",
    "or, with a margin (dashed): the interval lies above it, so no more than that is lost.",
    "the interval lies inside the band of what does not matter.",
    "the interval lies below zero; where there is a margin, below the margin.",
    "none of these. Where it can be told, a range says how many seeds would decide: "
    "about four of five such ranges hold the number that was needed.",
)

# plotly.js brings the style sheet of its maps, which no chart here needs and the policy refuses.
# It leaves it out where an element with the sheet's name exists.
_OWN_SHEETS = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


# How a page says that it is one of ours, within so many bytes of its beginning.
_MARK, _MARKED = b'name="generator" content="normkit"', 4096


def write(findings: Sequence[Finding], path: Path, *, about: Mapping[str, str]) -> Path:
    """Write the report of ``findings`` to ``path`` and return the path.

    The file is one HTML page that opens without a network and carries its charts, its data and
    the program that draws them. It appears whole or not at all: it is written beside its place
    and moved there. Missing folders are made.

    Args:
        findings: what the lab found, in the order in which the page shows it. None at all is
            allowed; the page then says how to get some.
        path: the file to write; one that exists is replaced.
        about: what the page says about itself: versions, machine, date, preset, total time, each
            under its own name. ``notice``, if there, is shown where no reader can miss it.

    Raises:
        StoreError: the folder or the file cannot be written, or the file is something else than
            a report.

    See the example in :mod:`normkit.report`.
    """
    path = Path(path)
    check_target(path)
    # Lone surrogates have no bytes; everything else passes unchanged.
    content = render(findings, about=about).encode("utf-8", errors="replace")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(content)
            # Path.replace, not rename: on every system it takes the place of an older report.
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def check_target(path: Path) -> None:
    """Find out now whether a report can be written to ``path`` later. Nothing is made.

    Raises:
        StoreError: it cannot, or a file stands there that is no report and would be lost.
    """
    path = Path(path)
    # Of folders that are not there yet, the first one above them decides.
    folder = next(each for each in path.absolute().parents if each.exists())
    probe = folder / f".{path.name}.{os.getpid()}.probe"
    try:
        if path.exists():
            with path.open("rb") as file:
                start = file.read(_MARKED).lstrip()
            if start and _MARK not in start:
                raise StoreError(
                    message(
                        "a new file or an older report of normkit",
                        f"{str(path)!r}, which normkit did not write",
                        "name another file, such as report.html",
                    )
                )
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        message(
            "a writable file for the report",
            f"{str(path)!r}: {error.strerror or error}",
            "name a file in a folder of your own, such as report.html",
        )
    )


def render(findings: Sequence[Finding], *, about: Mapping[str, str]) -> str:
    """The page as text; :func:`write` puts it in its place.

    >>> page = render([], about={"notice": "a <small> trial"})
    >>> "a &lt;small&gt; trial" in page, "http-equiv=" in page
    (True, True)
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("normkit.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        limits=intervals.limits,
        number=text.number,
        remark=intervals.remark,
        decimals=text.decimals,
        duration=text.duration,
        few=text.few,
        label=text.label,
        safe_url=text.safe_url,
        shorten=text.shorten,
        tidy=text.tidy,
    )
    scripts = {
        "theme": _source(environment, "theme.js"),
        "plotly": get_plotlyjs(),
        "charts": _source(environment, "charts.js"),
        "page": _source(environment, "page.js"),
    }
    styles = {
        "page": _source(environment, "style.css"),
        # plotly.js fills this sheet through its rules, which the policy allows; a sheet that it
        # made itself would be refused.
        "plotly": "/* rules of plotly.js */",
    }
    claims = views.claims(findings)
    # Runs that claims share have one key.
    once = {
        record["key"]: record
        for finding in findings
        for record in finding.records
        if record.get("status") in ("done", "diverged") and "key" in record
    }
    tally = [(word, [one for one in claims if one.finding.word == word]) for word in _WORDS]
    return environment.get_template("page.html.j2").render(
        claims=claims,
        tally=tally,
        words=_WORDS,
        part_words=_PART_WORDS,
        rules=_RULES,
        family=Family.of(findings),
        examples=views.parts(intervals.EXAMPLES),
        runs=len(once),
        seconds=sum(record["seconds"] for record in once.values()),
        about={key: value for key, value in about.items() if key != "notice"},
        notice=about.get("notice", ""),
        half=intervals.HALF,
        verdicts=_verdicts(findings),
        effects=sum(max(1, len(finding.comparisons)) for finding in findings),
        placeholders=sorted(set(_OWN_SHEETS.findall(scripts["plotly"]))),
        policy=_policy(scripts.values(), styles.values()),
        scripts={name: Markup(source) for name, source in scripts.items()}
        | {"plotly": Markup(_packed_plotly())},
        styles={name: Markup(source) for name, source in styles.items()},
    )


def _verdicts(findings: Sequence[Finding]) -> Markup:
    """The overview as a download: one row for each comparison."""
    rows: list[dict[str, Any]] = [
        {
            "claim": finding.key,
            "title": finding.title,
            "verdict": finding.word,
            "confirmed_parts": finding.confirmed,
            "parts": finding.parts,
            **row,
        }
        for finding in findings
        for row in ([dataclasses.asdict(one) for one in finding.comparisons] or [{}])
    ]
    about = {"what": "verdicts of normkit's lab"}
    return payload.embed({"name": "normkit-verdicts", "about": about, **payload.table(rows)})


@functools.cache
def _packed_plotly() -> str:
    """Most of a page's weight: less than half of it when packed."""
    return payload.pack(get_plotlyjs())


def _source(environment: jinja2.Environment, name: str) -> str:
    """A file of the templates folder as it is: code is not a template."""
    if environment.loader is None:  # pragma: no cover - set where it is made
        raise AssertionError("the environment has no loader")
    return environment.loader.get_source(environment, name)[0]


def _policy(scripts: Any, styles: Any) -> str:
    def hashes(sources: Any) -> str:
        digests = (hashlib.sha256(source.encode()).digest() for source in sources)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes(scripts)}",
            f"style-src {hashes(styles)}",
            # A chart saved as a picture passes through an image of the page's own making.
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
