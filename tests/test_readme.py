"""The code blocks and commands of README and docs run."""

from __future__ import annotations

import os
import re
import runpy
import shlex
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


def test_commands_exist_with_their_options() -> None:
    from typer.main import get_command

    from normkit.cli.app import app

    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    lines = [
        (page.name, line)
        for page in pages
        if page.name != "log.md"  # what was typed then
        for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(), re.M | re.S)
        for line in re.findall(r"^normkit .*", block.replace("\\\n", " "), re.MULTILINE)
    ]
    assert len(lines) > 20
    for name, line in lines:
        command, words = get_command(app), shlex.split(line, comments=True)[1:]
        if words[0] == "computes":  # no command, but what one prints
            continue
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), f"{name}: {line}"
        options = {each for one in command.params for each in one.opts}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options, f"{name}: {line}"


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    rows = re.findall(r"^\| C\d+ .*", text, re.MULTILINE)
    assert 0 < len(rows) <= 8


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_first_screen_shows_the_two_commands_and_what_they_print(name: str) -> None:
    """The picture is a recording: its figures are those of the text, its commands those above."""
    first = "".join((ROOT / name).read_text().split("\n## ")[:2])
    commands = re.findall(r"^```\n(normkit doctor .*?)^```", first, re.MULTILINE | re.DOTALL)[0]
    (says,) = re.findall(r"!\[(.*?)\]\(docs/first-screen.svg\)", first)
    drawn = (ROOT / "docs/first-screen.svg").read_text()
    printed = " ".join(re.sub(r"<[^>]*>", " ", drawn).replace("&#160;", " ").split())
    for command in commands.replace("\\\n", " ").splitlines():
        words = command.split()
        assert " ".join(words) in printed.replace(" \\ ", " "), command
    for figure in re.findall(r"\d+\.\d", says):
        assert f"{figure} %" in printed, figure


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_table_of_speed_is_that_of_the_benchmarks(name: str) -> None:
    measured = (ROOT / "docs/benchmarks.md").read_text()
    table = re.search(r"(?<=\|---\|---\|\n)(?:\| .* \| [\d.]+ \|\n)+", (ROOT / name).read_text())
    assert table
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \|$", table[0], re.MULTILINE)
    assert len(rows) == 7
    for what, factor in rows:
        step = next((net for net in ("DenseNet", "ResNet-18") if net in what), None)
        row = (
            rf"training step of {step.replace('-', '').lower()}, \S+, contiguous, default"
            if step
            else rf"{what} \+ ReLU, forward and backward, tuned"
        )
        assert re.search(rf"^\| {row} allocator \| \*\*{factor}\*\* ", measured, re.MULTILINE), what


FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    )
)


def _anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", each.strip().lower()).replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        if not other.exists() or (
            anchor and other.suffix == ".md" and anchor not in _anchors(other)
        ):
            lost.append(target)
    assert lost == []


def test_each_guide_is_listed() -> None:
    """In the index and in the navigation, so that a reader finds it."""
    index, site = (ROOT / "docs/README.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name == "README.md" or page.name.endswith(".zh.md"):
            continue
        assert f"({page.name})" in index, page.name
        assert f"- {page.name}\n" in site, page.name
