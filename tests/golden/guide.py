"""Run the example of the doctor's guide, and write what it prints into the guide.

    python -W ignore -m tests.golden.guide

docs/doctor.md holds train.py itself, its log, the command, its output as text and as a picture, and
figures of that output within sentences, which are for the author to read again. The picture of the
README, docs/first-screen.svg, is the command without --mend, and then with it; a line stands for
what it prints again.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from normkit.cli.doctor_run import Request, run
from normkit.cli.doctor_screen import diagnosis_lines, outcome_lines

GUIDE = Path(__file__).parents[2] / "docs" / "doctor.md"
PICTURE = GUIDE.with_suffix(".svg")
FIRST_SCREEN = GUIDE.with_name("first-screen.svg")
COLUMNS = {"text": 96, "picture": 100}


def block(guide: str, number: int) -> re.Match[str]:
    """The code block of this number, from 0."""
    return list(re.finditer(r"^```\w*\n(.*?)^```$", guide, re.S | re.M))[number]


def written(guide: str, number: int, text: str) -> str:
    """The guide with other text in that block."""
    found = block(guide, number)
    return guide[: found.start(1)] + text + guide[found.end(1) :]


def lines(command: str) -> dict[str, list[Text]]:
    """What the command prints, for each width."""
    words = shlex.split(command.replace("\\\n", " "))[2:]
    options = dict(zip((w.removeprefix("--") for w in words[1::2]), words[2::2], strict=True))
    fields = dict.fromkeys(Request.__dataclass_fields__)
    fields |= {"samples": "10000", "device": "cpu", "force": True, "model": words[0]}
    for name, value in options.items():
        fields[name] = Path(value) if name in ("checkpoint", "mend") else value
    torch.manual_seed(0)  # for the order of the loader
    outcome = run(Request(**fields), lambda stage: None)
    titles = {rule.code: rule.title for rule in outcome.rules}
    return {
        form: [
            *diagnosis_lines(outcome.diagnosis, titles, width),
            *outcome_lines(outcome, width),
        ]
        for form, width in COLUMNS.items()
    }


def picture(title: str, *dialogue: tuple[str, list[Text]]) -> str:
    """The terminal as SVG, without fonts from elsewhere: commands, each with what it prints."""
    console = Console(record=True, width=COLUMNS["picture"], file=io.StringIO())
    for command, printed in dialogue:
        console.print(Text.assemble(("$ ", "green"), command.rstrip()), soft_wrap=True)
        for line in printed:
            if line.plain.startswith(
                ("mend ", "check")
            ):  # longer than a terminal is wide; the text has it
                continue
            console.print(line, soft_wrap=True)
    svg = console.export_svg(title=title)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)


def rest(seen: list[Text], printed: list[Text]) -> list[Text]:
    """What a command prints that another did not, from the file that it wrote on."""
    start = next(n for n, line in enumerate(printed) if line.plain.startswith("Wrote"))
    assert [line.plain for line in seen[3:9]] == [line.plain for line in printed[3:9]]
    end = next(n for n, line in enumerate(printed) if n > start and not line.plain)
    return [Text("⋮ the same findings", "dim"), *printed[start:end]]


def main() -> None:
    """Train, diagnose, and write the guide and its picture."""
    guide = GUIDE.read_text()
    source = block(guide, len(re.findall(r"^```\w*\n.*?^```$", guide, re.S | re.M)) - 1).group(1)
    command = block(guide, 1).group(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(source)
        log = subprocess.run(
            [sys.executable, "train.py"], cwd=folder, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(GUIDE.parents[1] / "src")},
        ).stdout  # fmt: skip
        os.chdir(folder)
        sys.path.insert(0, folder)
        printed = lines(command)
        look = command.replace(" --mend mended.pt", "")
        seen = lines(look)["picture"]
        os.chdir(GUIDE.parent)
    text = "\n".join(
        part
        for line in printed["text"]
        for part in textwrap.wrap(
            line.plain, COLUMNS["text"], subsequent_indent=12 * " ", break_on_hyphens=False
        )
        or [""]
    )
    for page in (GUIDE, GUIDE.with_suffix(".zh.md")):
        page.write_text(written(written(page.read_text(), 2, text + "\n"), 0, log))
    PICTURE.write_text(picture("normkit doctor", (command, printed["picture"])))
    FIRST_SCREEN.write_text(
        picture(
            "normkit doctor", (look, [*seen, Text()]), (command, rest(seen, printed["picture"]))
        )
    )
    print(text)


if __name__ == "__main__":
    main()
