"""What recalibrate must not touch, and what it puts back whatever happens."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk


class Net(nn.Module):
    """Two normalizations, dropout, a hook of its user's, and a train() that does more."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm1 = source.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.norm2 = source.BatchNorm2d(4, momentum=None)
        self.fc = nn.Linear(4, 2)
        self.switched = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm1(self.conv(x)))
        out: Tensor = self.fc(self.norm2(x).mean((2, 3)))
        return out

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.switched += 1
        return self


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All there is to compare: state, the very tensors, modes, hooks, options, gradients."""
    layers = list(model.modules())
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "tensors": [id(t) for t in (*model.parameters(), *model.buffers())],
        "modes": [layer.training for layer in layers],
        "hooks": [
            (len(layer._forward_hooks), len(layer._forward_pre_hooks), len(layer._backward_hooks))
            for layer in layers
        ],
        "keys": [sorted(vars(layer)) for layer in layers],
        "momenta": [getattr(layer, "momentum", "none") for layer in layers],
        "tracking": [getattr(layer, "track_running_stats", "none") for layer in layers],
        "average": [getattr(layer, "average", "none") for layer in layers],
        "classes": [type(layer) for layer in layers],
        "learns": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "switched": getattr(model, "switched", 0),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any], but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    for key, value in before["state"].items():
        if key not in but:
            assert value.dtype == after["state"][key].dtype
            # Bit for bit, NaN too.
            assert value.numpy().tobytes() == after["state"][key].numpy().tobytes(), key
    for key in before.keys() - {"state", "random", "gradients"}:
        assert before[key] == after[key], key
    for a, b in zip(before["gradients"], after["gradients"], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    for a, b in zip(before["random"], after["random"], strict=True):
        assert a == b if isinstance(a, tuple) else np.array_equal(a, b)


def trained(source: Any) -> Net:
    """A model in the middle of its training: buffers moved, gradients waiting, one NaN."""
    model = Net(source)
    model(torch.randn(8, 3, 6, 6)).sum().backward()
    model.conv.weight.requires_grad_(False)
    model.norm1.register_forward_hook(lambda *_: None)
    model.norm1.running_mean[0] = float("nan")
    return model


IMAGES = torch.randn(60, 3, 6, 6, generator=torch.Generator().manual_seed(7))
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MOVED = {f"norm{i}.{what}" for i in (1, 2) for what in STATISTICS}


def noisy(batches: Iterator[Tensor] | Any) -> Iterator[Tensor]:
    """Batches from a loader that draws from every generator there is."""
    for batch in batches:
        yield batch + torch.rand(()) * random.random() * np.random.rand()


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layerwise", [False, True])
def test_only_statistics_change(source: Any, training: bool, layerwise: bool) -> None:
    model = trained(source).train(training)
    model.fc.train(not training)  # an odd one out
    before = snapshot(model)
    images = list(noisy(IMAGES.split(20)))
    before["random"] = snapshot(model)["random"]
    loader = images if layerwise else noisy(images)
    found = nk.recalibrate(model, loader, samples=None, layerwise=layerwise)
    after = snapshot(model)
    assert_same(before, after, but=MOVED)
    assert not torch.equal(
        after["state"]["norm1.running_var"], before["state"]["norm1.running_var"]
    )
    assert torch.isfinite(after["state"]["norm1.running_mean"]).all()
    found.undo()
    assert_same(before, snapshot(model))
    found.undo()
    assert_same(before, snapshot(model))


def test_context_manager_restores() -> None:
    model = trained(nk)
    before = snapshot(model)
    with nk.recalibrate(model, IMAGES.split(20)) as found:
        assert torch.equal(model.norm1.running_mean, found.layers["norm1"].mean.float())
    assert_same(before, snapshot(model))


def test_undo_after_model_changed_device() -> None:
    model = trained(nk)
    before = model.norm1.running_var.clone()
    found = nk.recalibrate(model, IMAGES.split(20))
    model.double()  # new tensors in the place of the old
    found.undo()
    assert torch.equal(model.norm1.running_var, before.double())


def test_training_continues_bitwise() -> None:
    """Bit for bit, with dropout and a shuffled loader, though statistics were taken in between."""

    def train(look: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = Net(nk)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = torch.utils.data.DataLoader(IMAGES, 20, shuffle=True)  # type: ignore[arg-type]
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                (0.1 * model(batch)).square().mean().backward()
                optimizer.step()
            if look:
                with nk.recalibrate(model, loader, samples=40):
                    model.eval()(IMAGES[:4])
                model.train()
        return model.state_dict()

    plain, watched = train(False), train(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


class StopError(Exception):
    pass


def _break_in_the_loader(model: nn.Module, error: type[BaseException]) -> Any:
    yield IMAGES[:20]
    raise error


def _break_in_the_model(model: nn.Module, error: type[BaseException]) -> Any:
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error

    model.get_submodule("norm2").register_forward_pre_hook(fail)
    return list(IMAGES.split(20))


def _break_at_the_start(model: nn.Module, error: type[BaseException]) -> Any:
    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            raise error

    return Loader()


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("error", [KeyboardInterrupt, StopError, SystemExit, MemoryError])
@pytest.mark.parametrize(
    "prepare", [_break_in_the_loader, _break_in_the_model, _break_at_the_start]
)
def test_interruption_restores_everything(
    source: Any, error: type[BaseException], prepare: Callable[..., Any]
) -> None:
    model = trained(source)
    batches = prepare(model, error)
    before = snapshot(model)
    with pytest.raises(error):
        nk.recalibrate(model, batches, samples=None)
    assert_same(before, snapshot(model))


def test_interruption_while_writing_restores_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last layer cannot be written: the first one goes back."""
    model = trained(nk)
    before = snapshot(model)
    real, calls = Tensor.copy_, 0

    def copy_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        if any(self is buffer for buffer in model.buffers()):
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "copy_", copy_)
    with pytest.raises(KeyboardInterrupt):
        nk.recalibrate(model, IMAGES.split(20))
    monkeypatch.undo()
    assert calls >= 3
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("how", ["eval", "momentum", "freeze"])
def test_frozen_layers_are_skipped_and_named(source: Any, how: str) -> None:
    """update_bn takes them for its own; the layers behind must see what a frozen one gives."""
    model = trained(source)
    model.norm1.running_mean.zero_()
    if how == "eval":
        model.norm1.eval()
    elif how == "momentum":
        model.norm1.momentum = 0.0
    else:
        nk.freeze(model.norm1, affine=False)
    before = snapshot(model)
    found = nk.recalibrate(model, IMAGES.split(20), samples=None)
    assert_same(before, snapshot(model), but={f"norm2.{what}" for what in STATISTICS})
    assert [row.name for row in found.skipped] == ["norm1"]
    assert list(found.layers) == ["norm2"]
    assert "norm1" in repr(found) and "skipped" in repr(found)
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        x = reference.norm1(reference.conv(IMAGES))
    torch.testing.assert_close(model.norm2.running_mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_constant_layers_are_skipped_and_named() -> None:
    model = nn.Sequential(nk.FrozenBatchNorm2d(3), nk.BatchNorm2d(3))
    found = nk.recalibrate(model, IMAGES.split(20))
    assert [row.name for row in found.skipped] == ["0"]
    assert list(found.layers) == ["1"]


def test_uncalled_layer_is_skipped_and_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nk.BatchNorm2d(3), nk.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model = Half()
    found = nk.recalibrate(model, IMAGES.split(20))
    assert [(row.name, row.why) for row in found.skipped] == [
        ("unused", "not called in any batch (calls of its forward past its hooks are not seen)")
    ]
    assert torch.equal(model.unused.running_mean, torch.zeros(3))


@pytest.mark.parametrize("source", [nn, nk])
@pytest.mark.parametrize("short", [1, 2])
def test_short_loaders(short: int, source: Any) -> None:
    """Fewer batches than asked for: fvcore's stops with an error, and momenta at 1."""
    model = trained(source)
    before = snapshot(model)
    found = nk.recalibrate(model, list(IMAGES.split(20))[:short], samples=10_000)
    assert found.samples == 20 * short
    assert_same(before, snapshot(model), but=MOVED)
    inner = model.conv(IMAGES[: 20 * short])
    torch.testing.assert_close(
        model.norm1.running_mean, inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("source", [nn, nk])
def test_fewer_samples_than_a_batch(source: Any) -> None:
    """One batch; mmpretrain's sets everything to zero."""
    model = trained(source)
    found = nk.recalibrate(model, IMAGES.split(20), samples=5)
    assert (found.samples, found.batches) == (20, 1)
    assert model.norm1.running_var.min() > 0
    assert "unknown from 1 batch" in repr(found)  # of one batch nobody can say how sure it is
    assert np.isnan(found.error)


# What comes after the last layer


class Tail(nn.Module):
    """Counts how often what comes after its last normalization runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nk.BatchNorm2d(3)
        self.ran = 0

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        try:
            x = self.norm(x)
            if again:
                x = self.norm(x * 2)
        except Exception:  # a model may try one thing and then another
            return x
        self.ran += 1
        return x


def test_forward_stops_after_last_layer() -> None:
    model = Tail()
    found = nk.recalibrate(model, IMAGES.split(10), samples=None)
    assert model.ran == 3  # batches 1 and 2 to learn what is called, and 4 whether it still is
    assert found.layers["norm"].count == 60 * 36


def test_forward_with_hooks_runs_to_end() -> None:
    model, loaded = Tail(), []
    model.register_forward_pre_hook(lambda *_: loaded.append(1))
    model.register_forward_hook(lambda *_: loaded.pop() and None)
    nk.recalibrate(model, IMAGES.split(10), samples=None)
    assert model.ran == 6
    assert not loaded


def test_layers_first_called_in_later_batches() -> None:
    """They are seen, though what came before them had been called alike in every batch."""

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.then = nk.BatchNorm2d(3), nk.BatchNorm2d(3)

        def forward(self, x: Tensor, more: bool) -> Tensor:
            out: Tensor = self.then(self.first(x)) if more else self.first(x)
            return out

    model = Later()
    batches = [{"x": x, "more": i >= 3} for i, x in enumerate(IMAGES.split(10))]
    found = nk.recalibrate(model, batches, samples=None)
    assert found.layers["then"].count == 3 * 10 * 36
    again = Tail()
    batches = [{"x": x, "again": i >= 3} for i, x in enumerate(IMAGES.split(10))]
    found = nk.recalibrate(again, batches, samples=None)
    assert found.layers["norm"].count == 9 * 10 * 36


def test_custom_forward_runs_to_end() -> None:
    model, ends = Tail(), 0

    def forward(model: nn.Module, batch: Tensor) -> None:
        nonlocal ends
        model(batch)
        ends += 1

    nk.recalibrate(model, IMAGES.split(10), forward=forward)
    assert ends == model.ran == 6


def test_model_with_varying_control_flow() -> None:
    """Calls that differ from batch to batch: nothing is skipped while they do."""
    model = Tail()
    batches = [{"x": x, "again": i % 2 == 1} for i, x in enumerate(IMAGES.split(10))]
    found = nk.recalibrate(model, batches, samples=None)
    assert found.layers["norm"].count == 9 * 10 * 36
    assert model.ran == 6


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nk.BatchNorm1d, nk.GhostBatchNorm1d])
def test_statistics_made_in_inference_mode(layer: Any) -> None:
    model = nn.Sequential(layer(2, 4) if layer is nk.GhostBatchNorm1d else layer(2))
    with torch.inference_mode():
        for name, buffer in model[0]._buffers.items():
            model[0]._buffers[name] = buffer.clone()
    data = [torch.randn(8, 2) + 3 for _ in range(4)]
    before = {name: buffer.clone() for name, buffer in model[0].named_buffers()}
    result = nk.recalibrate(model, data, progress=False)
    torch.testing.assert_close(model[0].running_mean, torch.cat(data).mean(0))
    with nk.batch_statistics(model), torch.no_grad():
        model(data[0])
    result.undo()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model[0].named_buffers())
