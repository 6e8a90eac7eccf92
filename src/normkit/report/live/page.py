"""Page of the live network: a recording in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from normkit.lab.data.corruptions import CORRUPTIONS
from normkit.report.live.recording import Recording
from normkit.report.payload import embed
from normkit.report.shell import check_target, content_policy, write_page

__all__ = ["render", "write"]

HERE = Path(__file__).parent
TEMPLATES = HERE.parent / "templates"
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
PRIORS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MODES = ("remembered", "batch", "mixed")
SCRIPTS = ("corrupt", "network", "drawing", "charts", "state", "training", "live")


def write(recording: Recording, path: Path) -> Path:
    """Write the page to ``path`` and return the path.

    Raises:
        StoreError: the file cannot be written, or is something else than a page of normkit.
    """
    check_target(path)
    return write_page(path, render(recording))


def render(recording: Recording) -> str:
    """Return the page as text. The same recording gives the same text.

    >>> from normkit.report.live.recording import load
    >>> page = render(load())
    >>> "中文" in page, "<script src" in page
    (True, False)
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["filled"] = lambda text, values: text.format(**values)
    texts: dict[str, tuple[str, str]] = json.loads(_source(HERE / "texts.json"))
    scripts = {name: _source(HERE / f"{name}.js") for name in SCRIPTS}
    scripts["theme"] = _source(TEMPLATES / "theme.js")
    style = _source(TEMPLATES / "style.css") + _source(HERE / "live.css")
    places, blob = _packed(recording.arrays)
    values = _values(recording)
    facts = {**recording.facts, "arrays": places, "values": values}
    policy = content_policy(scripts.values(), [style])
    return environment.get_template("live.html.j2").render(
        # The network runs in a worker, whose program is a script of this page.
        policy=f"{policy}; worker-src blob:",
        scripts={name: Markup(source) for name, source in scripts.items()},
        style=Markup(style),
        texts=texts,
        texts_json=embed(texts, compress=False),
        facts_json=embed(facts, compress=False),
        blob=base64.b64encode(blob).decode(),
        values=values,
        modes=MODES,
        kinds=tuple(CORRUPTIONS),
        sizes=SIZES,
        priors=PRIORS,
        steps=len(recording.arrays["sizes"]),
        first_step=_first_step(recording),
    )


def _first_step(recording: Recording) -> int:
    """Return the step (from 1) on an incomplete batch after which the accuracies differ most."""
    accuracy, sizes = recording.arrays["accuracy"], recording.arrays["sizes"]
    off = np.abs(accuracy[:, 1] - accuracy[:, 0])
    return int(np.where(sizes < sizes.max(), off, -1).argmax()) + 1


def _values(recording: Recording) -> dict[str, str]:
    """Return the figures that texts name."""
    facts, sizes = recording.facts, recording.arrays["sizes"]
    numbers = {
        "epochs": facts["epochs"],
        "full": facts["batch_size"],
        "rest": int(sizes.min()),
        "train": facts["train_images"],
        "test": facts["test_images"],
        "population": facts["population_images"],
        "shown": len(recording.arrays["labels"]),
        "rate": facts["rate"],
        "seed": facts["seed"],
    }
    return {name: f"{value:,}" for name, value in numbers.items()} | {
        "data": facts["data"],
        "licence": facts["licence"],
    }


def _packed(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, list[Any]], bytes]:
    """Return all arrays as bytes, and of each its type, length and place in bytes."""
    places: dict[str, list[Any]] = {}
    parts: list[bytes] = []
    size = 0
    for name in sorted(arrays):
        array = arrays[name]
        kind = "uint8" if array.dtype == np.uint8 else "float32"
        data = array.astype("u1" if kind == "uint8" else "<f4").tobytes()
        places[name] = [kind, array.size, size]
        # Typed arrays begin at multiples of their size.
        parts.append(data + bytes(-len(data) % 4))
        size += len(parts[-1])
    return places, b"".join(parts)


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")
