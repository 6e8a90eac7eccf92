"""``nk.parameter_groups``: what decays and what does not, in any model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import normkit as nk
from normkit.errors import NormkitError
from normkit.lab import models


class LlamaRMSNorm(nn.Module):
    """As another library's: known by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))


class EvoNorm2dS0(nn.Module):
    """As timm's: digits and letters behind, and a vector that is no γ."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.v = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(1, 8, 1, 1))


class LinearNorm(nn.Linear):
    """Named after what is done to its weight."""


class ConditionalNorm(nn.BatchNorm1d):
    """Batch normalization whose γ another layer makes."""

    def __init__(self) -> None:
        super().__init__(8, affine=False)
        self.make = nn.Linear(4, 8)


class NormBlock(nn.Module):
    """Named after what is in it, which is not all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)


NormBlock.__name__ = "ConvNorm"


def names(model: nn.Module) -> tuple[set[str], set[str]]:
    groups = nk.parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    first = {id(p): name for name, p in model.named_parameters()}
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, model.parameters()))  # each once, none left out
    decayed, free = ({first[id(p)] for p in group["params"]} for group in groups)
    return decayed, free


@pytest.mark.parametrize(
    ("model", "decayed"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.PReLU()), {"0.weight", "2.weight"}),
        (nn.LSTM(8, 8, 2), {f"weight_{kind}_l{k}" for kind in ("ih", "hh") for k in (0, 1)}),
        (
            nn.TransformerEncoderLayer(8, 2, 16),
            {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight",
             "linear2.weight"},
        ),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
        (nn.Sequential(nn.Embedding(9, 8), LlamaRMSNorm()), {"0.weight"}),
        (NormBlock(), {"conv.weight"}),
        (EvoNorm2dS0(), set()),
        (LinearNorm(8, 8), {"weight"}),
        (ConditionalNorm(), {"make.weight"}),
        (nn.Sequential(nk.DomainBatchNorm1d(8, 2), nk.BatchRenorm1d(8), nn.Linear(8, 8, False)),
         {"2.weight"}),
        (nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d()), {"0.weight"}),
        (nn.BatchNorm2d(3), set()),
        (nn.ReLU(), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_weights_alone_decay(model: nn.Module, decayed: set[str]) -> None:
    assert names(model)[0] == decayed


def test_parametrized_layers() -> None:
    norm = nn.BatchNorm1d(8)
    prune.random_unstructured(norm, "weight", 0.5)
    linear = parametrizations.weight_norm(nn.Linear(8, 8))
    parametrizations.weight_norm(linear, "bias", dim=None)
    model = nn.Sequential(norm, linear)
    assert names(model)[0] == {f"1.parametrizations.weight.original{k}" for k in (0, 1)}


def test_tied_parameters_are_listed_once() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False), nn.LayerNorm(8))
    model[1].weight = model[0].weight
    model.register_parameter("scale", model[2].weight)  # γ under another name first
    decayed, free = names(model)
    assert decayed == {"0.weight"}
    assert len(free) == 2


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "densenet", "vit"])
def test_networks_of_the_lab(name: str) -> None:
    model = models.build(name, norm="layer" if name == "vit" else "torch-batch")
    decayed, free = names(model)
    parameters = dict(model.named_parameters())
    for one in decayed:
        assert parameters[one].dim() > 1
    assert free


def test_wrapped_models_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    nk.freeze(model)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert len(names(wrapped)[0]) == 1  # type: ignore[arg-type]


def test_training_with_them_leaves_the_rest_to_itself() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(nk.parameter_groups(model, 0.5), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    weight, *others = model.parameters()
    assert torch.equal(weight, before[0] * 0.5)
    assert all(map(torch.equal, others, before[1:]))


@pytest.mark.parametrize(
    ("model", "decay", "says"),
    [
        (nn.ReLU(), -0.1, "weight decay of 0 or more"),
        (nn.ReLU(), float("nan"), "weight decay of 0 or more"),
        (nn.ReLU(), True, "weight decay of 0 or more"),
        (nn.ReLU(), "0.1", "weight decay of 0 or more"),
        (list(nn.Linear(2, 2).parameters()), 0.1, "list"),
        (torch.jit.script(nn.ReLU()), 0.1, "script"),
    ],
)
def test_bad_input_is_refused(model: Any, decay: Any, says: str) -> None:
    with pytest.raises(NormkitError, match=says):
        nk.parameter_groups(model, decay)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
@pytest.mark.usefixtures("process_group")
def test_flat_parameters_of_fsdp_are_refused() -> None:
    from torch.distributed import fsdp

    for original in (False, True):
        inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        model = fsdp.FullyShardedDataParallel(
            inner,
            device_id=torch.device("cpu"),
            use_orig_params=original,
            sharding_strategy=fsdp.ShardingStrategy.NO_SHARD,
        )
        if original:
            decayed, free = nk.parameter_groups(model, 0.1)
            assert (len(decayed["params"]), len(free["params"])) == (1, 3)
            continue
        with pytest.raises(nk.TypeMismatchError, match="use_orig_params"):
            nk.parameter_groups(model, 0.1)


def test_graphs_whose_layers_are_gone_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).eval()
    exported = torch.export.export(model, (torch.ones(2, 3),)).module()
    with pytest.raises(nk.TypeMismatchError, match=r"1\.weight may be γ"):
        nk.parameter_groups(exported, 0.1)
    traced = torch.fx.symbolic_trace(model)  # whose layers are still there
    assert names(traced)[0] == {"0.weight"}


def test_what_the_model_names_does_not_decay() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.linear = nn.Parameter(torch.ones(1, 9, 8)), nn.Linear(8, 8)

        def no_weight_decay(self) -> set[str]:
            return {"place", "not_here"}

    assert names(Named())[0] == {"linear.weight"}
    assert len(names(nn.DataParallel(Named()))[0]) == 1
