"""The cases are those of the networks, each once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normkit.bench import cases, planning
from normkit.errors import OptionError
from normkit.lab.models import build


def test_names_are_unique_and_sizes_bounded() -> None:
    found = cases.all_cases()
    assert len({case.name for case in found}) == len(found)
    assert all(0 < case.bytes <= cases.LARGEST for case in found)
    assert not any(case.shape[0] == 1 and len(case.shape) == 2 and case.norm == "bn"
                   for case in found)  # fmt: skip


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "densenet121"])
def test_shapes_match_the_network(network: str) -> None:
    """The tables against the layers of the model itself, run once."""
    model = build(network, norm="torch-batch", in_channels=3, classes=10, size=224)
    seen: dict[tuple[int, ...], int] = {}

    def see(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        shape = tuple(given[0].shape[1:])
        seen[shape] = seen.get(shape, 0) + 1

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(see)
    with torch.device("meta"):
        model.to("meta").eval()(torch.empty(1, 3, 224, 224))
    if network == "densenet121":
        # Widths stand in steps of 128 for those up to them; the transitions' are multiples anyway,
        # and the stem is no layer of a block.
        rounded: dict[tuple[int, ...], int] = {}
        for (channels, *sides), times in seen.items():
            wide = channels if sides[0] == 112 else -(-channels // 128) * 128
            shape = (wide, *sides)
            rounded[shape] = rounded.get(shape, 0) + times
        seen = rounded
    listed: dict[tuple[int, ...], int] = {}
    for norm, name, shape, times, _ in cases._entries():
        if (norm, name) == ("bn", network):
            listed[shape] = listed.get(shape, 0) + times
    assert listed == seen


def test_preset_shapes_exist() -> None:
    known = {(case.norm, case.shape) for case in cases.all_cases()}
    for chosen in cases.PRESET_SHAPES.values():
        assert set(chosen) <= known
    assert set(planning._COMPILED) <= {
        (case.norm, case.shape, case.layout) for case in cases.preset_cases("default")
    }
    assert 25 <= len(cases.preset_cases("default")) <= 50


def test_pattern_selects_from_all_cases() -> None:
    found = planning.select_cases("quick", pattern="mobilenetv2")
    assert found
    assert all("mobilenetv2" in case.networks for case in found)
    assert {case.norm for case in planning.select_cases("quick", norms=["gn", "in"])} == {
        "gn",
        "in",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pattern": "vgg"}, "none for 'vgg'"), ({"norms": ["batch"]}, "out of bn, gn, ln, in, rms")],
)
def test_empty_selection_is_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        planning.select_cases("quick", **options)


def test_jobs_of_a_case() -> None:
    def measured(pattern: str) -> list[tuple[str, str]]:
        case = planning.select_cases("quick", pattern=pattern)[0]
        jobs = planning.case_jobs([case], planning.PRESETS["quick"], compiled=True)
        return [(job["measure"], job["mode"]) for job in jobs]

    common = [("act", "train"), ("act", "eval"), ("alone", "train")]
    assert measured("bn/alexnet/32x64x55x55/*") == common
    assert measured("bn/*resnet18*/32x64x56x56/*") == [*common, ("residual", "train")]
    assert measured("rms/llama-7b/512x4096/*") == [("act", "train"), ("alone", "train")]
    # A large one.
    assert measured("gn/resnet50/32x256x56x56/*") == [("act", "train")]
