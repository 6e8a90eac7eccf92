"""adapt from several threads, compiled, exported, transformed, far from zero, and over streams."""

from __future__ import annotations

import copy
import io
import math
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.adaptation.moments import Stream
from normkit.errors import StatisticsError
from tests.adaptation.snapshot import state
from tests.tolerances import assert_accurate

IMAGES = (6, 3, 4, 5)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nk.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()  # fmt: skip
    for layer in (model[1], model[3]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return model


def from_threads(call: Callable[[], object], times: int) -> None:
    """Call from three threads, which take turns as often as Python lets them."""
    errors: list[BaseException] = []

    def go() -> None:
        try:
            for _ in range(times):
                call()
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=go) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []


def test_several_threads_may_call_an_adapted_model() -> None:
    model, x = net(), torch.randn(IMAGES)
    before = state(model)
    with nk.adapt(model):
        expected = model(x)

    def call() -> None:
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)

    with nk.adapt(model):
        from_threads(call, 25)
    assert state(model) == before


def test_a_call_writes_nothing_of_the_layer() -> None:
    layer = nn.BatchNorm2d(3).eval()
    seen: list[object] = []

    model = nn.Sequential(layer)
    with nk.adapt(model):
        layer.register_forward_pre_hook(lambda *_: seen.append(state(layer)[1:]))
        layer._check_input_dim = lambda x: seen.append(state(layer)[1:])  # type: ignore[assignment]
        model(torch.randn(IMAGES))
        seen.append(state(layer)[1:])
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_a_stream_counts_each_batch_of_several_threads_once() -> None:
    stream, batch = Stream(math.inf), (torch.zeros(2).double(), torch.ones(2).double())
    from_threads(lambda: stream.add(3, batch), 100)
    assert stream.count is not None
    assert stream.count == 900


def test_several_threads_may_call_a_model_that_trains() -> None:
    model, x = net(), torch.randn(IMAGES)
    before = state(model)
    with nk.tent(model) as handle:
        from_threads(lambda: model(x), 8)
        assert handle.steps == 24
        assert [p.requires_grad for p in model.parameters()] == [True] * 8
    assert state(model) == before


def of_stream(parts: list[Tensor], prior: float, memory: float, layer: Any) -> Tensor:
    """The last part normalized by the formula over the stream; gradients through it alone."""
    mean, var, total = parts[0].new_zeros(3), parts[0].new_zeros(3), 0.0
    for i, x in enumerate(parts):
        x = x if i == len(parts) - 1 else x.detach()
        total = max(min(total + len(x), memory), len(x))
        share, m = len(x) / total, x.mean((0, 2, 3))
        v = x.var((0, 2, 3), correction=0)
        var = (1 - share) * var + share * v + share * (1 - share) * (m - mean).square()
        mean = (1 - share) * mean + share * m
    mu = (prior * layer.running_mean + total * mean) / (prior + total)
    sigma2 = (prior * layer.running_var + total * var) / (prior + total)
    shape = (1, -1, 1, 1)
    return (parts[-1] - mu.view(shape)) / (sigma2.view(shape) + layer.eps).sqrt()


@pytest.mark.parametrize("memory", [math.inf, 15])
@pytest.mark.parametrize("prior", [0, 4])
def test_gradients_over_a_stream(prior: float, memory: float) -> None:
    layer = nn.BatchNorm2d(3, affine=False).double().eval()
    layer.running_mean.normal_()  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(IMAGES, generator=generator).double() + 2 * i for i in range(10)]
    weights = torch.randn(IMAGES, generator=generator).double()
    with nk.adapt(layer, prior, memory=memory), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stream in order
        for i, part in enumerate(parts):
            x, z = part.clone().requires_grad_(), part.clone().requires_grad_()
            y = layer(x)
            expected = of_stream([*parts[:i], z], prior, memory, layer)
            torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)
            (y * weights).sum().backward()
            (expected * weights).sum().backward()
            torch.testing.assert_close(x.grad, z.grad, atol=1e-10, rtol=1e-10)


