"""Rules about modes and the order of layers: each finds its fault, and not a look-alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.doctor.nets import batches, find, net, one, same, state, trained


def test_nk110_half_frozen_layers() -> None:
    model = net()
    model[1].requires_grad_(False)
    found = one(model, "NK110", "warning", "1")
    handle = found.mend()
    mean = model[1].running_mean.clone()
    model.train()(torch.randn(16, 1, 8, 8))
    assert torch.equal(model[1].running_mean, mean)
    assert not find(model, "NK110")
    handle.undo()
    assert find(model, "NK110")
    assert not model[1].weight.requires_grad


def test_nk110_leaves_models_that_do_not_train() -> None:
    assert not find(net().requires_grad_(False), "NK110")
    model = net()
    nk.freeze(model[:2])
    assert not find(model, "NK110")


def test_nk111_and_nk112_partly_frozen() -> None:
    model = net().train()
    model[1].eval()
    one(model, "NK111", "note", "1")
    one(model, "NK112", "note", "1")
    nk.freeze(model[:2])
    assert not find(model, "NK111")  # γ and β are frozen as well
    one(model, "NK112", "note", "1")
    nk.freeze(model)
    assert not find(model, "NK112")
    assert not find(net().eval(), "NK111")
    assert not find(net().eval(), "NK112")


def test_nk112_sees_what_the_models_own_train_keeps() -> None:
    class Backbone(nn.Sequential):
        def train(self, mode: bool = True) -> Backbone:
            super().train(mode)
            self[1].eval()
            return self

    one(Backbone(*net()).eval(), "NK112", "note", "1")


def test_nk113_one_layer_in_several_places() -> None:
    norm = trained(nn.BatchNorm1d(4))
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)
    one(model, "NK113", "warning", "1", "3")
    norm = nn.LayerNorm(4)
    one(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm), "NK113", "note", "1", "3")


def test_nk113_a_second_name_is_no_second_place() -> None:
    class Model(nn.Module):
        def __init__(self, calls: int, traceable: bool) -> None:
            super().__init__()
            self.body = net()
            self.alias = self.body
            self.calls, self.traceable = calls, traceable

        def forward(self, x: Tensor) -> Any:
            if not self.traceable and x.sum() > 1e9:
                return x
            return [self.alias(x) for _ in range(self.calls)]

    assert not find(Model(1, traceable=True), "NK113")
    assert not find(Model(1, traceable=False), "NK113")
    assert len(one(Model(2, traceable=True), "NK113", "warning",
                   "body.1", "alias.1", "body.4", "alias.4").places) == 4  # fmt: skip


def test_nk113_siamese_calls_are_a_note() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) - self.body(x.flip(0))

    one(Siamese(), "NK113", "note", "body.1", "body.4")


def test_nk114_twice_in_a_row() -> None:
    model = net()
    model[2] = nn.Sequential(nn.Identity(), trained(nn.BatchNorm2d(8)))
    one(model, "NK114", "warning", "2.1")
    one(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)), "NK114", "note", "1")
    assert not find(net(), "NK114")


def test_nk115_bias_before() -> None:
    model = net()
    model[3] = nn.Conv2d(8, 8, 3)
    found = one(model, "NK115", "note", "3")
    assert found.value == 8
    assert not find(net(), "NK115")
    group = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8))  # biases differ within a group
    assert not find(group, "NK115")


def test_nk116_dropout_before() -> None:
    model = net()
    model[2] = nn.Sequential(nn.ReLU(), nn.Dropout2d(0.3))
    found = one(model, "NK116", "note", "4")
    assert found.value == 0.3
    model[2][1].p = 0.0
    assert not find(model, "NK116")
    last = net()
    last[7] = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))  # behind the last normalization
    assert not find(last, "NK116")


def test_nk117_group_norm_of_single_channels() -> None:
    one(nn.Sequential(nn.GroupNorm(4, 4)), "NK117", "note", "0")
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(nn.GroupNorm(4, 4)(x), nn.InstanceNorm2d(4)(x))
    assert float(nn.GroupNorm(4, 4)(x[..., :1, :1]).detach().abs().max()) < 0.01  # rounding
    assert not find(nn.Sequential(nn.GroupNorm(2, 4)), "NK117")


def test_nk118_layer_norm_over_space() -> None:
    found = one(nn.Sequential(nn.LayerNorm([4, 5, 6])), "NK118", "note", "0")
    assert found.value == 120
    assert not find(nn.Sequential(nn.LayerNorm([5, 6])), "NK118")


def test_nk125_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    one(model, "NK125", "note", "1", "4")
    assert not find(net(), "NK125")
    # Of what torch says of processes, only these two answers are asked.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 4)
    assert not find(model, "NK125")
    assert one(net(), "NK125", "note", "1", "4").value == 4


def test_nk126_averaged_weights() -> None:
    model = net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert not find(averaged, "NK126")
    with torch.no_grad():
        model[0].weight.mul_(3)
    model[1].running_var.mul_(5)
    averaged.update_parameters(model)
    # Its statistics are those of the last weights, not of the average.
    assert torch.equal(averaged.module[1].running_var, model[1].running_var)
    one(averaged, "NK126", "note", "1", "4")
    found = one(averaged, "NK126", "warning", "1", "4", train=batches())
    assert not find(averaged, "NK290", train=batches())
    found.mend()
    assert not find(averaged, "NK126", train=batches())


def test_nk127_output_normalized() -> None:
    one(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "NK127", "note", "1")
    assert not find(net(), "NK127")


def test_nk129_layers_that_no_tool_knows() -> None:
    class Mine(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = net()
    model[1] = Mine(8)
    one(model, "NK129", "note", "1")
    assert not find(nn.Sequential(nk.FrozenBatchNorm2d(4), nn.InstanceNorm2d(4)), "NK129")


def test_nk119_instance_norm_with_running_statistics() -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        options = {"affine": True, "track_running_stats": True}
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, **options))

    model, x = build(), torch.randn(4, 1, 8, 8)
    one(model, "NK119", "note", "1")
    model.train()(x)
    expected = model(x)
    found = one(model, "NK119", "warning", "1")
    before = state(model)
    with torch.no_grad():
        assert not torch.allclose(model.eval()(x), expected)
        handle = found.mend()
        assert torch.allclose(model(x), expected)
        assert not find(model, "NK119")
        handle.undo()
        assert same(model, before)
        assert not torch.allclose(model(x), expected)
    assert not find(nn.Sequential(nn.InstanceNorm2d(4)), "NK119")


def test_nk121_cumulative_average() -> None:
    model = net(momentum=None)
    handle = one(model, "NK121", "note", "1", "4").mend()
    assert model[1].momentum == 0.1
    assert not find(model, "NK121")
    handle.undo()
    assert model[1].momentum is None
    one(nn.Sequential(nk.BatchNorm1d(4, average="cumulative")), "NK121", "note", "0")
    assert not find(net(), "NK121")
