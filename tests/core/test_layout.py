"""The package keeps to its layout: imports downward only, every public name listed once."""

from __future__ import annotations

import ast
from pathlib import Path

import normkit

PACKAGE = Path(normkit.__file__).parent
# From the bottom up: a file imports only from its own layer and those before it.
ORDER = [
    "errors", "compat", "handle", "allocator", "core", "kernels", "nn", "statistics", "surgery",
    "adaptation", "doctor", "integrations", "bench", "lab", "report", "cli",
]  # fmt: skip
# Within statistics/ likewise: its folders, and above them a file for each public function.
STATISTICS = [
    "printing", "check_arguments", "estimates", "layers", "batches", "processes", "outputs",
    "measuring", "results",
]  # fmt: skip
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += (
                [f"normkit.{a.name}" for a in node.names]
                if node.module == "normkit"
                else [node.module]
            )
    return [m for m in found if m.split(".")[0] == "normkit"]


def test_imports_point_downward() -> None:
    upward = []
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in _imports(path):
            if module == "normkit" or not _layer(module).isidentifier():
                continue
            layer = _layer(module)
            if layer not in ORDER:  # a public name, such as normkit.BatchNorm2d or __version__
                layer = "nn" if not layer.startswith("__") else "errors"
            if ORDER.index(layer) > ORDER.index(own):
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert len(FILES) > 400 and not upward


SHARED = [
    p for name in STATISTICS for p in FILES if p.is_relative_to(PACKAGE / "statistics" / name)
]
SHARED.append(PACKAGE / "statistics/check_arguments.py")


def test_statistics_imports_point_downward() -> None:
    upward = []
    for path in SHARED:
        own = path.relative_to(PACKAGE / "statistics").parts[0].removesuffix(".py")
        below = STATISTICS[: STATISTICS.index(own) + 1]
        for module in _imports(path):
            _, folder, *inner = module.split(".")
            if folder == "statistics" and inner[0] not in below:
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert len(SHARED) > 40 and not upward


def test_the_rule_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from normkit.report import write\n")
    assert _imports(bad) == ["normkit.report"]
    assert ORDER.index(_layer("normkit.report")) > ORDER.index("core")


def test_each_public_name_is_listed_once_and_exists() -> None:
    assert len(normkit.__all__) == len(set(normkit.__all__))
    assert all(hasattr(normkit, name) for name in normkit.__all__)


def test_layers_do_not_need_the_lab() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in {"core", "kernels", "nn"}:
            outside = {
                node.module.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and node.module
            }
            assert not outside & {"scipy", "plotly", "pooch", "jinja2", "typer", "rich"}, path
