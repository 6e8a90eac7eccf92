"""Figures, targets and what is shown of them, on made-up records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normkit.bench import markdown, results_file, terminal
from normkit.bench.advice import advice
from normkit.bench.chart import speed_chart, steps_chart
from normkit.bench.summary import Figure, geometric_mean, summarize
from normkit.errors import OptionError
from tests.bench import records as made

MIB = 2**20


def figures(cases: list[dict], steps: list[dict] = ()) -> dict[str, Figure]:  # type: ignore[assignment]
    return {figure.key: figure for figure in summarize(cases, steps, l2_bytes=MIB)}


def test_geometric_means_by_kind_and_allocator(made: Any) -> None:
    found = figures(
        [
            made.case(ratio=2.0, times=1),
            made.case(ratio=8.0, times=3),
            made.case(ratio=100.0, allocator="tuned"),
            made.case(ratio=100.0, measure="alone"),
            made.case(ratio=100.0, mode="eval"),
            made.case("gn", ratio=1.9),
        ]
    )
    assert found["bn-act-default"].value == pytest.approx(4.0)
    assert found["bn-act-default"].target == 5.0
    assert found["bn-act-default"].reached is False
    assert "from 2.00 to 8.00" in found["bn-act-default"].note
    by_times = geometric_mean([2.0, 8.0], [1, 3])
    assert f"occur {by_times:.2f}" in found["bn-act-default"].note
    assert found["bn-act-tuned"].reached is True
    assert found["gn-act-default"].reached is False
    assert "gn-act-tuned" not in found


def test_targets(made: Any) -> None:
    records = [
        made.case(norm, measure, allocator=allocator)
        for norm in ("bn", "gn", "ln", "in", "rms")
        for measure in ("act", "alone")
        for allocator in ("default", "tuned")
    ]
    found = figures(records)
    targets = {key: figure.target for key, figure in found.items() if "-act-" in key}
    assert targets.pop("bn-act-default") == 5
    assert targets.pop("bn-act-tuned") == 3
    assert set(targets.values()) == {2}
    assert found["bn-alone-default"].target == found["bn-alone-tuned"].target == 3
    assert found["gn-alone-default"].target is None


def test_slow_cases_are_listed_worst_first(made: Any) -> None:
    records = [made.case(ratio=ratio, case=f"bn/{ratio}/1/c") for ratio in (0.94, 0.95, 0.5, 2.0)]
    found = figures(records)["slow-train"]
    assert (found.value, found.reached) == (2.0, False)
    assert found.note.index("bn/0.5/") < found.note.index("bn/0.94/")
    assert figures([made.case()])["slow-train"].reached is True


def test_copies_exclude_cases_within_the_cache(made: Any) -> None:
    tuned = {"allocator": "tuned"}
    found = figures(
        [
            made.case(copies=3.0, **tuned),
            made.case(copies=5.0, **tuned),
            made.case(copies=4.5, layout="channels-last", **tuned),
            made.case(copies=99.0, bytes=MIB, **tuned),
            made.case(copies=99.0),
            made.case("gn", copies=99.0, **tuned),
            made.case(mode="eval", copies=1.2, **tuned),
        ]
    )
    worst = found["copies-contiguous"]
    assert (worst.value, worst.target, worst.reached) == (5.0, 4.0, False)
    assert "median 4.00; 1 of 2 cases within" in worst.note
    assert found["copies-channels-last"].reached is True
    assert (found["evaluation"].value, found["evaluation"].reached) == (1.2, True)


def test_tuned_allocator_against_default(made: Any) -> None:
    tuned = {"allocator": "tuned", "ms": {"torch": 1.0, "ours": 1.0, "copy": 0.5}}
    cases = [
        made.case(),
        made.case(**tuned),
        made.case("gn"),  # with one setting alone
        made.case(mode="eval", ms={"torch": 9.0, "ours": 9.0, "copy": 0.5}),
        made.case(mode="eval", **tuned),
    ]
    (figure,) = (f for f in summarize(cases, l2_bytes=MIB, libc="glibc 2.36") if f.key == "tuned")
    assert figure.value == pytest.approx(2.0)
    assert figure.target is None
    assert "normkit.keep_freed_memory()" in figure.text
    assert "with torch.nn 4.00; geometric means of 1 " in figure.note
    steps = [made.step(), made.step(allocator="tuned", ms={"torch": 65.0, "ours": 80.0})]
    (figure, *_) = summarize([], steps, l2_bytes=MIB, libc="glibc 2.36")
    assert (figure.key, figure.value) == ("tuned", pytest.approx(1.25))
    assert "tuned" not in figures(cases)  # another C library has no such setting
    assert not [f for f in summarize(cases[:1], l2_bytes=MIB, libc="glibc") if f.key == "tuned"]


def test_steps_have_targets_in_contiguous_layout(made: Any) -> None:
    found = figures(
        [],
        [
            made.step(ratio=1.26),
            made.step(ratio=1.1, layout="channels-last"),
            made.step("densenet", ratio=1.26),
            made.step("lenet5", peak=None),
        ],
    )
    assert found["step-resnet18-contiguous-default"].reached is True
    assert found["step-resnet18-channels-last-default"].target is None
    assert found["step-densenet-contiguous-default"].reached is False
    assert "peak memory 1.0 and 1.0 MiB" in found["step-resnet18-contiguous-default"].note
    assert "peak" not in found["step-lenet5-contiguous-default"].note


@pytest.fixture
def results(made: Any) -> dict[str, Any]:
    cases = [made.case(), made.case(allocator="tuned"), made.case(mode="eval", allocator="tuned")]
    cases[0]["compiled_ratio"] = 1.5
    return results_file.document(
        made.MACHINE, {"preset": "quick"}, cases, [made.step()], date="2026-01-02", complete=True
    )


def test_files_are_written_atomically_and_read_back(results: dict, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("before")
    results_file.write(path, results)
    assert results_file.read(path) == results
    assert [child.name for child in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(ValueError, match="JSON"):
        results_file.write(path, results | {"bad": float("nan")})
    assert results_file.read(path) == results
    assert [child.name for child in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(OptionError, match="results"):
        results_file.read(path)


def test_terminal_ends_in_advice_and_tells_no_targets(results: dict) -> None:
    out = Console(record=True, width=200, markup=False)
    terminal.print_results(out, results, results_file.figures(results))
    said = out.export_text()
    assert "bn resnet18… 32×64×56×56" in said
    assert "forward and backward, default allocator: 2.00 times as fast as torch.nn" in said
    assert "training step of resnet18, 64×1×96×96" in said
    assert "1.50 compile" in said
    assert "normkit.keep_freed_memory()" in said
    assert "target" not in said and "reached" not in said
    assert said.index("What to do:") > said.index("training step of")


def test_advice_is_by_what_was_measured() -> None:
    cases = [made.case(), made.case(norm="gn", ratio=0.8, ratio_interval=[0.7, 0.9])]
    cases.append(made.case(allocator="tuned", ms={"torch": 3.0, "ours": 1.0, "copy": 0.5}))
    results = {"machine": made.MACHINE, "cases": cases, "steps": [made.step()]}
    gain, memory, slower = advice(results)
    assert "nk.accelerate(model)" in gain
    assert "BatchNorm 2.0" in gain and "GroupNorm" not in gain
    assert "Whole training steps: resnet18 1.30." in gain
    assert "nk.keep_freed_memory()" in memory and "2.0 times as fast" in memory
    assert slower.startswith("1 of 3 measurements are slower than torch.nn, the slowest GroupNorm")

    missing = {**made.MACHINE, "kernels": "portable: the fused kernels are not built (torch 2.13)"}
    (first, *_) = advice({**results, "machine": missing})
    assert first == "The fused kernels were not used: the fused kernels are not built (torch 2.13)."
    busy = [made.case(ratio_interval=[1.0, 3.0])]
    assert "measure again when it is idle" in advice({**results, "cases": busy})[-1]
    assert advice({"machine": made.MACHINE, "cases": [], "steps": []}) == []


def test_text_between_markers_is_replaced(results: dict) -> None:
    page = f"before\n{markdown.BEGIN}\nold\n{markdown.END}\nafter\n"
    new = markdown.replace_between_markers(page, markdown.tables(results))
    assert "old" not in new
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert "**not reached**" in new
    assert "a processor (AVX2)" in new
    for line in new.splitlines():
        assert line.count("|") in (0, 6, 10), line
    with pytest.raises(OptionError, match="markers"):
        markdown.replace_between_markers("no markers", "new")


def test_docs_page_has_markers() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    markdown.replace_between_markers(page.read_text(encoding="utf-8"), "")


def test_charts_show_every_case(results: dict) -> None:
    speed = json.loads(speed_chart(results["cases"]).to_json())
    dots = [
        trace for trace in speed["data"] if trace["mode"] == "markers" and not trace.get("name")
    ]
    assert len(dots) == 2
    steps = steps_chart(results["steps"])
    slower = sum(bar.x[0] for bar in steps.data)
    assert slower == pytest.approx(100)
    assert sum(bar.x[1] for bar in steps.data) == pytest.approx(100 / 1.3)
