"""convert with batches: γ and β solved so that each channel keeps its mean and deviation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.surgery.models import Residual, made
from tests.surgery.test_convert_pairs import same_states, snapshot


def batches(count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 3, 12, 12, generator=g) + i, torch.zeros(size)) for i in range(count)
    ]


def network(norm: Any = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), Residual(8), nn.Conv2d(8, 6, 1), norm(6)]
    model = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(600, 5), nn.BatchNorm1d(5))
    for x, _ in batches():
        model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def moments(model: nn.Module, layers: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and deviation of each channel of the outputs of layers, over the batches."""
    outputs: dict[str, list[Tensor]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _x, y, name=name: outputs.setdefault(name, []).append(y.clone())
        )
        for name in layers
    ]
    with torch.no_grad():
        for x, _ in batches():
            model(x)
    for hook in hooks:
        hook.remove()
    joined = {name: torch.cat(ys).transpose(0, 1).flatten(1) for name, ys in outputs.items()}
    return {name: (y.mean(1), y.std(1)) for name, y in joined.items()}


def norms(model: nn.Module) -> list[str]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
    return [name for name, m in model.named_modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("to", ["group", "layer", "instance", ("group", 1)], ids=str)
def test_channels_keep_mean_and_deviation(to: Any) -> None:
    model = network()
    names = norms(model)[:-1]  # the last one gets (N, C)
    expected = moments(copy.deepcopy(model).eval(), names)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    handle = nk.convert(model, to, batches=iter(batches()))
    assert torch.equal(rng, torch.get_rng_state()) and model.training
    for name, (mean, deviation) in moments(copy.deepcopy(model).eval(), names).items():
        torch.testing.assert_close(mean, expected[name][0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deviation, expected[name][1], rtol=1e-3, atol=1e-3)
    text = repr(handle)
    assert "layers solved on 24 samples" in text and "train the network again" in text
    assert text.count("deviations off, ") == len(handle.changed)
    model.eval()(batches()[0][0])
    model.train()
    handle.undo()
    assert snapshot(model) == before and same_states(model.state_dict(), state)


def test_back_to_batch_statistics_of_the_batches() -> None:
    model = network(lambda c: nk.GroupNorm(2, c, act="relu"))
    names = [name for name in norms(model) if isinstance(model.get_submodule(name), nn.GroupNorm)]
    for name in names:  # so that outputs are those of the layer alone
        model.get_submodule(name).act = None
    expected = moments(copy.deepcopy(model).eval(), names)
    handle = nk.convert(model, "batch", batches=batches())
    assert all(type(model.get_submodule(name)) is nk.BatchNorm2d for name in names)
    assert len(handle.changed) == len(norms(model)) and model[1].num_batches_tracked == 3
    for name, (mean, deviation) in moments(copy.deepcopy(model).eval(), names).items():
        torch.testing.assert_close(mean, expected[name][0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deviation, expected[name][1], rtol=1e-3, atol=1e-3)
    mean = model[1].running_mean.clone()
    nk.recalibrate(model, batches(), layerwise=True, progress=False)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-3, atol=1e-3)


def test_outputs_are_nearer_than_with_parameters_taken_over() -> None:
    model, x = made("vgg")
    copied = copy.deepcopy(model)
    expected = copy.deepcopy(model).eval()(x).detach()
    nk.convert(copied, "layer")
    nk.convert(model, "layer", batches=[x])
    taken_over, solved = (m.eval()(x).detach() - expected for m in (copied, model))
    assert float(solved.square().mean()) < 0.5 * float(taken_over.square().mean())


def test_zero_gamma_shared_layers_and_no_affine() -> None:
    torch.manual_seed(0)
    shared, bare = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)
    zero = nn.BatchNorm2d(8)
    nn.init.zeros_(zero.weight)
    nn.init.constant_(zero.bias, 0.5)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), shared, nn.Conv2d(8, 8, 1), shared, bare, zero)
    for x, _ in batches():
        model(x)
    handle = nk.convert(model, "layer", batches=batches(), samples=10)
    assert "3 layers solved on 16 samples" in repr(handle)
    assert not bool(zero.weight.any()) and torch.equal(zero.bias, torch.full((8,), 0.5))
    assert model.eval()(batches()[0][0]).isfinite().all()


