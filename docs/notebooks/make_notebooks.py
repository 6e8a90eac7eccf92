"""Write the notebooks of this folder from their source, executed.

    python docs/notebooks/make_notebooks.py          # write both, with the outputs of one run
    python docs/notebooks/make_notebooks.py --texts  # write both with the outputs that they have
    python docs/notebooks/make_notebooks.py --check  # execute, and write nothing

`normalization.py` has both languages in jupytext's percent format: code cells once, texts in pairs,
English before Chinese. So both notebooks have the same code, which is executed once.

Charts are kept as pictures, because viewers such as GitHub's run no scripts. A reader who
executes a notebook gets plotly's interactive charts.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "normalization.py"
NOTEBOOKS = {"en": FOLDER / "normalization.ipynb", "zh": FOLDER / "normalization.zh.ipynb"}
CHART = "application/vnd.plotly.v1+json"
SECONDS = 900
"""Limit of a cell, for machines that do much else."""


class Cell(NamedTuple):
    """Cell of the source: "code", "en" or "zh"."""

    kind: str
    text: str


def cells_of(source: str) -> list[Cell]:
    """Split a source in the percent format; what stands before its first cell is no part of it.

    >>> cells_of('# %% [markdown] lang="en"\\n# # A\\n#\\n# b\\n\\n# %%\\nx = 1\\n')
    [Cell(kind='en', text='# A\\n\\nb'), Cell(kind='code', text='x = 1')]
    """
    _, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    cells = []
    for head, body in zip(parts[::2], parts[1::2], strict=True):
        language = re.fullmatch(r' \[markdown\] lang="(en|zh)"', head)
        if language:
            text = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)
            cells.append(Cell(language[1], text))
        elif head == "":
            cells.append(Cell("code", body.strip()))
        else:
            raise ValueError(f"unknown cell: # %%{head}")
    return cells


def notebook(language: str, outputs: Sequence[list[Any]] = ()) -> dict[str, Any]:
    """Return the notebook in one language, with the outputs of its code cells if there are any."""
    cells: list[dict[str, Any]] = []
    run = 0
    for kind, text in cells_of(SOURCE.read_text(encoding="utf-8")):
        if kind not in ("code", language):
            continue
        cell = {"id": f"cell-{len(cells):02}", "metadata": {}, "source": text.splitlines(True)}
        if kind == "code":
            cell |= {"execution_count": run + 1 if outputs else None}
            cell |= {"cell_type": "code", "outputs": outputs[run] if outputs else []}
            run += 1
        else:
            cell |= {"cell_type": "markdown"}
        cells.append(dict(sorted(cell.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def execute() -> list[list[Any]]:
    """Execute the code in a kernel; return the outputs of each cell, charts as plotly's JSON."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.reads(json.dumps(notebook("en")), as_version=4)
    with tempfile.TemporaryDirectory() as cache:
        # The images that come with normkit, so that all who have no others see the same numbers.
        os.environ |= {"NORMKIT_CACHE": cache, "PLOTLY_RENDERER": "plotly_mimetype"}
        os.environ.pop("NORMKIT_DATA", None)
        NotebookClient(book, timeout=SECONDS, kernel_name="python3", record_timing=False).execute()
    return [joined(cell.outputs) for cell in book.cells if cell.cell_type == "code"]


def joined(outputs: Sequence[Any]) -> list[Any]:
    """Join successive pieces of text: where a stream was cut depends on the clock."""
    whole: list[Any] = []
    for output in outputs:
        last = whole[-1] if whole else {}
        if output["output_type"] == "stream" and last.get("name") == output.get("name"):
            last["text"] += output["text"]
        else:
            whole.append(dict(output))
    return whole


def draw(outputs: Sequence[list[Any]]) -> None:
    """Replace each chart by a picture, with all charts in one Chromium."""
    import plotly.io as pio

    charts = [
        output["data"] for cell in outputs for output in cell if CHART in output.get("data", {})
    ]
    figures = [json.loads(json.dumps(data[CHART])) for data in charts]
    for figure in figures:
        figure.pop("config", None)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(len(figures))]
        width, height = ([each["layout"][side] for each in figures] for side in ("width", "height"))
        pio.write_images(figures, files, scale=1.5, width=width, height=height)
        for data, figure, file in zip(charts, figures, files, strict=True):
            data.clear()
            data["image/png"] = base64.b64encode(file.read_bytes()).decode()
            title = figure["layout"].get("title", {}).get("text", "")
            data["text/plain"] = f"<chart: {title}>" if title else "<chart>"


def present() -> list[list[Any]]:
    """Return the outputs that the English notebook has, if its code is that of the source."""
    book = json.loads(NOTEBOOKS["en"].read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    source = [cell.text for cell in cells_of(SOURCE.read_text("utf-8")) if cell.kind == "code"]
    if ["".join(cell["source"]) for cell in code] != source:
        sys.exit("The code has changed: leave out --texts, to execute it.")
    return [cell["outputs"] for cell in code]


def main() -> None:
    """Do what the command line says."""
    if sys.argv[1:] == ["--texts"]:
        outputs = present()
    else:
        start = time.perf_counter()
        outputs = execute()
        print(f"{len(outputs)} cells executed in {time.perf_counter() - start:.0f} s")
        if sys.argv[1:] == ["--check"]:
            return
        draw(outputs)
    for language, path in NOTEBOOKS.items():
        text = json.dumps(notebook(language, outputs), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
