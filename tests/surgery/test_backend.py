"""torch.compile(model, backend="normkit"): compiled networks compute the same, and fused."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from benchmarks.networks import BasicBlock, Bottleneck, DenseNet, MobileNetV2, ResNet
from normkit.compat import tells_exporting
from normkit.kernels import cpu
from normkit.surgery import backend as module
from tests.few import few
from tests.tolerances import assert_accurate

# Dynamo looks at it, and tests differentiate with respect to such tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
needs_kernels = pytest.mark.skipif(cpu.fused is None, reason=cpu.reason or "built")


@pytest.fixture(autouse=True)
def _no_earlier_graphs() -> None:
    torch._dynamo.reset()


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])]


# Torchvision's, of few and narrow blocks, and what is fused in each.
RELU, ADD, ALONE = ("batch_norm", "relu"), ("batch_norm", "iadd", "relu"), ("batch_norm",)
CUT = ("batch_norm", "hardtanh")  # ReLU6
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, ...]]]] = {
    "resnet": (
        lambda: ResNet(BasicBlock, (1, 1), 1 / 16, 5),
        # In the second block the shortcut's normalization takes the addition.
        [RELU, RELU, ADD, RELU, ALONE, ADD],
    ),
    "bottlenecks": (
        lambda: ResNet(Bottleneck, (1, 1), 1 / 16, 5),
        [RELU, *[RELU, RELU, ALONE, ADD] * 2],
    ),
    "densenet": (lambda: DenseNet((2, 1), 1 / 16, 5), [RELU] * 9),
    "mobilenet": (
        lambda: MobileNetV2(1 / 4, 5, stages=2),
        [CUT, CUT, ALONE, CUT, CUT, ALONE, CUT, CUT, ("batch_norm", "add"), CUT],
    ),
}


@needs_kernels
@pytest.mark.parametrize("name", few(NETWORKS, lambda name: name in ("resnet", "mobilenet")))
def test_a_network_computes_the_same(name: str) -> None:
    make, calls = NETWORKS[name]
    # float64, so that what differs is a mistake and not rounding that the network amplifies.
    model = make().double()
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    twin, backend = copy.deepcopy(model), nk.Backend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    for training in (True, True, False):
        model.train(training)
        twin.train(training)
        torch.testing.assert_close(step(compiled, x), step(twin, x))
        torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    assert [[row.calls for row in graph.rows] for graph in backend.graphs] == [calls, calls]
    assert not any(row.fused.fallbacks for graph in backend.graphs for row in graph.fused)


class Block(nn.Module):
    """Normalization, addition, activation, and one that follows the normalization at once."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.act = norm, act

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        return self.act(self.norm(self.act(self.norm(x))) + r)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(6),
    "group": lambda: nn.GroupNorm(3, 6),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "layer": lambda: nn.LayerNorm((4, 5)),
    "rms": lambda: nn.RMSNorm(5, eps=1e-5),
}
ACTS = (nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.SiLU(), nn.GELU())


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("index", range(len(NORMS)), ids=list(NORMS))
def test_every_kind_is_as_accurate_as_pytorch(index: int, training: bool) -> None:
    make, act = list(NORMS.values())[index], ACTS[(index + training) % len(ACTS)]
    model = Block(make(), act).train(training)
    for p in model.parameters():
        nn.init.normal_(p, 1.0, 0.3)
    twin, oracle = copy.deepcopy(model), copy.deepcopy(model).double()
    backend = nk.Backend()
    x, r = torch.randn(2, 8, 6, 4, 5).unbind()
    results = []
    for each in (torch.compile(model, backend=backend, fullgraph=True), twin, oracle):
        dtype = next(each.parameters()).dtype
        inputs = [t.to(dtype).requires_grad_() for t in (x, r)]
        y = each(*inputs)
        grads = torch.autograd.grad(y.square().sum(), [*inputs, *each.parameters()])
        results.append([y.detach(), *grads, *(b for b in each.buffers() if b.is_floating_point())])
    for got, theirs, truth in zip(*results, strict=True):
        assert_accurate(got, truth, theirs)
    assert [len(row.calls) for row in backend.graphs[0].rows] == [2, 3]


@needs_kernels
def test_batches_of_any_size_are_one_graph() -> None:
    model = Block(nn.BatchNorm2d(6), nn.ReLU()).double()
    twin, backend = copy.deepcopy(model), nk.Backend()
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for n in (4, 7, 5):
        x, r = torch.randn(2, n, 6, 3, 3, dtype=torch.float64).unbind()
        torch.testing.assert_close(compiled(x, r), twin(x, r))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    assert [len(graph.fused) for graph in backend.graphs] == [2]


@needs_kernels
def test_second_derivatives() -> None:
    model = Block(nn.BatchNorm2d(6), nn.SiLU()).double()
    twin = copy.deepcopy(model)
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    found = []
    for each in (torch.compile(model, backend=nk.Backend()), twin):
        inputs = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        first = torch.autograd.grad(each(*inputs).square().sum(), inputs, create_graph=True)
        loss = sum(g.pow(3).sum() for g in first)
        found.append(torch.autograd.grad(loss, [*inputs, *each.parameters()]))
    torch.testing.assert_close(*found)


