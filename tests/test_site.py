"""The site of the guides: its reference is complete, and docstrings become the Markdown it needs.

That links lead somewhere is for `make site`, which CI runs.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import normkit as nk

ROOT = Path(__file__).parents[1]


def test_reference_has_each_public_name_once() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    listed = re.findall(r"^::: \S*?([^.\s]+)$", pages, re.MULTILINE)
    public = {name for name in nk.__all__ if name not in ("errors", "nn")}
    assert sorted(public - set(listed)) == []
    assert sorted({name for name in listed if listed.count(name) > 1}) == []


def load(name: str) -> ModuleType:
    """A file of release/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"release/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_expands_patterns_once(tmp_path: Path) -> None:
    for name in ("a/README.md", "a/x.md", "a/x.zh.md", "a/y.md", "b.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    nav = ["b.md", {"A": ["a/README.m*", "a/*.md", {"none": "live.htm*"}]}, {"C": ["c/*"]}]
    config = {"docs_dir": str(tmp_path), "nav": nav}
    load("site_hooks").on_config(config)
    assert config["nav"] == ["b.md", {"A": ["a/README.md", "a/x.md", "a/y.md"]}]


@pytest.mark.parametrize(
    ("language", "written", "shown"),
    [
        ("en", "see [it](../CHANGELOG.md)", "see it (`CHANGELOG.md`)"),
        ("en", "see [x](nothing.md)", "see [x](nothing.md)"),
        ("en", "[中文](README.zh.md)\n", "\n"),
        ("en", "[how](lab.md#presets)", "[how](lab.md#presets)"),
        ("zh", "[how](lab.md#presets)", "[how](lab.md#预设)"),
        ("zh", "[how](lab.md#nowhere)", "[how](lab.md#nowhere)"),
    ],
)
def test_links_of_a_page_fit_the_site(language: str, written: str, shown: str) -> None:
    file = SimpleNamespace(src_uri="x.md", abs_src_path=str(ROOT / "docs/x.md"))
    page, config = SimpleNamespace(file=file), {"theme": {"language": language}}
    assert load("site_hooks").on_page_markdown(written, page=page, config=config) == shown


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    """The extension of griffe, which is no part of the package."""
    pytest.importorskip("griffe", reason="normkit[docs] is not installed")
    pytest.importorskip("latex2mathml", reason="normkit[docs] is not installed")
    return load("site_docstrings")


TEXT = """Normalize by :math:`\\mathrm{Var}`, as :func:`normkit.fold` and :class:`nowhere.Other`.

Args:
    x, y: a number,
        in two lines.
    Others as ``torch.nn``'s.

Raises:
    ShapeError: another rank.

    The model stays as it was.

>>> 1 + 1
2

After.
"""


def test_a_docstring_becomes_markdown(docstrings: ModuleType) -> None:
    text = docstrings.markdown(TEXT)
    assert "as [`normkit.fold`][normkit.fold] and `nowhere.Other`." in text
    assert "<mtext>Var</mtext>" in text
    assert (
        "Args:\n    x, y: a number,\n        in two lines.\n\nOthers as ``torch.nn``'s.\n" in text
    )
    assert "Raises:\n    ShapeError: another rank.\n\nThe model stays as it was.\n" in text
    assert "```pycon\n>>> 1 + 1\n2\n```\n\nAfter." in text


def test_a_formula_is_one_line_of_mathml(docstrings: ModuleType) -> None:
    text = docstrings.markdown("A.\n\n.. math::\n    y = x\n      + 1\n\nB.\n")
    assert re.fullmatch(r"A\.\n\n<math [^\n]* display=\"block\">[^\n]*</math>\n\nB\.\n", text)


def test_a_section_without_names_is_a_sentence(docstrings: ModuleType) -> None:
    text = docstrings.markdown("A.\n\nArgs:\n    as :class:`normkit.BatchNorm2d`.\n")
    assert text == "A.\n\nArguments: as [`normkit.BatchNorm2d`][normkit.BatchNorm2d].\n"
