"""The notebooks are those of their source, in both languages, and run."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/notebooks"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


notebooks = _load(FOLDER / "make_notebooks.py")
CELLS = notebooks.cells_of(notebooks.SOURCE.read_text(encoding="utf-8"))
TEXTS = [(cell.text, following.text) for cell, following in pairwise(CELLS) if cell.kind == "en"]


def _found(pattern: str) -> Callable[[str], Counter[str]]:
    return lambda text: Counter(
        re.sub(r"\s+", " ", each) for each in re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    )


SAME = {
    "headings": _found(r"^(#+ (?:\d\.)?)"),
    "items and rows": _found(r"^(?:- |\d\. |\|)"),
    "numbers": _found(r"\d[\d,.]*\d|\d"),
    "code": _found(r"`[^`]+`"),
    "formulas": _found(r"\$\$.+?\$\$"),
    "links": lambda text: Counter(_links(text)),
    "paragraphs": lambda text: len(re.split(r"\n\n+", text)),
}


def _links(text: str) -> list[str]:
    return [target.replace(".zh.", ".") for target in re.findall(r"\]\((.+?)\)", text)]


def test_example_of_the_format() -> None:
    assert doctest.testmod(notebooks) == (0, 1)


def test_texts_come_in_pairs() -> None:
    kinds = " ".join(cell.kind for cell in CELLS)
    assert re.fullmatch(r"((en zh|code)( |$))+", kinds)
    assert len(TEXTS) > 10


@pytest.mark.parametrize("what", SAME)
def test_chinese_says_the_same(what: str) -> None:
    for english, chinese in TEXTS:
        assert SAME[what](english) == SAME[what](chinese), english


def test_links_lead_somewhere() -> None:
    for target in {target for text in TEXTS for each in text for target in _links(each)}:
        assert (FOLDER / target).exists(), target


@pytest.fixture(params=notebooks.NOTEBOOKS)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _book(language: str) -> dict[str, Any]:
    book: dict[str, Any] = json.loads(notebooks.NOTEBOOKS[language].read_text(encoding="utf-8"))
    return book


def _outputs(book: dict[str, Any]) -> list[list[Any]]:
    return [cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_that_of_the_source(language: str) -> None:
    book = _book(language)
    assert book == notebooks.notebook(language, _outputs(book)), "run `make notebooks`"


def test_outputs_are_those_of_a_run(language: str) -> None:
    outputs = _outputs(_book(language))
    assert outputs == _outputs(_book("en"))
    flat = [output for cell in outputs for output in cell]
    assert {output["output_type"] for output in flat} == {"stream", "display_data"}
    assert {output["name"] for output in flat if "name" in output} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in flat) == 7
    printed = "".join(output.get("text", "") for output in flat)
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", printed)


def test_pieces_of_one_stream_are_joined() -> None:
    pieces = [
        {"output_type": "stream", "name": "stdout", "text": "a"},
        {"output_type": "stream", "name": "stdout", "text": "b"},
        {"output_type": "display_data", "data": {}},
    ]
    assert [piece.get("text") for piece in notebooks.joined(pieces)] == ["ab", None]


# It trains eight LeNets and twelve smaller networks, in about three minutes of one core; both
# languages have the same code. The limit is for machines that do much else.
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_code_runs() -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, str(FOLDER / "make_notebooks.py"), "--check"]
    done = subprocess.run(
        program, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
