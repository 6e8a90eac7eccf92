"""Networks as ONNX: nodes, and time in onnxruntime, with this package's layers and ``torch.nn``'s.

    pip install onnx onnxscript onnxruntime    # no extra of this package: nothing else needs them
    python -m benchmarks.onnx_times            # three minutes on two idle cores

Each network is exported in evaluation mode by ``torch.onnx.export``, as it is and after
``nk.accelerate``. Nodes are counted by kind, after onnxruntime's optimizer is switched off and as
the exporter wrote them. The two files run in turn in one process, on one thread; the ratio is taken
round by round, and the median is printed with its 95 % interval. Outputs must agree to 1e-4.
"""

from __future__ import annotations

import argparse
import collections
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from benchmarks.networks import NETWORKS
from normkit.bench.stopwatch import time_interleaved
from normkit.lab import models


def _of_lab(name: str, norm: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = models.build(name, norm=norm, in_channels=3, size=32)
        nk.convert(model, "torch")
        return model

    return make


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (NETWORKS["resnet18"], (1, 3, 224, 224)),
    "MobileNetV2": (NETWORKS["mobilenet_v2"], (1, 3, 224, 224)),
    "DenseNet-121": (NETWORKS["densenet121"], (1, 3, 224, 224)),
    "ViT, LayerNorm": (_of_lab("vit", "layer"), (8, 3, 32, 32)),
    "ResNet-18, GroupNorm": (_of_lab("resnet18", "group"), (1, 3, 32, 32)),
    "ResNet-18, InstanceNorm": (_of_lab("resnet18", "instance"), (1, 3, 32, 32)),
}
"""A network of ``torch.nn``'s layers, and the shape of its input."""


def _session(model: nn.Module, x: Tensor, folder: Path) -> tuple[Any, collections.Counter[str]]:
    """Return the network in onnxruntime, and how many nodes of each kind its file has."""
    import onnx
    import onnxruntime

    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def measure(name: str, seconds: float, folder: Path) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, x = make(), torch.randn(shape)
    model(torch.randn(2, *shape[1:]))  # running statistics that differ from those of a new layer
    ours = copy.deepcopy(model.eval())
    handle = nk.accelerate(ours)
    sessions, nodes = {}, {}
    for side, each in (("torch.nn", model), ("normkit", ours)):
        sessions[side], nodes[side] = _session(each.eval(), x, folder)
    inputs = {sessions["normkit"].get_inputs()[0].name: x.numpy()}
    a, b = (torch.from_numpy(session.run(None, inputs)[0]) for session in sessions.values())
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    times = time_interleaved(
        {side: lambda s=session: s.run(None, inputs) for side, session in sessions.items()},
        seconds=seconds,
    )
    ratio, low, high = times.ratio("normkit", "torch.nn")
    difference = nodes["normkit"] - nodes["torch.nn"], nodes["torch.nn"] - nodes["normkit"]
    alike = "the same nodes" if difference == ({}, {}) else f"nodes differ by {difference}"
    print(
        f"{name:24} {len(handle.changed):3} layers changed; {nodes['normkit'].total()} nodes, "
        f"{alike}; {1e3 * times.of('torch.nn'):.1f} ms, normkit over torch.nn "
        f"{ratio:.3f} [{low:.3f}, {high:.3f}]",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=15.0, help="for each network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            measure(name, options.seconds, Path(folder))


if __name__ == "__main__":
    main()