def test_gradients_over_a_stream_with_checkpointing() -> None:
    layer, parts = net()[1].double(), [torch.randn(6, 4, 3, 3).double() + i for i in range(3)]
    grads = []
    for run in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)):
        with nk.adapt(layer, 2, memory=100):
            for part in parts:
                x = part.clone().requires_grad_()
                run(x).square().sum().backward()  # type: ignore[operator]
            grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_tent_over_a_stream_takes_the_gradients_of_the_formula() -> None:
    """γ of an earlier layer is trained through the moments of a later one."""
    parts = [torch.randn(IMAGES).double() + 3 * i for i in range(3)]
    model = nn.Sequential(
        nn.GroupNorm(1, 3), nn.BatchNorm2d(3, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double().eval()  # fmt: skip
    hand: Any = copy.deepcopy(model)
    optimizer = torch.optim.SGD(hand[0].parameters(), lr=0.5)
    with nk.tent(model, memory=math.inf, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)):
        inputs: list[Tensor] = []
        for part in parts:
            model(part)
            inputs.append(hand[0](part))
            logits = of_stream(inputs, 0, math.inf, hand[1]).mean((2, 3))
            optimizer.zero_grad()
            (-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()).backward()
            optimizer.step()
            torch.testing.assert_close(model[0].weight, hand[0].weight, atol=1e-9, rtol=1e-9)
    assert (hand[0].weight - 1).abs().max() > 1e-4


def test_each_bank_has_a_stream_and_an_order_of_its_own() -> None:
    layer, x = nk.DomainBatchNorm2d(3, 2).eval(), torch.randn(64, 3, 4, 5)
    with nk.adapt(layer, 0, memory=math.inf) as handle, torch.no_grad():
        for part in x.split(8):
            for domain in (0, 1):
                with nk.use_domain(layer, domain):
                    y = layer(part + 100 * domain)
        assert y.mean().abs() < 0.2
        assert handle.order is not None
        assert not handle.order.ordered  # as each domain is shuffled


def transforms() -> dict[str, Callable[[nn.Module, Tensor], object]]:
    return {
        "export": lambda m, x: torch.export.export(m, (x,)),
        "strict export": lambda m, x: torch.export.export(m, (x,), strict=True),
        "trace": lambda m, x: torch.jit.trace(m, (x,), check_trace=False),
        "vmap": lambda m, x: torch.func.vmap(m)(x.view(2, 3, *x.shape[1:])),
        "grad": lambda m, x: torch.func.grad(lambda z: m(z).sum())(x),
        "jvp": lambda m, x: torch.func.jvp(m, (x,), (x,)),
    }


@pytest.mark.parametrize("name", transforms())
def test_a_stream_is_of_plain_batches(name: str) -> None:
    model, x = net(), torch.randn(IMAGES)
    with nk.adapt(model, 4, memory=100) as handle:
        first = model(x)
        with pytest.raises(Exception, match="memory=0") as caught:
            transforms()[name](model, x)
        assert isinstance(caught.value, StatisticsError) or "export" in name
        handle.reset()
        torch.testing.assert_close(model(x), first)
    with nk.adapt(model, 4), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools themselves
        alone = model(x)
        transforms()[name](model, x)
        for _ in range(8):  # order is looked at, with nothing of another world
            torch.testing.assert_close(model(x), alone)


def test_traced_and_exported_models_take_batches_of_other_sizes() -> None:
    model, x = net(), torch.randn(IMAGES)
    with torch.no_grad(), nk.adapt(model, 16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (x,), check_trace=False)
        sizes = ({0: torch.export.Dim("n", min=2, max=64)},)
        exported = torch.export.export(model, (x,), dynamic_shapes=sizes).module()
        for n in (6, 3):
            torch.testing.assert_close(traced(x[:n]), model(x[:n]))
            torch.testing.assert_close(exported(x[:n]), model(x[:n]))


@pytest.mark.parametrize("memory", [0, 20])
def test_equal_batches_compile_once_or_twice(memory: float) -> None:
    torch._dynamo.reset()
    compiled, runs = 0, 0

    def backend(graph: Any, inputs: object) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1

        def run(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph(*args)

        return run

    model, x = net(), torch.randn(IMAGES)
    fast: Any = torch.compile(model, backend=backend)
    with torch.no_grad():
        fast(x)
        for _ in range(3):  # and further blocks compile nothing anew
            with nk.adapt(fast, 5, memory=memory):
                for _ in range(10):
                    y = fast(x)
            with nk.adapt(model, 5, memory=memory):
                for _ in range(10):
                    z = model(x)
            torch.testing.assert_close(y, z)
            fast(x)
    assert compiled <= (3 if memory else 2)  # the model alone among them
    assert runs == 34
    torch._dynamo.reset()


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("recorded", [False, True])
def test_accuracy_far_from_zero(far: float, recorded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    stream = 0.1 * torch.randn(500, 4, 3, 5, generator=generator) + far
    layer, last = nn.BatchNorm2d(4, affine=False).eval(), stream[-20:]

    def truth(of: Tensor) -> Tensor:
        of, dims = of.double(), (0, 2, 3)
        mean, var = of.mean(dims, keepdim=True), of.var(dims, correction=0, keepdim=True)
        return (last - mean) / (var + layer.eps).sqrt()

    def call(x: Tensor) -> Tensor:
        return layer(x.clone().requires_grad_(recorded)).detach()

    with nk.adapt(layer, 0):
        assert_accurate(call(last), truth(last), None)
    with nk.adapt(layer, 0, memory=math.inf):
        for x in stream.split(20):
            y = call(x)
    assert_accurate(y, truth(stream), None)


def test_copies_made_meanwhile_load_without_this_package() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), torch.randn(6, 3)
    alone = model(x)
    for change in (nk.adapt, nk.tent):
        file = io.BytesIO()
        with change(model):
            torch.save(model, file)
            other = copy.deepcopy(model)
        assert b"normkit" not in file.getvalue()
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), alone)
        assert torch.equal(other(x), alone)
