"""Rules about the model and the optimizer: each finds its fault, and is silent on a look-alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor import Finding
from normkit.lab import models


def find(model: nn.Module, rule: str, **options: Any) -> tuple[Finding, ...]:
    return nk.diagnose(model, **options).of(rule)


def one(model: nn.Module, rule: str, severity: str, *places: str, **options: Any) -> Finding:
    """Return the finding of a rule, which has to be the only one."""
    (found,) = find(model, rule, **options)
    assert found.severity == severity
    assert found.places == places
    return found


def net(**options: Any) -> nn.Sequential:
    """Two normalization layers, "1" and "4", that were trained: γ, β and statistics differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    for layer in (model[1], model[4]):
        trained(layer)
    return model


def trained(layer: Any) -> Any:
    """Give a layer the γ, β and statistics that training leaves."""
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.uniform_(-0.5, 0.5)
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return layer


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 4) for _ in range(count)
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(
        after[key].dtype == tensor.dtype and torch.equal(after[key], tensor)
        for key, tensor in before.items()
    )


def test_a_trained_net_has_no_finding() -> None:
    assert nk.diagnose(net()).findings == ()


def test_nk101_statistics_that_never_moved() -> None:
    model = net()
    model[4].reset_running_stats()
    found = one(model, "NK101", "error", "4", train=batches())
    before = state(model)
    handle = found.mend()
    assert not find(model, "NK101")
    assert float(model[4].running_mean.abs().sum()) > 0
    handle.undo()
    assert same(model, before)


def test_nk101_is_a_note_before_training_and_does_not_ask_the_count() -> None:
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    one(fresh, "NK101", "note", "1")
    nn.init.normal_(fresh[1].weight, 1.0, 0.02)  # as generators are made
    one(fresh, "NK101", "note", "1")
    model = net()
    assert int(model[1].num_batches_tracked) == 0
    assert not find(model, "NK101")


def test_nk102_statistics_that_are_not_finite_or_negative() -> None:
    model = net()
    model[1].running_mean[2] = float("nan")
    model[4].running_var[:2] = -0.1
    found = one(model, "NK102", "error", "1", "4", train=batches())
    assert found.value == 3
    handle = found.mend()
    assert not find(model, "NK102")
    handle.undo()
    assert find(model, "NK102")


def test_nk103_momentum_zero_is_mended() -> None:
    model = net(momentum=0.0)
    found = one(model, "NK103", "warning", "1", "4", train=batches())
    before = state(model)
    handle = found.mend()
    assert model[1].momentum == 0.1
    assert not same(model, before)
    assert not find(model, "NK103")
    handle.undo()
    assert model[1].momentum == 0
    assert same(model, before)


def test_nk103_is_the_cause_where_statistics_never_moved() -> None:
    model = net(momentum=0.0)
    model[1].reset_running_stats()
    one(model, "NK103", "error", "1", "4")
    assert not find(model, "NK101")


