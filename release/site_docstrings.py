"""Docstrings, as they stand in the code, to the Markdown that mkdocstrings takes.

They are Google's style with roles and formulas of reStructuredText. An extension of griffe changes,
before a docstring is parsed,

- ``:class:`BatchNorm1d` `` to a link, if the reference has that name, else to code;
- ``:math:`` and ``.. math::`` to MathML, which browsers draw without a script;
- examples that begin with ``>>>`` to fenced blocks;
- a sentence within ``Args:``, ``Attributes:`` or ``Raises:`` that names nothing to a paragraph of
  its own, as it is lost otherwise.
"""

from __future__ import annotations

import ast
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

API = Path(__file__).parents[1] / "docs" / "api"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::\n\n?((?:\1 +.*\n?|\n)+)", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:    .*\n?|\n(?=    ))+)(\n?)", re.MULTILINE)


@cache
def names() -> frozenset[str]:
    """Return the paths that the pages of the reference have."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    return frozenset(re.findall(r"^::: (\S+)", pages, re.MULTILINE))


def link(role: re.Match[str]) -> str:
    """Return a link to a name of the reference, or the name as code."""
    name = role[1].removesuffix("()")
    for path in (name, f"normkit.{name}"):
        if path in names():
            return f"[`{role[1]}`][{path}]"
    return f"`{role[1]}`"


def mathml(tex: str, display: str = "inline") -> str:
    """Return a formula as MathML; an upright word is one word and not its letters."""
    words = re.sub(r"\\(?:mathrm|operatorname)\{(\w{2,})\}", r"\\text{\1}", " ".join(tex.split()))
    return convert(words, display=display)


def formula(block: re.Match[str]) -> str:
    """Return a displayed formula as MathML, one paragraph."""
    return textwrap.indent(mathml(block[2], display="block"), block[1]) + "\n\n"


def example(block: re.Match[str]) -> str:
    """Return an example in a fence."""
    indent = block[1]
    return f"{indent}```pycon\n{block[0]}\n{indent}```"


def sentences(section: re.Match[str]) -> str:
    """Move lines that name nothing behind the section."""
    named, rest = [], []
    into = named
    for line in section[2].rstrip().splitlines():
        if line.strip() and not line.startswith("     "):
            into = named if re.match(r"    [\w.*]+(, [\w.*]+)*( \(.*\))?: ?", line) else rest
        into.append(line)
    if not named:
        return (
            f"{section[1].replace('Args', 'Arguments')}: {' '.join(map(str.strip, rest))}\n"
            + section[3]
        )
    after = textwrap.dedent("\n".join(rest)).strip()
    items = "\n".join(named).rstrip()
    return f"{section[1]}:\n{items}\n" + (f"\n{after}\n" if after else "") + section[3]


def markdown(text: str) -> str:
    """Return a docstring of this package as Markdown in Google's style."""
    text = SECTION.sub(sentences, text)
    text = EXAMPLE.sub(example, text)
    text = BLOCK.sub(formula, text)
    text = MATH.sub(lambda found: mathml(found[1]), text)
    return ROLE.sub(link, text)


class Markdown(griffe.Extension):
    """Rewrite each docstring when it is collected, and find functions named as their modules."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Let `normkit.fold` be the function, as when the program runs, and not its module."""
        for name, member in list(pkg.members.items()):
            if not member.is_alias:
                continue
            try:
                target = member.final_target
                while target.is_module:
                    target = target.members[name]
                    target = target.final_target if target.is_alias else target
            except (griffe.AliasResolutionError, KeyError):
                continue
            pkg.members[name] = griffe.Alias(name, target, parent=pkg)

    def on_instance(self, *, node: ast.AST | None = None, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
