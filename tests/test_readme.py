"""The code blocks and commands of README and docs run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    (page.name, block)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
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
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             "--nproc-per-node", "2", "train.py"],
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_commands_exist() -> None:
    from typer.testing import CliRunner

    from normkit.cli.app import app

    runner = CliRunner()
    for line in re.findall(r"^normkit (\w+ \w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        result = runner.invoke(app, [*line.split(), "--help"])
        assert result.exit_code == 0, line
