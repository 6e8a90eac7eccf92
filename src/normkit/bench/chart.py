"""Charts of results, for the documentation.

Drawn with plotly; files need kaleido, which needs a Chromium; the extra ``bench``
installs both packages.
The background is a neutral light one, so that a chart looks the same on light and dark pages; it
is narrow enough for the text to stay legible on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from normkit.bench.summary import NAMES, geometric_mean, ratio_target
from normkit.errors import OptionError, how_to_install, message

__all__ = ["speed_chart", "steps_chart", "write_image"]

WIDTH = 560
INK = "#24292f"
GRID = "#d0d4da"
GROUND = "#f6f7f9"
COLOURS = {"default": "#b3541e", "tuned": "#1f5fa8"}
PARTS = {"norm": "#b3541e", "convolution": "#1f5fa8", "rest": "#8a9099"}
PART_NAMES = {"norm": "normalization", "convolution": "convolution", "rest": "the rest"}

Record = Mapping[str, Any]


def speed_chart(cases: Sequence[Record]) -> go.Figure:
    """Draw each case's speed relative to torch.nn, and the geometric mean of each kind."""
    rows = [
        (norm, measure)
        for norm in NAMES
        for measure in ("act", "alone")
        if any(r["norm"] == norm and r["measure"] == measure for r in cases)
    ]
    figure = go.Figure()
    for number, (allocator, colour) in enumerate(COLOURS.items()):
        dots_x: list[float] = []
        dots_y: list[float] = []
        means: list[tuple[float, float]] = []
        for row, (norm, measure) in enumerate(rows):
            ratios = [
                r["ratio"]
                for r in cases
                if (r["norm"], r["measure"], r["mode"]) == (norm, measure, "train")
                and r["allocator"] == allocator
            ]
            height = row + (0.18 if number else -0.18)
            dots_x += ratios
            dots_y += [height] * len(ratios)
            if ratios:
                means.append((geometric_mean(ratios), height))
        if not means:
            continue
        figure.add_scatter(
            x=dots_x, y=dots_y, mode="markers", showlegend=False, hoverinfo="skip",
            marker={"color": colour, "size": 6, "opacity": 0.28},
        )  # fmt: skip
        figure.add_scatter(
            x=[x for x, _ in means], y=[y for _, y in means], mode="markers+text",
            name=f"{allocator} allocator",
            text=[f"<b>{x:.1f}</b>" for x, _ in means],
            textposition="bottom center" if number else "top center",
            textfont={"color": colour, "size": 13},
            marker={"color": colour, "size": 13, "symbol": "diamond",
                    "line": {"color": GROUND, "width": 1.5}},
        )  # fmt: skip
    _targets(figure, rows)
    figure.add_vline(x=1, line={"color": INK, "width": 1.5})
    _style(figure, "Times as fast as torch.nn, forward and backward", height=96 + 62 * len(rows))
    words = {"act": "+ ReLU", "alone": "alone"}
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[f"{NAMES[norm]}<br>{words[measure]}" for norm, measure in rows],
        range=[len(rows) - 0.4, -0.7],
    )
    figure.update_xaxes(type="log", tickvals=[0.25, 0.5, 1, 2, 3, 5, 10, 20, 50])
    return figure


def _targets(figure: go.Figure, rows: Sequence[tuple[str, str]]) -> None:
    points = [
        (target, row + shift)
        for row, (norm, measure) in enumerate(rows)
        for allocator, shift in (("default", -0.18), ("tuned", 0.18))
        for target in [ratio_target(norm, measure, allocator)]
        if target is not None
    ]
    figure.add_scatter(
        x=[x for x, _ in points], y=[y for _, y in points], mode="markers", name="target",
        marker={"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 2}},
    )  # fmt: skip


def steps_chart(steps: Sequence[Record]) -> go.Figure:
    """Draw the time of each training step by kind of layer, with torch.nn's layers and with ours.

    torch.nn's step is scaled to 100, ours to 100 over the ratio of the two; within a step, kinds
    of layers take their measured proportions.
    """
    names, sums = [], []
    for r in steps:
        for side, word in (("torch", "torch.nn"), ("ours", "normkit")):
            layout = "" if r["layout"] == "contiguous" else ", channels-last"
            allocator = "" if r["allocator"] == "default" else ", tuned"
            names.append(f"<b>{r['network']}</b>{layout}{allocator}<br>{word}")
            parts = r["parts_ms"][side]
            # Only the parts are timed with hooks, which cost a little.
            total = 100 / (1 if side == "torch" else r["ratio"])
            scale = total / sum(v for name, v in parts.items() if name.startswith(tuple(PARTS)))
            sums.append(
                {
                    kind: scale * sum(v for name, v in parts.items() if name.startswith(kind))
                    for kind in PARTS
                }
            )
    figure = go.Figure()
    for kind, colour in PARTS.items():
        figure.add_bar(
            x=[each[kind] for each in sums], y=names, orientation="h", name=PART_NAMES[kind],
            marker={"color": colour, "line": {"width": 0}},
        )  # fmt: skip
    _style(figure, "Time of a training step (torch.nn's is 100)", height=130 + 46 * len(names))
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(autorange="reversed")
    return figure


def _style(figure: go.Figure, title: str, *, height: int) -> None:
    figure.update_layout(
        title={"text": title, "font": {"size": 17}, "x": 0.02, "xanchor": "left"},
        width=WIDTH, height=height, paper_bgcolor=GROUND, plot_bgcolor=GROUND,
        font={"family": "Arial, Helvetica, sans-serif", "size": 15, "color": INK},
        margin={"l": 8, "r": 20, "t": 84, "b": 40},
        legend={"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom",
                "font": {"size": 14}, "traceorder": "normal"},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(showgrid=False, zeroline=False, automargin=True)


def write_image(figure: go.Figure, path: Path) -> None:
    """Write a chart as SVG or PNG.

    Raises:
        OptionError: kaleido is missing, or the browser that it uses.
    """
    try:
        figure.write_image(path)
    except (ImportError, ValueError, RuntimeError) as error:
        raise OptionError(
            message(
                "kaleido and a Chromium, which write charts",
                str(error).splitlines()[0],
                f"{how_to_install('bench')}, and install Chromium or run plotly_get_chrome",
            )
        ) from error
