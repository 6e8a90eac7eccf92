"""Frame of a page: one self-contained HTML file that asks the network for nothing.

Its content security policy forbids it to: scripts and styles run only if they are the very ones
written here, told by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from normkit.errors import StoreError, message
from normkit.report import intervals, payload, text

__all__ = ["check_target", "content_policy", "render_page", "write_page"]

# plotly.js brings the style sheet of its maps, which no chart here needs and the policy refuses.
# It leaves it out where an element with the sheet's name exists.
OWN_SHEETS = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


# How a page says that it is one of ours, within so many bytes of its beginning.
MARK, MARKED = b'name="generator" content="normkit"', 4096


def render_page(
    template: str, *, sheets: Sequence[str] = (), programs: Sequence[str] = (), **context: Any
) -> str:
    """Render a template that extends ``layout.html.j2``.

    Args:
        sheets: further style sheets of the templates' folder.
        programs: further scripts of that folder, which run after the page's own.
        context: what the template prints.
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
        first_sentence=text.first_sentence,
        label=text.label,
        safe_url=text.safe_url,
        shorten=text.shorten,
        tidy=text.tidy,
        whole=text.whole,
    )
    scripts = {
        "theme": _source(environment, "theme.js"),
        "plotly": get_plotlyjs(),
        "charts": _source(environment, "charts.js"),
        "page": _source(environment, "page.js"),
        **{name: _source(environment, name) for name in programs},
    }
    styles = {
        "page": "\n".join(_source(environment, name) for name in ("style.css", *sheets)),
        # plotly.js fills this sheet through its rules, which the policy allows; a sheet that it
        # made itself would be refused.
        "plotly": "/* rules of plotly.js */",
    }
    return environment.get_template(template).render(
        programs=programs,
        placeholders=sorted(set(OWN_SHEETS.findall(scripts["plotly"]))),
        policy=content_policy(scripts.values(), styles.values()),
        scripts={name: Markup(source) for name, source in scripts.items()}
        | {"plotly": Markup(_packed_plotly())},
        styles={name: Markup(source) for name, source in styles.items()},
        half=intervals.HALF,
        **context,
    )


def write_page(path: Path, content: str) -> Path:
    """Write a page to ``path`` and return the path; missing folders are made.

    The file appears whole or not at all: it is written beside its place and moved there.

    Raises:
        StoreError: as :func:`check_target`.
    """
    # Lone surrogates have no bytes; everything else passes unchanged.
    data = content.encode("utf-8", errors="replace")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(data)
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
                start = file.read(MARKED).lstrip()
            if start and MARK not in start:
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


@functools.cache
def _packed_plotly() -> str:
    """Most of a page's weight: less than half of it when packed."""
    return payload.pack(get_plotlyjs())


def _source(environment: jinja2.Environment, name: str) -> str:
    """A file of the templates folder as it is: code is not a template."""
    if environment.loader is None:  # pragma: no cover - set where it is made
        raise AssertionError("the environment has no loader")
    return environment.loader.get_source(environment, name)[0]


def content_policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Return a policy that runs these scripts and styles alone, and forbids the network."""

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
