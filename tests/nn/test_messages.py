"""What layers say of wrong arguments: the class that was called, and the channels there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk

LAYERS = [name for name in nk.nn.__all__ if issubclass(getattr(nk, name), nn.Module)]


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_arguments_name_the_class_that_was_called(name: str) -> None:
    cls: Any = getattr(nk, name)
    calls: list[Callable[[], object]] = [
        lambda: cls(3, nonsense=1),
        lambda: cls(*range(1, 25)),
    ]
    if not name.startswith("Lazy"):
        calls.append(lambda: cls())
    for call in calls:
        with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) ") as caught:
            call()
        assert not re.search(r"\b_[A-Za-z]", str(caught.value).replace("__init__", ""))


def test_subclasses_keep_their_constructors() -> None:
    class Mine(nk.BatchNorm2d):
        pass

    class Wider(nk.GhostBatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(2 * channels, ghost_size=4, act="relu")

    assert Mine(3, act="silu").act == "silu"
    assert Wider(3).weight.shape == (6,)
    with pytest.raises(TypeError, match=r"^BatchNorm2d\.__init__\(\)"):
        Mine()  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [None, [1.0], np.ones((2, 3, 4, 4), np.float32), "x", 1])
# PyTorch's code initializes lazy layers, before any of ours runs.
@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("Lazy")])
def test_inputs_that_are_no_tensors(name: str, wrong: Any) -> None:
    sizes = {
        "GroupNorm": (1, 3),
        "AdaptiveGroupNorm": (1, 3),
        "MaskedGroupNorm": (1, 3),
        "DomainBatchNorm": (3, 1),
        "GhostBatchNorm": (3, 2),
        "WeightStandardizedConv": (3, 4, 3),
    }
    layer = getattr(nk, name)(*sizes.get(name.rstrip("123d"), (3,)))
    with pytest.raises(nk.TypeMismatchError, match="a floating-point tensor as input") as caught:
        layer(wrong)
    assert name in str(caught.value)


def pruned(layer: nn.Module, keep: int = 2) -> nn.Module:
    """Keep some channels, and leave the attributes that count them as they are."""
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(layer, name, nn.Parameter(parameter.detach()[..., :keep].clone()))
    for name, buffer in layer.named_buffers(recurse=False):
        if "running" in name or isinstance(layer, nk.FrozenBatchNorm2d):
            setattr(layer, name, buffer[..., :keep].clone())
    return layer


PRUNED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        f"{name}{rank}d": (
            lambda name=name, rank=rank: getattr(nk, f"{name}{rank}d")(4, affine=True),
            (3, 4, *(5,) * rank),
        )
        for name, ranks in (("BatchNorm", (1, 2, 3)), ("InstanceNorm", (1, 2, 3)),
                            ("BatchRenorm", (1, 2)))
        for rank in ranks
    },
    "DomainBatchNorm2d": (lambda: nk.DomainBatchNorm2d(4, 1), (3, 4, 5, 5)),
    "GhostBatchNorm2d": (lambda: nk.GhostBatchNorm2d(4, 2), (3, 4, 5, 5)),
    "FrozenBatchNorm2d": (lambda: nk.FrozenBatchNorm2d(4), (3, 4, 5, 5)),
    "GroupNorm": (lambda: nk.GroupNorm(2, 4), (3, 4, 5, 5)),
    "LayerNorm": (lambda: nk.LayerNorm(4), (3, 4)),
    "LayerNorm2d": (lambda: nk.LayerNorm2d(4), (3, 4, 5, 5)),
    "RMSNorm": (lambda: nk.RMSNorm(4), (3, 4)),
    "Scale": (lambda: nk.Scale(4), (3, 4, 5, 5)),
    "SyncBatchNorm": (lambda: nk.SyncBatchNorm(4), (3, 4, 5, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_layers_count_the_channels_they_have(name: str) -> None:
    make, shape = PRUNED[name]
    layer = pruned(make())
    with pytest.raises(nk.ShapeError) as caught:
        layer(torch.randn(shape))
    said = str(caught.value)
    assert said.startswith("Expected ") and "; received " in said and "Fix: " in said
    assert name in said
    assert "2 channels" in said or "(2,)" in said, "and not those of the attribute"
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):  # to do as it says
        layer.normalized_shape = (2,)
    layer(torch.randn(shape[0], 2, *shape[2:]))


def test_a_frozen_copy_of_a_pruned_layer() -> None:
    layer = pruned(nn.BatchNorm2d(4), keep=1).eval()
    x = torch.randn(3, 1, 5, 5)
    frozen = nk.FrozenBatchNorm2d.from_batch_norm(layer)  # type: ignore[arg-type]
    assert frozen.running_mean.shape == (1,)
    torch.testing.assert_close(frozen(x), layer(x))


def test_a_frozen_copy_applies_what_the_layer_applies() -> None:
    """A layer of torch.nn has no activation, whatever a user has attached to it."""
    layer, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    layer.act = nn.ReLU()
    torch.testing.assert_close(nk.FrozenBatchNorm2d.from_batch_norm(layer)(x), layer(x))
    ours = nk.BatchNorm2d(3, act="relu").eval()
    torch.testing.assert_close(nk.FrozenBatchNorm2d.from_batch_norm(ours)(x), ours(x))


DOMAINS: list[Any] = [
    True, "1", 1.0, 2, -1, [0], b"1", object, torch.tensor(True), torch.tensor(1.0),
    torch.tensor([0, 1]), torch.empty(0), torch.tensor(1, device="meta"), np.array([0, 1]),
]  # fmt: skip


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_domains_that_are_none(domain: Any) -> None:
    model = nn.Sequential(nk.DomainBatchNorm1d(2, 2), nk.DomainBatchNorm1d(2, 2))
    model[0].domain = 1
    with pytest.raises(nk.OptionError) as of_layer:
        model[0].domain = domain
    with pytest.raises(nk.OptionError) as of_model, nk.use_domain(model, domain):
        pass
    for caught in (of_layer, of_model):
        said = str(caught.value)
        assert "as an integer from 0 to 1; received " in said and "Fix: choose one" in said
    several = isinstance(domain, (torch.Tensor, np.ndarray)) and len(domain.shape) == 1
    assert ("call the model once for each domain" in said) is several
    assert [layer.domain for layer in model] == [1, None]


@pytest.mark.parametrize("domain", [1, np.int64(1), torch.tensor(1), torch.tensor([1])], ids=repr)
def test_integers_of_any_library_are_domains(domain: Any) -> None:
    layer = nk.DomainBatchNorm1d(2, 2)
    with nk.use_domain(layer, domain):
        assert type(layer.domain) is int and layer.domain == 1
    layer.domain = domain
    assert type(layer.domain) is int and layer.domain == 1
