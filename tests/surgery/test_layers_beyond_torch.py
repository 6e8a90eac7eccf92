"""Functions that change models, on every layer that torch.nn lacks: right, or left and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

# Of a model in which nothing is changed.
pytestmark = pytest.mark.filterwarnings("ignore:.* changed nothing, and skipped:UserWarning")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ZeroCenteredRMSNorm": lambda: nk.ZeroCenteredRMSNorm(8),
    "FilterResponseNorm2d": lambda: nk.FilterResponseNorm2d(4),
    "SwitchableNorm2d": lambda: nk.SwitchableNorm2d(4),
    "MaskedBatchNorm2d": lambda: nk.MaskedBatchNorm2d(4),
    "MaskedInstanceNorm2d": lambda: nk.MaskedInstanceNorm2d(4, track_running_stats=True),
    "MaskedGroupNorm": lambda: nk.MaskedGroupNorm(2, 4),
    "AdaptiveLayerNorm": lambda: nk.AdaptiveLayerNorm(8),
    "AdaptiveGroupNorm": lambda: nk.AdaptiveGroupNorm(2, 4),
    "WeightStandardizedConv2d": lambda: nk.WeightStandardizedConv2d(4, 4, 3, padding=1),
}
KINDS: list[Any] = ["batch", "sync", ("ghost", 2), "renorm", ("domain", 2), "frozen", "group",
                    "layer", "instance", "torch"]  # fmt: skip


def _model(name: str) -> tuple[nn.Sequential, Tensor]:
    """A network that has trained a little, in evaluation, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), LAYERS[name](), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8) * 2 + 1)
    return model.eval(), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_converted_to_nothing_else(name: str, kind: Any) -> None:
    model, x = _model(name)
    expected, before = model(x), type(model[1])
    handle = nk.convert(model, kind)
    assert type(model[1]) is before and not handle.changed
    torch.testing.assert_close(model(x), expected)
    reasons = {row.name: row.why for row in handle.skipped}
    if kind == "torch":
        assert "1" in reasons
    # What keeps statistics of the batch is what "batch" and its like are asked for.
    if name in ("SwitchableNorm2d", "MaskedBatchNorm2d"):
        assert "1" in reasons and "defined elsewhere" not in reasons["1"]


@pytest.mark.parametrize("name", LAYERS)
def test_accelerated_with_the_activation_behind(name: str) -> None:
    model, x = _model(name)
    expected = model(x)
    handle = nk.accelerate(model)
    torch.testing.assert_close(model(x), expected)
    composed = name == "SwitchableNorm2d"
    assert ("by PyTorch's operations" in str(handle)) is composed
    handle.undo()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_folded_only_where_it_is_a_scale_and_shift(name: str) -> None:
    model, x = _model(name)
    expected = model(x)
    handle = nk.fold(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert bool(handle.changed) is (name == "MaskedBatchNorm2d")  # without a mask
    if name == "SwitchableNorm2d":
        assert "normalizes by its input" in handle.skipped[0].why


def test_a_masked_layer_is_not_folded_where_the_example_has_a_mask() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 4, 1), nk.MaskedBatchNorm1d(4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(self.conv(x), mask=mask)

    model, x = Tagger(), torch.randn(3, 2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    model(x, mask)
    expected = model.eval()(x, mask)
    handle = nk.fold(model, {"x": x, "mask": mask})
    assert not handle.changed and handle.skipped
    assert torch.equal(model(x, mask), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_merged_and_grouped(name: str) -> None:
    model, x = _model(name)
    expected = model(x)
    handle = nk.freeze(model)
    keeps = name in ("SwitchableNorm2d", "MaskedBatchNorm2d")
    assert ("1" in {row.name for row in handle.changed}) is keeps
    torch.testing.assert_close(model(x), expected)
    handle.undo()
    states = [copy.deepcopy(model).state_dict() for _ in range(2)]
    merged = nk.merge(states)
    for key, value in states[0].items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(merged[key], value)
    decaying = {id(p) for group in nk.parameter_groups(model, 0.1) if group["weight_decay"]
                for p in group["params"]}  # fmt: skip
    for key, p in model[1].named_parameters():
        assert (id(p) in decaying) is (name.startswith("Weight") and key == "weight"), key


def test_a_bias_before_shares_of_layer_statistics_has_an_effect() -> None:
    """A mean over channels does not take away what each of them adds."""
    model, _ = _model("SwitchableNorm2d")
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    assert "NK115" not in str(nk.diagnose(model, data))
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nk.BatchNorm2d(4), nn.ReLU())
    assert "NK115" in str(nk.diagnose(plain, data))
