"""The code blocks and commands of README and docs run."""

from __future__ import annotations

import os
import re
import runpy
import socket
from pathlib import Path

import pytest

from tests.together import run

ROOT = Path(__file__).parents[1]
BLOCKS = [
    (page.name, block)
    for page in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *sorted((ROOT / "docs" / "articles").glob("*.md")),
    )
    if not page.name.endswith(".zh.md")  # the same blocks as in English
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


def test_readme_has_code() -> None:
    assert any(name == "README.md" for name, _ in BLOCKS)


# Lightning's advice on speed, and its use of what torch has renamed.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated")
@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_code_runs(name: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no package manager: the shipped subset will do
    if "data.load" in block:
        block = block.replace('load("fashion-mnist")', 'load("fashion-mnist", offline=True)')
    exec(compile(block, name, "exec"), {})


def test_torchrun_scripts_run_in_two_processes(tmp_path: Path) -> None:
    scripts = [block for _, block in BLOCKS if "torchrun" in block]
    assert scripts
    for script in scripts:
        (tmp_path / "train.py").write_text(script)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        assert run(_rank, [(rank, port, tmp_path) for rank in ("0", "1")]) == [0, 0]


def _rank(rank: str, port: str, folder: Path) -> None:
    """Run train.py as torchrun does."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank
    )
    os.chdir(folder)
    runpy.run_path("train.py", run_name="__main__")


def test_commands_exist() -> None:
    from typer.testing import CliRunner

    from normkit.cli.app import app

    runner = CliRunner()
    for line in re.findall(r"^normkit (\w+ \w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        result = runner.invoke(app, [*line.split(), "--help"])
        assert result.exit_code == 0, line
