"""Habits of wording that CONTRIBUTING rules out, as far as a machine can tell them."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import normkit

PACKAGE = Path(normkit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
OPENINGS = {"What", "Who", "Whoever", "How", "Whether", "That", "As", "Why", "Where", "When"}
ARTICLES = {"The", "A", "An"}
LAYERS = {
    "errors", "handle", "allocator", "core", "kernels", "nn", "statistics", "surgery", "adaptation",
    "integrations",
}  # fmt: skip
PHRASES = re.compile(
    r"as said|by (its|their) make\b|for want of|in the midst of|comes? about|the very (bits|same)"
    r"|nobody can know|is no number|\bwhoever\b|\bbesides\b|to fix:",
    re.IGNORECASE,
)
NAMES = {
    "asked", "found", "given", "held", "kept", "left", "made", "moved", "own", "said", "seen",
    "taken", "told", "watched",
}  # fmt: skip


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the names that a file binds: variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            # A property may keep a former public name, and say so.
            if not (ast.get_docstring(node) or "").startswith("Former name of"):
                yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def faults(source: str, openings: Collection[str] = OPENINGS) -> list[str]:
    tree = ast.parse(source)
    lines = [
        f"{line}: docstring opens with {text.split()[0]}"
        for line, text in _docstrings(tree)
        if text.split()[0] in openings
    ]
    lines += [
        f"{number}: {match[0]!r}"
        for number, line in enumerate(source.splitlines(), 1)
        if (match := PHRASES.search(line))
    ]
    lines += [f"{line}: named {name}" for line, name in _names(tree) if name.strip("_") in NAMES]
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_wording(path: Path) -> None:
    # The lab and its page describe many quantities, by noun phrases.
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    openings = OPENINGS | ARTICLES if part in LAYERS else OPENINGS
    assert faults(path.read_text(), openings) == []


def test_each_fault_is_noticed() -> None:
    source = '"""What it is."""\n\ndef made(own):\n    """Return it, as said."""\n    found = own\n'
    assert faults(source) == [
        "1: docstring opens with What",
        "4: 'as said'",
        "3: named made",
        "3: named own",
        "5: named found",
    ]


def wrong_messages(source: str) -> list[str]:
    """List errors' messages of another form than CONTRIBUTING's, or with a private name."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "message"):
            continue
        texts = [
            each.value
            for part in node.args
            for each in ast.walk(part)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        if len(node.args) != 3 or node.keywords:
            lines.append(f"{node.lineno}: not what was expected, received and how to fix it")
        if any(re.search(r"(?<![\w.'])_[A-Za-z]|\[/?(bold|red)|\x1b", text) for text in texts):
            lines.append(f"{node.lineno}: a private name or markup")
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_messages_have_one_form(path: Path) -> None:
    assert wrong_messages(path.read_text()) == []


def test_each_wrong_message_is_noticed() -> None:
    source = 'message("a", "b")\nmessage("a _Ghost", "b", f"{c}")\nmessage("[bold]a", "b", "c")\n'
    assert [line.partition(":")[0] for line in wrong_messages(source)] == ["1", "2", "3"]