def test_nk103_leaves_frozen_layers_and_counts_instance_norm_without_momentum() -> None:
    model = net(momentum=0.0)
    nk.freeze(model)
    assert not find(model, "NK103")
    layer = nn.InstanceNorm2d(2, momentum=None, track_running_stats=True)  # type: ignore[arg-type]
    layer(torch.randn(3, 2, 4, 4) + 5)
    assert not layer.running_mean.any()  # torch takes None for 0 there
    one(nn.Sequential(layer), "NK103", "warning", "0")


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_nk105_averages_that_round_away(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(trained(make(16, momentum=0.01))).bfloat16()
    found = one(model, "NK105", "warning", "0")
    assert found.value is not None
    # As predicted, most variances stand still in a batch of 10 % more variance.
    with torch.no_grad():
        wanted = (1.1 * model[0].running_var.double()).sqrt()
        x = torch.randn(4000, 16, dtype=torch.float64)
        x = (x - x.mean(0)) / x.std(0) * wanted + model[0].running_mean.double()
    former = model[0].running_var.clone()
    model.train()(x.bfloat16())
    assert float((model[0].running_var == former).double().mean()) > 0.7
    before = state(model)
    parameter = model[0].weight
    handle = found.mend()
    assert model[0].running_var.dtype == torch.float32
    assert model[0].weight is parameter
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert not torch.equal(model[0].running_var, former.float())
    assert not find(model, "NK105")
    handle.undo()
    assert model[0].running_var.dtype == torch.bfloat16
    assert {k: v.dtype for k, v in before.items()} == {
        k: v.dtype for k, v in model.state_dict().items()
    }


def test_nk105_is_a_note_where_the_average_moves() -> None:
    one(net().half(), "NK105", "note", "1", "4")
    assert not find(net(), "NK105")


def test_nk106_dead_channels() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight[0] = 0
        model[4].weight[:3] = 1e-6
    found = one(model, "NK106", "warning", "1", "4")
    assert found.value == pytest.approx(3 / 8)
    with torch.no_grad():
        model[4].weight.zero_()  # the last layer of a residual block when it is made
    one(model, "NK106", "note", "1")


def test_nk107_variance_below_eps() -> None:
    model = net()
    model[1].running_var[:2] = 1e-7
    found = one(model, "NK107", "note", "1")
    assert found.value == pytest.approx(2 / 16)
    model[1].running_var[:5] = 0
    one(model, "NK107", "warning", "1")
    model[1].reset_running_stats()
    model[1].eps = 2.0
    assert not find(model, "NK107")


def test_nk108_flag_off_with_buffers() -> None:
    model = net()
    model[1].track_running_stats = False
    images = torch.randn(16, 1, 8, 8)
    mean = model[1].running_mean.clone()
    model.train()(images)
    assert torch.equal(model[1].running_mean, mean)  # training does not move them
    with torch.no_grad():
        expected = model.eval()(images)
        model[1].running_mean.add_(1)
        assert not torch.allclose(model(images), expected)  # and evaluation uses them
        model[1].running_mean.sub_(1)
    found = one(model, "NK108", "warning", "1", train=batches())
    before = state(model)
    handle = found.mend()
    assert model[1].track_running_stats
    assert not find(model, "NK108")
    handle.undo()
    assert not model[1].track_running_stats
    assert same(model, before)
    model[1].reset_running_stats()
    model[1].running_mean.zero_()
    model[1].running_var.fill_(1)
    one(model, "NK108", "error", "1")
    assert not find(model, "NK101")


def test_nk108_flag_on_without_buffers() -> None:
    model = net(track_running_stats=False)
    assert not find(model, "NK108")
    model[4].track_running_stats = True
    one(model, "NK108", "warning", "4")
    layer = nn.InstanceNorm2d(2)
    layer.track_running_stats = True
    with pytest.raises(RuntimeError):
        layer.eval()(torch.randn(2, 2, 4, 4))
    one(nn.Sequential(layer), "NK108", "error", "0")


def test_nk108_instance_norm_moves_in_evaluation() -> None:
    layer = nn.InstanceNorm2d(2, track_running_stats=True)
    layer.track_running_stats = False
    layer.eval()(torch.randn(3, 2, 4, 4) + 5)
    assert layer.running_mean is not None
    assert layer.running_mean.any()
    one(nn.Sequential(layer), "NK108", "note", "0")


def test_nk109_swapped_arguments() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, 0.1, 1e-5))
    found = one(model, "NK109", "warning", "0")
    assert not find(model, "NK120")
    handle = found.mend()
    assert (model[0].eps, model[0].momentum) == (1e-5, 0.1)
    assert not find(model, "NK109")
    handle.undo()
    assert (model[0].eps, model[0].momentum) == (0.1, 1e-5)


def test_nk109_of_a_trained_model_leaves_eps_to_its_weights() -> None:
    model = net(eps=0.1, momentum=1e-5)
    one(model, "NK109", "warning", "1", "4").mend()
    assert (model[1].eps, model[1].momentum) == (0.1, 0.1)


def test_nk109_momentum_given_as_eps() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, 0.8))
    found = one(model, "NK109", "warning", "0")
    assert "momentum=0.2" in found.do
    found.mend()
    assert model[0].eps == 1e-5
    assert not find(net(eps=1e-3), "NK109")


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


def test_nk120_average_too_slow() -> None:
    model = net(momentum=1e-4)
    found = one(model, "NK120", "warning", "1", "4", train=batches())
    handle = found.mend()
    assert model[1].momentum == 0.1
    handle.undo()
    assert model[1].momentum == 1e-4
    nk.recalibrate(model, batches(), progress=False)
    one(model, "NK120", "note", "1", "4", train=batches())  # its statistics are right
    for layer in (model[1], model[4]):
        layer.num_batches_tracked.fill_(100_000)
    one(model, "NK120", "note", "1", "4")
    assert not find(net(momentum=1e-3), "NK120")
    one(nn.Sequential(nn.BatchNorm1d(4, momentum=3e-4)), "NK120", "note", "0")  # fresh


