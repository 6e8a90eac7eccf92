"""Check and time the layers on a GPU, in at most eight minutes.

    python -m benchmarks.gpu                     # writes build/gpu/results.json and results.md
    python -m benchmarks.gpu --out results/      # elsewhere
    python -m benchmarks.gpu --page results.json # prints the page of an earlier run
    python -m benchmarks.gpu --device cpu --interpret --toy

In this order, each part with a verdict: every kind of layer against float64, before any speed;
30 layers of ResNet-50, U-Nets and diffusion decoders, and two of rows, against ``torch.nn`` (cuDNN
and PyTorch's own kernels) and copying, in both memory formats; training steps of ResNet-50 and a
U-Net; the tests for GPUs; a run of the lab; and layers and steps compiled by ``torch.compile``.
What no longer fits the budget is skipped and listed. Results are saved after each part.

The last form runs the whole script at toy sizes, by Triton's interpreter, without a GPU: its times
mean nothing.

Exit status: 0 if all is well; 1 if a result is wrong or a part failed; 2 if a limit of speed is
missed; 4 if a part hung until the time was up.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 460.0  # and 15 more until the watchdog ends what hangs


def main() -> int:
    """Parse the arguments, run all parts and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/gpu", help="folder of the results"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="budget of the whole run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--interpret", action="store_true", help="by Triton's interpreter")
    parser.add_argument("--toy", action="store_true", help="at toy sizes")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page of a run")
    options = parser.parse_args()
    if options.page is not None:
        from benchmarks.gpu_parts.page import page

        print(page(json.loads(options.page.read_text(encoding="utf-8"))), end="")
        return 0
    if options.interpret and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton decides when it is imported; the C++ kernels would be preferred on a CPU.
        surroundings = {**os.environ, "TRITON_INTERPRET": "1", "NORMKIT_KERNELS": "portable"}
        command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]]
        os.execve(sys.executable, command, surroundings)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"PyTorch {torch.__version__} sees no GPU here; to try the script without one: "
            "--device cpu --interpret --toy"
        )
    from benchmarks.gpu_parts.run import Run
    from normkit.kernels import triton

    if options.interpret:
        triton.takes_cpu = True
        _patch_once_a_launch()
    return Run(
        torch.device(options.device), options.out, options.seconds, options.toy, _machine()
    ).all()


def _patch_once_a_launch() -> None:
    """Have the interpreter prepare Triton's language once for a launch.

    By itself it does so in each call within a kernel too, which takes most of its time.
    """
    import triton
    from triton.runtime import interpreter

    Function = interpreter.InterpretedFunction
    launch = Function.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = interpreter._patch_lang(triton.language.sum.fn)
        try:
            return launch(self, *args, **kwargs)
        finally:
            scope.restore()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    Function.run, Function.__call__ = run, call


def _machine() -> dict[str, Any]:
    """Return what the figures depend on; not the host's name."""
    import torch

    import normkit

    about: dict[str, Any] = {"card": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about = {
            "card": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "CUDA": torch.version.cuda or f"ROCm {torch.version.hip}",
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    try:
        import triton
    except ImportError:
        version = "not installed"
    else:
        version = triton.__version__
    return about | {
        "torch": torch.__version__,
        "triton": version,
        "normkit": normkit.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _driver() -> str:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.splitlines()[0].strip()


if __name__ == "__main__":
    sys.exit(main())
