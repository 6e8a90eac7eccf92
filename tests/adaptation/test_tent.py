"""tent: γ and β by entropy minimization, and nothing else changed."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import normkit as nk
from normkit.errors import OptionError, ShapeError, StatisticsError, TypeMismatchError
from tests.adaptation.snapshot import state


def classifier(norm: Callable[[], nn.Module] = lambda: nn.BatchNorm2d(4)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def x_of(seed: int = 0, n: int = 16) -> Tensor:
    return 3 * torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + 1


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def by_hand(model: nn.Sequential, batches: list[Tensor]) -> tuple[list[Tensor], nn.Sequential]:
    """The paper's loop: BN in training mode without statistics, SGD on γ, β."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    norm: Any = model[1]
    norm.requires_grad_(True)
    if isinstance(norm, nn.BatchNorm2d):
        norm.train()
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    outputs, optimizer = [], sgd(list(norm.parameters()))
    for x in batches:
        y = model(x)
        outputs.append(y.detach())
        entropy = -(y.softmax(1) * y.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        entropy.backward()
        optimizer.step()
    return outputs, model


NORMS: dict[str, Callable[[], nn.Module]] = {
    "nn.BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm2d": lambda: nk.BatchNorm2d(4),
    "nn.GroupNorm": lambda: nn.GroupNorm(2, 4),
    "GroupNorm": lambda: nk.GroupNorm(2, 4),
    "LayerNorm2d": lambda: nk.LayerNorm2d(4),
    "nn.InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "nn.LayerNorm": lambda: nn.LayerNorm([4, 4, 4]),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", NORMS)
def test_as_in_the_paper(name: str, context: Callable[[], Any]) -> None:
    model, batches = classifier(NORMS[name]), [x_of(seed) for seed in range(4)]
    model[1].weight.requires_grad_(False)
    model.train()
    before = state(model)
    expected, trained = by_hand(model, batches)
    with nk.tent(model, optimizer=sgd) as handle:
        with context():
            outputs = [model(x) for x in (batches if context is not torch.inference_mode
                                          else [b.clone() for b in batches])]  # fmt: skip
        for y, z in zip(outputs, expected, strict=True):
            torch.testing.assert_close(y, z, atol=1e-4, rtol=1e-4)
            assert not y.requires_grad
        torch.testing.assert_close(model[1].weight, trained[1].weight, atol=1e-4, rtol=1e-4)
        assert handle.steps == 4
        assert not model[1].weight.requires_grad
        assert all(p.grad is None for p in model.parameters())
        moved = [k for k, p in model.named_parameters() if not torch.equal(
            p, dict(classifier(NORMS[name]).named_parameters())[k])]  # fmt: skip
        assert moved == ["1.weight", "1.bias"]
    assert state(model) == before


@pytest.mark.parametrize("memory", [0, 100])
def test_reset_is_exact(memory: float) -> None:
    model = classifier()
    batches = [x_of(seed) for seed in range(3)]
    with nk.tent(model, memory=memory) as handle:  # Adam, which has a state of its own
        first = [model(x) for x in batches]
        handle.reset()
        assert (handle.steps, handle.entropy) == (0, None)
        again = [model(x) for x in batches]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], model.eval()(batches[0]))


def test_entropy_falls_and_gradients_of_others_stay() -> None:
    model, x = classifier().eval(), x_of()
    model(x).sum().backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with nk.tent(model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)) as handle:
        entropies = []
        for _ in range(10):
            model(x)
            assert handle.entropy is not None
            entropies.append(handle.entropy)
    assert all(a > b for a, b in itertools.pairwise(entropies))
    y = functional.log_softmax(copy.deepcopy(model).eval()(x), 1)
    assert 0 < entropies[0] < math.log(5) + 1e-6
    assert y.shape == (16, 5)
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)  # type: ignore[arg-type]


def test_positions_and_other_outputs() -> None:
    class Out(NamedTuple):
        logits: Tensor
        extra: list[Tensor]

    class Segments(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.norm, self.conv, self.kind = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), kind

        def forward(self, x: Tensor) -> Any:
            y = self.conv(self.norm(x))
            return {"tuple": Out(y, [y]), "dict": {"logits": y}, "pair": (y, y), "none": None}[
                self.kind
            ]

    for kind in ("tuple", "dict"):
        model = Segments(kind)
        with nk.tent(model) as handle:
            output = model(x_of())
            assert handle.steps == 1
            assert type(output) is (Out if kind == "tuple" else dict)
    model = Segments("pair")
    with nk.tent(model), pytest.raises(TypeMismatchError, match="logits=lambda output"):
        model(x_of())
    with nk.tent(model, logits=lambda output: output[1]) as handle:
        assert not model(x_of())[0].requires_grad
        assert handle.steps == 1


