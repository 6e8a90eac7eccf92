"""SyncBatchNorm over gloo: several processes end where one process with the whole batch does."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from tests.few import few
from tests.nn import sync_worker
from tests.together import together


def _alone(total: int) -> tuple[nn.Module, torch.Tensor]:
    """The same training in one process, by plain batch normalization."""

    def plain(c: int, **options: Any) -> nn.Module:
        return nk.BatchNorm2d(c, **options) if c == 4 else nk.BatchNorm1d(c, **options)

    net = sync_worker.model(plain)  # type: ignore[arg-type]
    x, y = sync_worker.data(total)
    sync_worker.train(net, x, y, 1, total)
    with torch.no_grad():
        return net, net.eval()(x)


SIZES = [6, 6], [11, 1], [12, 0], [0, 12], [5, 0, 7]


@pytest.mark.parametrize("sizes", few(SIZES, lambda sizes: sizes in ([0, 12], [5, 0, 7])), ids=str)
def test_training_equals_one_process(sizes: list[int], tmp_path: Path) -> None:
    results = together(sync_worker, sizes, "train", tmp_path)
    alone, y = _alone(sum(sizes))
    for result in results:
        torch.testing.assert_close(result["state"], dict(alone.state_dict()), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result["y"], y, rtol=1e-9, atol=1e-9)
        for key, value in result["state"].items():  # bit for bit between processes
            assert torch.equal(value, results[0]["state"][key]), key


def test_one_value_over_all_processes(tmp_path: Path) -> None:
    for result in together(sync_worker, [1, 0], "single value", tmp_path):
        assert "over all processes" in result["error"]


def test_two_values_over_two_processes_are_enough(tmp_path: Path) -> None:
    assert all("error" not in r for r in together(sync_worker, [1, 1], "single value", tmp_path))


def test_refused_in_every_process(tmp_path: Path) -> None:
    """Derivatives of the backward pass, and statistics that exceed their buffers."""
    for result in together(sync_worker, [6, 6], "refused", tmp_path):
        assert "create_graph=True" in result["error"]
        assert "running_var of SyncBatchNorm within torch.float32" in result["beyond"]
        assert result["kept"]


def test_a_group_of_its_own_is_plain(tmp_path: Path) -> None:
    assert all(r["equal"] for r in together(sync_worker, [5, 7], "groups", tmp_path))


def test_all_processes_empty(tmp_path: Path) -> None:
    """Nothing to learn from, and nothing to fail on, as with plain batch normalization."""
    for result in together(sync_worker, [0, 0], "single value", tmp_path):
        assert "error" not in result
        assert torch.equal(result["mean"], torch.zeros(3))


def test_conversion_keeps_hooks() -> None:
    layer, seen = nn.BatchNorm1d(3), []
    handles = [
        layer.register_forward_hook(lambda m, args, y: seen.append("forward")),
        layer.register_forward_pre_hook(lambda m, a, k: seen.append("pre"), with_kwargs=True),
        layer.register_full_backward_hook(lambda m, *_: seen.append("backward")),
    ]
    model = nk.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))
    model(torch.randn(4, 3, requires_grad=True)).sum().backward()
    assert seen == ["pre", "forward", "backward"] and isinstance(model[0], nk.SyncBatchNorm)
    for handle in handles:
        handle.remove()
    model(torch.randn(4, 3)).sum().backward()
    assert len(seen) == 3


def test_conversion_takes_nothing_that_a_layer_does_not_apply() -> None:
    """Of torch.nn's layers, to which users attach attributes under our names."""
    layers = [nn.BatchNorm1d(3) for _ in range(3)]
    layers[0].act = nn.ReLU()
    layers[1].average = "mean"  # type: ignore[assignment]
    layers[2].register_buffer("steps", torch.tensor(7))
    model = nn.Sequential(*layers).eval()
    x, keys = torch.randn(4, 3), list(model.state_dict())
    y = model(x)
    with pytest.warns(UserWarning, match="skipped 0 .*has its own act"):
        nk.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(m) for m in model] == [nn.BatchNorm1d, nk.SyncBatchNorm, nk.SyncBatchNorm]
    assert model[1].average == "exponential" and list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), y)
    ours = nk.SyncBatchNorm.convert_sync_batchnorm(
        nk.BatchNorm1d(3, act=("leaky_relu", 0.2), average="debiased")
    )
    assert (ours.act, ours.average) == (("leaky_relu", 0.2), "debiased")


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_hooks_of_loading_get_the_new_layer(make: Any) -> None:
    """PyTorch holds the layer of such a hook by a weak reference alone."""
    layer, seen = make(3), []
    hook = layer.register_load_state_dict_pre_hook(lambda m, *_: seen.append(m))
    layer.register_load_state_dict_post_hook(lambda m, _: seen.append(m))
    layer.register_state_dict_pre_hook(lambda m, *_: seen.append(m))
    model = nk.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))
    del layer
    gc.collect()
    for one in (model, copy.deepcopy(model)):
        one.load_state_dict(one.state_dict())
        assert len(seen) == 3 and all(m is one[0] for m in seen)
        seen.clear()
    hook.remove()
    model.load_state_dict(model.state_dict())
    assert len(seen) == 2


@pytest.mark.parametrize("make", [nn.BatchNorm1d, nk.BatchNorm1d])
def test_hooks_of_loading_outlive_a_discarded_conversion(make: Any) -> None:
    layer, seen = make(3), []
    layer.register_load_state_dict_pre_hook(lambda m, *_: seen.append(m))
    nk.SyncBatchNorm.convert_sync_batchnorm(layer)
    gc.collect()
    layer.load_state_dict(layer.state_dict())
    assert len(seen) == 1 and seen[0] is layer