def test_nk121_cumulative_average() -> None:
    model = net(momentum=None)
    handle = one(model, "NK121", "note", "1", "4").mend()
    assert model[1].momentum == 0.1
    assert not find(model, "NK121")
    handle.undo()
    assert model[1].momentum is None
    one(nn.Sequential(nk.BatchNorm1d(4, average="cumulative")), "NK121", "note", "0")
    assert not find(net(), "NK121")


def test_nk122_weight_decay() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    found = one(model, "NK122", "note", "1", "4", optimizer=optimizer)
    assert found.value == 0.05
    assert "AdamW decays 4 of 4" in found.says
    assert "decoupled" in found.says
    norms = [*model[1].parameters(), *model[4].parameters()]
    others = [p for p in model.parameters() if not any(p is norm for norm in norms)]
    groups = [{"params": others}, {"params": norms, "weight_decay": 0}]
    assert not find(model, "NK122", optimizer=torch.optim.AdamW(groups, weight_decay=0.05))


def test_nk123_parameters_outside_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not find(model, "NK123", optimizer=optimizer)
    model[4] = trained(nn.BatchNorm2d(8))
    found = one(model, "NK123", "warning", "4", optimizer=optimizer)
    assert "2 tensors that are not in the model" in found.says
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    one(model, "NK123", "error", "", optimizer=other)
    head = torch.optim.SGD(model[8].parameters(), lr=0.1)
    one(model, "NK123", "note", "1", "4", optimizer=head)
    model[:8].requires_grad_(False)
    assert not find(model, "NK123", optimizer=head)


def test_nk124_rates() -> None:
    model = net()
    first = list(model[1].parameters())
    others = [p for p in model.parameters() if not any(p is norm for norm in first)]

    def rates(norms: float, rest: float = 0.1) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": first, "lr": norms}, {"params": others, "lr": rest}])

    one(model, "NK124", "warning", "1", optimizer=rates(0))
    one(model, "NK124", "note", "1", optimizer=rates(1.0))
    one(model, "NK124", "note", "1", optimizer=rates(0.01))
    assert not find(model, "NK124", optimizer=rates(0.05))
    assert not find(model, "NK124", optimizer=rates(0, 0))  # a schedule's first step


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


def test_nk128_tiny_eps() -> None:
    model = nn.Sequential(nn.LayerNorm(4, eps=0.0))
    x = torch.ones(2, 4)
    assert model(x).isnan().all()
    handle = one(model, "NK128", "warning", "0").mend()
    assert not model(x).any()
    handle.undo()
    assert model[0].eps == 0
    half = nn.Sequential(nn.LayerNorm(4, eps=1e-12)).half()
    y = x.half().requires_grad_()
    half(y)[:, 0].sum().backward()
    assert y.grad is not None
    assert not y.grad.isfinite().all()
    one(half, "NK128", "warning", "0")
    assert half.eval()(y).isfinite().all()
    one(half, "NK128", "note", "0")
    assert not find(nn.Sequential(nn.LayerNorm(4, eps=1e-12)), "NK128")
    assert not find(nn.Sequential(nn.LayerNorm(4)).half(), "NK128")


def test_nk129_layers_that_no_tool_knows() -> None:
    class Mine(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = net()
    model[1] = Mine(8)
    one(model, "NK129", "note", "1")
    assert not find(nn.Sequential(nk.FrozenBatchNorm2d(4), nn.InstanceNorm2d(4)), "NK129")


def every(name: str) -> Any:
    options = {"width": 8} if name.startswith("resnet") else {}
    norm = "layer" if name == "vit" else "batch"
    return lambda: models.build(name, norm=norm, size=32, **options)


def small_transformer() -> nn.Module:
    return nn.Transformer(16, 2, 2, 2, 32, batch_first=True)


@pytest.mark.parametrize(
    "build",
    [*map(every, models.MODELS), small_transformer],
    ids=[*models.MODELS, "nn.Transformer"],
)
def test_a_fresh_network_has_no_finding_above_a_note(build: Any) -> None:
    found = nk.diagnose(build()).findings
    assert [(x.rule, x.places, x.says) for x in found if x.severity != "note"] == []
    assert not [x for x in found if "could not be checked" in x.says]


@pytest.mark.parametrize("norm", models.NORMS)
def test_a_fresh_network_of_any_normalizer_has_no_finding_above_a_note(norm: str) -> None:
    options = {"ghost": {"ghost_size": 8}, "domain": {"domains": 2}}.get(norm, {})
    model = models.build("lenet5", norm=norm, norm_options=options)
    found = nk.diagnose(model).findings
    assert [(x.rule, x.places, x.says) for x in found if x.severity != "note"] == []
    assert not [x for x in found if "could not be checked" in x.says]