@pytest.mark.parametrize("factor", [math.inf, 1e38])
def test_a_step_that_is_not_finite_is_left_out(factor: float) -> None:
    model = classifier()
    with nk.tent(model) as handle:
        model(x_of())
        weights = model[1].weight.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(x_of() * factor)
        assert handle.steps == 1
        assert torch.equal(model[1].weight, weights)
        assert model(x_of()[:0]).shape == (0, 5)
        assert handle.steps == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    model = classifier().to(dtype)
    before = state(model)
    with nk.tent(model) as handle, torch.no_grad():
        for seed in range(30):
            y = model(x_of(seed).to(dtype))
        assert y.dtype is dtype
        assert handle.steps == 30
        # Adam's first steps are lr each, which half types would lose beside 1.
        assert (model[1].weight - 1).abs().max() > 0.01
        assert model[1].weight.isfinite().all()
    assert state(model) == before


def test_autocast() -> None:
    model = classifier()
    with nk.tent(model) as handle, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(x_of()).dtype is torch.bfloat16
        assert handle.steps == 1


def test_frozen_layers_are_skipped_and_listed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), *classifier()).eval()
    nk.freeze(model[0])
    before = state(model)
    with nk.tent(model) as handle:
        model(x_of())
        assert [row.name for row in handle.changed] == ["2"]
        assert [(row.name, row.why) for row in handle.skipped] == [("0", "frozen")]
        assert "1 updates" in repr(handle)
        assert "γ and β trained" in repr(handle)
    assert state(model) == before


def test_the_model_may_be_the_layer_and_may_be_shared_or_wrapped() -> None:
    layer = nn.BatchNorm1d(3)
    before = state(layer)
    with nk.tent(layer) as handle:
        layer(torch.randn(8, 3))
        assert handle.steps == 1
    assert state(layer) == before
    model = classifier()
    parallel = nn.DataParallel(model)
    with nk.tent(parallel) as handle:
        parallel(x_of())
        assert handle.steps == 1


def test_compiled() -> None:
    model = classifier().eval()
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        alone = compiled(x_of())
        with nk.tent(model, optimizer=sgd) as handle:
            expected = [model(x_of(seed)) for seed in range(3)]
        with nk.tent(compiled, optimizer=sgd) as handle:
            outputs = [compiled(x_of(seed)) for seed in range(3)]
            assert handle.steps == 3
        for y, z in zip(outputs, expected, strict=True):
            torch.testing.assert_close(y, z)
        assert torch.equal(compiled(x_of()), alone)


def test_copies_and_pickles_train_no_more() -> None:
    model = classifier()
    with nk.tent(model):
        model(x_of())
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            weights = other[1].weight.clone()
            other(x_of())
            assert type(other) is nn.Sequential
            assert type(other[1]) is nn.BatchNorm2d
            assert torch.equal(other[1].weight, weights)
            assert torch.equal(weights, model[1].weight)


def test_restored_after_an_error() -> None:
    model = classifier()
    before = state(model)
    with pytest.raises(RuntimeError), nk.tent(model):
        model(x_of())
        model(torch.randn(2, 7, 6, 6))
    assert state(model) == before


def test_a_sorted_stream_is_noticed() -> None:
    model = classifier()
    with nk.tent(model), pytest.warns(UserWarning, match="looks ordered"):
        for seed in range(8):
            model(x_of(seed) + seed)


BAD: list[tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = [
    (classifier, {"optimizer": torch.optim.Adam([torch.ones(1)])}, OptionError, "optimizer=lambda"),
    (classifier, {"optimizer": 3}, OptionError, "optimizer as a function"),
    (classifier, {"optimizer": len}, OptionError, r"returns a torch\.optim\.Optimizer"),
    (classifier, {"logits": "x"}, OptionError, "logits as a function"),
    (classifier, {"prior": -1}, OptionError, "prior"),
    (classifier, {"memory": -1}, OptionError, "memory"),
    (lambda: nn.Linear(2, 2), {}, StatisticsError, "γ or β"),
    (lambda: nn.Sequential(nk.FrozenBatchNorm2d(3)), {}, StatisticsError, "constant"),
    (lambda: nn.BatchNorm2d(3, affine=False), {}, StatisticsError, "γ or β"),
]


@pytest.mark.parametrize(("make", "options", "error", "text"), BAD)
def test_bad_arguments(
    make: Callable[[], nn.Module], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = make()
    before = state(model)
    with pytest.raises(error, match=text):
        nk.tent(model, **options)
    assert state(model) == before


def test_outputs_that_are_no_logits() -> None:
    for end, error, text in (
        (nn.Softmax(1), OptionError, "output.log"),
        (nn.Linear(5, 1), ShapeError, "two classes"),
    ):
        model = nn.Sequential(*classifier(), end)
        before = state(model)
        with pytest.raises(error, match=text), nk.tent(model):
            model(x_of())
        assert state(model) == before
    with nk.tent(classifier()) as handle, pytest.raises(OptionError, match="not adapted yet"):
        model = classifier()
        with nk.adapt(model):
            nk.tent(model)
    assert handle.steps == 0
