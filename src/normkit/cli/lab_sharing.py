"""``normkit lab export``, ``tensorboard``, ``compare``: share the results in a store.

None of these commands changes a store.
"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from normkit.cli.console import console, errors, needs, needs_lab, print_json
from normkit.cli.lab_options import STORE, WORD_STYLE, StoreOption
from normkit.cli.options import Json

if TYPE_CHECKING:
    from rich.console import Console

    from normkit.lab.compare import ClaimPair, EffectPair, Shared, Side
    from normkit.lab.findings import Comparison

__all__ = ["compare", "export", "tensorboard"]


class FormatName(str, enum.Enum):
    """File format of exported tables."""

    csv = "csv"
    parquet = "parquet"


def export(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write the tables to.")],
    store: StoreOption = STORE,
    kind: Annotated[
        FormatName, typer.Option("--format", help="CSV text, or typed and compressed Parquet.")
    ] = FormatName.csv,
    as_json: Json = False,
) -> None:
    """Export runs, measurements and verdicts as CSV or Parquet tables."""
    needs_lab()
    needs("an export", "export", ("pyarrow",))
    with errors():
        from normkit.lab.export import write
        from normkit.lab.store import Store

        with Store(store, read_only=True) as opened:
            counts = write(opened, out, kind.value)
    if as_json:
        print_json({"out": str(out), "format": kind.value, "rows": counts})
        return
    for name, count in counts.items():
        console().print(f"{out / name}.{kind.value}: {count:,} rows", soft_wrap=True)


def tensorboard(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write them to.")],
    store: StoreOption = STORE,
    as_json: Json = False,
) -> None:
    """Export all runs as TensorBoard event files, one folder per run."""
    needs_lab()
    needs("TensorBoard", "export", ("tensorboard",))
    with errors():
        from normkit.lab.events import write
        from normkit.lab.store import Store

        with Store(store, read_only=True) as opened:
            folders = write(opened, out)
    if as_json:
        print_json({"out": str(out), "runs": [str(folder) for folder in folders]})
        return
    console().print(
        f"{len(folders)} runs. View them with: tensorboard --logdir {out}", soft_wrap=True
    )


def compare(
    first: Annotated[Path, typer.Argument(metavar="FILE", help="A store.")],
    second: Annotated[Path, typer.Argument(metavar="FILE", help="The store to compare it with.")],
    as_json: Json = False,
) -> None:
    """Compare two stores: verdicts, effects, and the differences between equal runs."""
    needs_lab()
    with errors():
        from normkit.lab.compare import compare_stores
        from normkit.lab.store import Store

        with Store(first, read_only=True) as one, Store(second, read_only=True) as other:
            pair = compare_stores(one, other)
    if as_json:
        claims = [
            {
                **dataclasses.asdict(claim),
                "differs": claim.differs,
                "effects": [
                    {**dataclasses.asdict(effect), "overlap": effect.overlap}
                    for effect in claim.effects
                ],
            }
            for claim in pair.claims
        ]
        print_json({**dataclasses.asdict(pair), "claims": claims})
        return
    out = console()
    for letter, side in zip("AB", pair.sides, strict=True):
        _print_side(out, letter, side)
    _print_claims(out, pair.claims)
    _print_shared(out, pair.shared)


def _print_side(out: Console, letter: str, side: Side) -> None:
    out.print(f"{letter}: {side.store}, {side.finished} of {side.runs} runs done", soft_wrap=True)
    for text in (*side.machines, *side.versions):
        out.print(f"   {text}", soft_wrap=True)


def _print_claims(out: Console, claims: tuple[ClaimPair, ...]) -> None:
    table = Table("claim", "verdict in A", "verdict in B", "effects, A above B", show_lines=True)
    for pair in claims:
        mark = "differs\n" if pair.differs else ""
        common = f"{pair.common} runs in common"
        table.add_row(
            Text(f"{pair.claim}\n{pair.preset}"),
            *(_word(word, mark) for word in pair.verdicts),
            "\n".join([*(_effect(each) for each in pair.effects), common]),
        )
    out.print(table)
    different = [f"{pair.claim} ({pair.preset})" for pair in claims if pair.differs]
    both = sum(None not in pair.verdicts for pair in claims)
    names = f": {', '.join(different)}" if different else ""
    out.print(f"{len(different)} of {both} verdicts that both have differ{names}.", soft_wrap=True)


def _word(word: str | None, mark: str) -> Text:
    if word is None:
        return Text("not run", style="dim")
    return Text.assemble((mark, "bold reverse"), (word, WORD_STYLE[word]))


def _effect(pair: EffectPair) -> str:
    apart = "  (disjoint intervals)" if pair.overlap is False else ""
    shown = "\n".join(
        f"  {letter} {_interval(side)}" for letter, side in (("A", pair.first), ("B", pair.second))
    )
    return f"{pair.question}{apart}\n{shown}"


def _interval(effect: Comparison | None) -> str:
    from normkit.report.text import number

    if effect is None:
        return "none"
    low, high = number(effect.low), number(effect.high)
    word = f": {effect.word}" if effect.decides else ""
    return f"{number(effect.effect)} [{low}, {high}] {effect.unit}, {effect.seeds} seeds{word}"


def _print_shared(out: Console, shared: Shared) -> None:
    from normkit.report.text import number

    if not shared.runs:
        out.print("No run finished in both.")
        return
    time = f" (B took {number(shared.time)} times as long)" if shared.time else ""
    out.print(f"{shared.runs} runs finished in both{time}. Their last figures:", soft_wrap=True)
    table = Table("metric", "runs", "equal", "median difference", "largest", "in run")
    for each in shared.figures:
        table.add_row(
            each.metric,
            str(each.runs),
            str(each.equal),
            number(each.median),
            number(each.largest),
            each.run[:12] if each.largest else "",
        )
    out.print(table)
    for key, one, other in shared.endings:
        out.print(f"Run {key[:12]} ended differently: A {one}; B {other}", soft_wrap=True)