class Pieces(nn.Module):
    """A graph that breaks between a normalization and its activation, and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(6), nn.BatchNorm2d(6, momentum=None)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        torch._dynamo.graph_break()
        y = self.b(x)  # its share of the average is computed, so it breaks the graph itself
        return self.act(y) + x


@needs_kernels
def test_pieces_of_a_model_are_fused_each() -> None:
    model = Pieces().double()
    twin, backend = copy.deepcopy(model), nk.Backend()
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(step(compiled, x), step(twin, x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    assert len(backend.graphs) > 1
    assert {row.calls for graph in backend.graphs for row in graph.fused} == {RELU}


@needs_kernels
def test_half_types_and_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    twin, backend = copy.deepcopy(model), nk.Backend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = compiled(x), twin(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs)
    assert backend.graphs[0].rows[0].calls == RELU and not backend.graphs[0].rows[0].fused.fallbacks


def test_blocks_that_are_checkpointed_within_are_left() -> None:
    model = Block(nn.GroupNorm(2, 6), nn.ReLU()).double()
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    backend, found = nk.Backend(), []
    compiled = torch.compile(lambda *t: checkpoint(model, *t, use_reentrant=False), backend=backend)
    for run in (compiled, model):
        inputs = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        y = run(*inputs)
        found.append([y, *torch.autograd.grad(y.square().sum(), [*inputs, *model.parameters()])])
    torch.testing.assert_close(*found)
    assert backend.graphs[0].rows and not backend.graphs[0].fused
    assert "group_norm not fused: within a checkpointed" in str(backend)


@needs_kernels
def test_statistics_move_once_where_a_compiled_block_is_checkpointed() -> None:
    model = Block(nn.BatchNorm2d(6), nn.ReLU()).double()
    twin, backend, found = copy.deepcopy(model), nk.Backend(), []
    compiled = torch.compile(model, backend=backend)
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    for each, run in (
        (model, lambda *t: checkpoint(compiled, *t, use_reentrant=False)),
        (twin, twin),
    ):
        for _ in range(2):
            inputs = [x.clone().requires_grad_(), r.clone().requires_grad_()]
            y = run(*inputs)
            grads = torch.autograd.grad(y.square().sum(), [*inputs, *each.parameters()])
        found.append([y, *grads, each.norm.running_mean, each.norm.running_var])
    torch.testing.assert_close(*found)
    assert len(backend.graphs[0].fused) == 2


def test_layers_of_this_package_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).double()
    twin, backend = copy.deepcopy(model), nk.Backend()
    nk.accelerate(model)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), twin(x))
    rows = backend.graphs[0].rows
    if not tells_exporting:  # the graph holds the layer's formula
        assert "no normalization in this graph" in str(backend)
        return
    assert [row.name for row in rows] == ["1"]
    assert rows[0].fused or "compile the model with torch.nn's layer" in rows[0].text


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.message) for r in caplog.records if r.name == module.__name__]


def test_a_graph_without_anything_to_fuse_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=module.__name__)
    backend = nk.Backend()
    x = torch.randn(4, 6, 3, 3)
    torch.compile(nn.Conv2d(6, 6, 1), backend=backend)(x)
    assert told(caplog) == [("WARNING", "graph 1: 0 fused: no normalization in this graph")]
    assert repr(backend) == told(caplog)[0][1]
    if cpu.fused is not None:  # afterwards such a piece is one among others
        torch.compile(nn.GroupNorm(2, 6), backend=backend)(x)
        torch._dynamo.reset()
        torch.compile(nn.Conv2d(6, 6, 1), backend=backend)(x)
        assert [level for level, _ in told(caplog)] == ["WARNING", "INFO", "INFO"]


def test_without_kernels_nothing_is_changed_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "fused", None)
    monkeypatch.setattr(cpu, "reason", "none are built")
    model, backend = Block(nn.BatchNorm2d(6), nn.ReLU()).double(), nk.Backend()
    twin = copy.deepcopy(model)
    x, r = torch.randn(2, 4, 6, 3, 3, dtype=torch.float64).unbind()
    torch.testing.assert_close(torch.compile(model, backend=backend)(x, r), twin(x, r))
    assert [row.text for row in backend.graphs[0].rows] == [
        "batch_norm not fused: none are built"
    ] * 2
    assert [level for level, _ in told(caplog)] == ["WARNING"]


def test_options_are_refused() -> None:
    compiled = torch.compile(nn.ReLU(), backend=nk.Backend(), mode="reduce-overhead")
    with pytest.raises(Exception, match="Expected no mode and no options"):
        compiled(torch.ones(2))


def test_registered_by_name() -> None:
    module.register()
    module.register()
    before = len(module.default.graphs)
    torch.compile(nn.GroupNorm(2, 6), backend="normkit")(torch.randn(4, 6, 3))
    assert len(module.default.graphs) == before + 1


@pytest.mark.slow  # Python starts anew and compiles
def test_found_by_its_entry_point(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    _, _, after = text.partition("[project.entry-points.torch_dynamo_backends]\n")
    line = next(line for line in after.splitlines() if line.startswith("normkit"))
    info = tmp_path / "anything-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anything\nVersion: 0\n")
    entry = line.replace('"', "")
    (info / "entry_points.txt").write_text(f"[torch_dynamo_backends]\n{entry}\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch; "
        "f = torch.compile(torch.nn.GroupNorm(2, 4), backend='normkit'); "
        "print(f(torch.ones(2, 4, 3)).shape, 'normkit' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.stdout == "torch.Size([2, 4, 3]) True\n", done.stderr
