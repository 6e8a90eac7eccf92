"""Order of the parts of a run, with a verdict each; results are saved after each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.cases import CASES, Case
from benchmarks.gpu_parts.correctness import check_all
from benchmarks.gpu_parts.lab import check_lab
from benchmarks.gpu_parts.networks import NETWORKS, time_steps
from benchmarks.gpu_parts.page import limits, lines, page
from benchmarks.gpu_parts.timing import clock, time_case
from normkit.bench.results_file import write
from normkit.kernels import triton
from normkit.kernels.triton.gpu import TritonGPU

__all__ = ["Run"]

ROOT = Path(__file__).parents[2]
# Seconds that a part is allowed, and those that one item of it needs at least.
CORRECTNESS, TESTS, LAB = 150.0, 120.0, 15.0
LAYER, COMPILED_LAYER, STEP, COMPILED_STEP = 2.0, 12.0, 10.0, 100.0
AGREE = 0.02
"""Relative difference of the two sides' first losses, under autocast, above which one is wrong."""


class Run:
    """One run of all parts.

    Args:
        device: of the layers.
        folder: for results.json and results.md.
        seconds: budget.
        toy: run everything at sizes that an interpreter can do.
        machine: what the figures depend on.
    """

    def __init__(
        self, device: torch.device, folder: Path, seconds: float, toy: bool, machine: dict[str, Any]
    ) -> None:
        self.device, self.folder, self.toy = device, folder, toy
        self.budget = Budget(seconds)
        self.started = time.monotonic()
        self.measure = clock(device)
        self.expects_triton = device.type == "cuda" or triton.takes_cpu
        self.results: dict[str, Any] = {
            "machine": machine, "toy": toy, "complete": False, "parts": {}, "correctness": {},
            "layers": [], "compiled": [], "steps": [], "skipped": self.budget.skipped,
        }  # fmt: skip

    def all(self) -> int:
        """Run the parts in order and return the exit status."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.toy:
            torch.set_num_threads(1)  # sizes are too small to share
        print(f"{self.results['machine']['card']}, {self.budget.remaining():.0f} s", flush=True)
        with self.budget.watchdog():
            if self._part("correctness", self._correctness):
                self._part("layers", self._layers)
                self._part("steps", self._steps)
                self._part("tests", self._tests)
                self._part("lab", self._lab)
                self._part("compiled layers", self._compiled_layers)
                self._part("compiled steps", self._compiled_steps)
                self.results["complete"] = True
            self._save()
        return self._finish()

    def _part(self, name: str, run: Callable[[], str]) -> bool:
        """Run a part, which returns its detail and raises AssertionError where it fails."""
        begin = time.monotonic()
        try:
            part = {"verdict": "pass", "detail": run()}
        except AssertionError as error:
            part = {"verdict": "FAIL", "detail": str(error)}
        except Exception as error:  # of one part: the others still say something
            traceback.print_exc()
            part = {"verdict": "FAIL", "detail": f"{type(error).__name__}: {error}"[:500]}
        seconds = time.monotonic() - begin
        self.results["parts"][name] = {**part, "seconds": round(seconds, 1)}
        self._save()
        print(f"{part['verdict']:6}{name}, {seconds:.0f} s: {part['detail']}", flush=True)
        return part["verdict"] == "pass"

    def _save(self) -> None:
        write(self.folder / "results.json", self.results)
        (self.folder / "results.md").write_text(page(self.results), encoding="utf-8")

    def _finish(self) -> int:
        for line in self.budget.skipped:
            print(f"skipped {line}")
        speeds = limits(self.results["layers"])
        for line in lines(speeds):
            print(line if not self.toy else f"(toy sizes) {line}")
        print(f"{time.monotonic() - self.started:.0f} s; {self.folder / 'results.md'}", flush=True)
        if any(part["verdict"] == "FAIL" for part in self.results["parts"].values()):
            return 1
        # Of an interpreter no speed is asked.
        return 2 if not self.toy and any(limit.word == "FAIL" for limit in speeds) else 0

    def _fits(self, label: str, seconds: float) -> bool:
        return self.budget.fits(label, 0.0 if self.toy else seconds)

    def _correctness(self) -> str:
        with mock.patch.object(triton, "takes_cpu", True):
            # Also on a GPU: then inputs too small to be worth a launch are computed by them too.
            result = check_all(self.device, self.budget, CORRECTNESS, few=self.toy)
        self.results["correctness"] = result
        for failure in result["failures"]:
            print(f"WRONG {failure}", flush=True)
        ways = ", ".join(f"{n} by {way}" for way, n in sorted(result["ways"].items()))
        text = f"{result['checked']} of {result['problems']} problems against float64: {ways}"
        assert not result["failures"], f"{len(result['failures'])} wrong; {text}"
        if self.expects_triton:
            assert TritonGPU.name in result["ways"], f"none by {TritonGPU.name}; {text}"
        return text

    def _cases(self) -> list[Case]:
        if not self.toy:
            return CASES
        # Sizes shrink to a few; one of each kind, type and rank.
        return list({str(case.toy()): case.toy() for case in CASES}.values())

    def _layers(self) -> str:
        return self._time("layers", self._cases(), LAYER, seconds=0.3, compiler=None)

    def _compiled_layers(self) -> str:
        cases = self._cases()
        cases = cases[:1] if self.toy else sorted(cases, key=lambda case: not case.first)
        compiler = "aot_eager" if self.toy else "inductor"
        return self._time("compiled", cases, COMPILED_LAYER, seconds=0.3, compiler=compiler)

    def _time(
        self, name: str, cases: list[Case], needed: float, *, seconds: float, compiler: str | None
    ) -> str:
        records, errors = self.results[name], []
        for case in cases:
            for layout in case.layouts:
                label = f"{name}: {case} {layout}"
                if not self._fits(label, needed):
                    continue
                try:
                    records += time_case(
                        case, layout, self.device, self.measure,
                        seconds=0.0 if self.toy else seconds, compiler=compiler,
                        min_rounds=1 if self.toy else 10,
                    )  # fmt: skip
                except torch.cuda.OutOfMemoryError:
                    self.budget.skipped.append(f"{label}: the card's memory is too small")
                except Exception as error:  # of one case: the others still say something
                    traceback.print_exc()
                    errors.append(f"{label}: {type(error).__name__}: {error}"[:300])
        assert not errors, "; ".join(errors)
        return f"{len(records)} measurements"

    def _steps(self) -> str:
        return self._time_steps(STEP, None)

    def _compiled_steps(self) -> str:
        return self._time_steps(COMPILED_STEP, "aot_eager" if self.toy else "inductor")

    def _time_steps(self, needed: float, compiler: str | None) -> str:
        words = []
        for network in NETWORKS:
            for layout in ("channels-last", "contiguous")[: 1 if self.toy else 2]:
                label = f"step{' compiled' if compiler else ''}: {network.name} {layout}"
                if not self._fits(label, needed):
                    continue
                try:
                    record = time_steps(
                        network, layout, self.device, self.measure,
                        seconds=0.0 if self.toy else 4.0, toy=self.toy, compiler=compiler,
                        min_rounds=1 if self.toy else 5,
                    )  # fmt: skip
                except torch.cuda.OutOfMemoryError:
                    self.budget.skipped.append(f"{label}: the card's memory is too small")
                    continue
                self.results["steps"].append(record)
                theirs, ours = record["losses"]["torch"], record["losses"]["ours"]
                assert abs(ours - theirs) <= AGREE * abs(theirs), (
                    f"{label}: the losses of the first step are {theirs} and {ours}"
                )
                words.append(f"{network.name} {layout} {record['ratio'][0]:.2f}")
        return "; ".join(words) or "none"

    def _tests(self) -> str:
        """Run the tests of the layers on a GPU, and of the Triton kernels where there are any."""
        paths = ["tests/nn/test_cuda.py"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
        done = self._process("tests", command, TESTS)
        if done is None:
            return "skipped"
        summary = (done.stdout.strip().splitlines() or ["no output"])[-1]
        assert done.returncode == 0, f"{summary}\n{done.stdout[-1500:]}"
        return summary.strip("= ")

    def _lab(self) -> str:
        if not self._fits("lab", LAB):
            return "skipped"
        with mock.patch.object(triton, "takes_cpu", False):  # an interpreter would take minutes
            return check_lab(self.device)

    def _process(
        self, part: str, command: list[str], seconds: float
    ) -> subprocess.CompletedProcess[str] | None:
        if not self._fits(part, 20.0):
            return None
        # Not in the interpreter: these are processes of their own, with their own tests of it.
        hidden = ("TRITON_INTERPRET", "NORMKIT_KERNELS")
        surroundings = {k: v for k, v in os.environ.items() if k not in hidden}
        limit = seconds if self.toy else min(seconds, self.budget.remaining())
        try:
            return subprocess.run(
                command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=limit,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            self.budget.skipped.append(f"{part}: not done within {limit:.0f} s")
            return None