class Fails(nn.Module):
    """Raises at a call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise ZeroDivisionError
        return x


@pytest.mark.parametrize("at", [1, 2, 4, 9, 15])
def test_errors_restore_everything(at: int) -> None:
    model = nn.Sequential(network(), Fails(at))
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError):
        nk.convert(model, "group", batches=batches())
    assert snapshot(model) == before and same_states(model.state_dict(), state)


def endless() -> Iterator[Tensor]:
    while True:
        yield torch.randn(4, 3, 12, 12)


def test_bad_batches_are_refused() -> None:
    model = network()
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    nan = torch.full((4, 3, 12, 12), torch.nan)
    for wrong, error in (
        ([], nk.StatisticsError), ([nan], nk.StatisticsError), (nan, nk.TypeMismatchError),
        (3, nk.TypeMismatchError), ([torch.randn(2, 3)], Exception),
    ):  # fmt: skip
        with pytest.raises(error):
            nk.convert(model, "group", batches=wrong)  # type: ignore[arg-type]
        assert snapshot(model) == before and same_states(model.state_dict(), state)
    with pytest.raises(nk.OptionError, match="samples"):
        nk.convert(model, "group", batches=endless(), samples=0)
    with pytest.raises(nk.TypeMismatchError, match="forward"):
        nk.convert(model, "group", batches=endless(), forward=3)  # type: ignore[arg-type]
    assert nk.convert(model, "group", batches=endless(), samples=8,
                      forward=lambda m, batch: m(batch * 2)).changed  # fmt: skip


def test_groups_that_do_not_divide_are_refused_by_name() -> None:
    model = nn.ModuleDict(
        {"a": nn.BatchNorm2d(64), "b": nn.BatchNorm2d(48), "c": nn.BatchNorm1d(24)}
    )
    before = snapshot(model)
    with pytest.raises(nk.OptionError, match=r"received b \(48\), c \(24\).*\"group\", 8\)"):
        nk.convert(model, ("group", 32))
    assert snapshot(model) == before
    assert repr(nk.convert(model, "group")).count("of 16 channels") == 2
    assert [m.num_groups for m in model.values()] == [4, 3, 2]


def test_inputs_without_positions_are_no_instances() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(6, 3)
    with pytest.warns(UserWarning, match=r"its inputs may be \(N, C\)"):
        nk.convert(model, "instance")
    with pytest.warns(UserWarning, match="one value for each channel and sample"):
        nk.convert(model, "instance", batches=[x])
    with pytest.warns(UserWarning, match=r"its inputs may be \(N, C\)"):  # a channel each
        nk.convert(model, ("group", 4))
    assert nk.convert(model, ("group", 2)).changed
    unbatched = nn.Sequential(nn.InstanceNorm2d(3))
    with pytest.warns(UserWarning, match="without a batch axis"):
        nk.convert(unbatched, "layer", batches=[torch.randn(3, 3, 5)])
    rows = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    assert len(nk.convert(rows, "instance", batches=[torch.randn(6, 3, 5)]).changed) == 2
    assert [type(m) for m in rows[1:]] == [nk.InstanceNorm1d] * 2


def test_layers_of_any_rank_by_their_calls() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nk.SyncBatchNorm(4), nn.SyncBatchNorm(4))
    x = torch.randn(2, 1, 3, 3, 3)
    model(x) if torch.cuda.is_available() else model[1](model[0](x))
    expected = copy.deepcopy(model).eval()(x)
    handle = nk.convert(model, "batch", batches=[x])
    assert [type(m) for m in model[1:]] == [nk.BatchNorm3d] * 2
    torch.testing.assert_close(model.eval()(x), expected)
    assert "solved" not in repr(handle)  # evaluation is the same
    handle.undo()
    assert nk.convert(model, "frozen", batches=[x]).changed
    torch.testing.assert_close(model.train()(x), expected)
    assert [type(m) for m in model[1:]] == [nk.FrozenBatchNorm3d] * 2


def test_undo_follows_the_model_to_another_type() -> None:
    """Statistics that were out of the model meanwhile go where its tensors went."""
    model = network()
    handle = nk.convert(model, "group")
    model.to("meta")
    handle.undo()
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
