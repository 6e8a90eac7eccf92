"""The networks: sizes, counts, normalizers where they were asked for and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import normkit.nn
from normkit.errors import OptionError, TypeMismatchError
from normkit.lab import models
from normkit.lab.models.normalizers import groups_for
from normkit.lab.models.parts import initialise
from normkit.lab.models.resnet import Residual

torch.set_num_threads(1)

# Batch normalization by PyTorch: these tests are of the networks, not of normkit's layers.
NORM = "torch-batch"
# What a normalizer cannot do without.
NEEDED: dict[str, dict[str, object]] = {"ghost": {"ghost_size": 4}, "domain": {"domains": 1}}
# The big ones with less width, so that the whole matrix runs in seconds.
CHEAP: dict[str, dict[str, object]] = {
    "lenet5": {},
    "convnet4": {},
    "alexnet": {"hidden": 32, "width": 16},
    "cifar10-quick": {},
    "resnet18": {"width": 8},
    "resnet34": {"width": 8},
    "resnet50": {"width": 8},
    "resnet101": {"width": 4},
    "resnet152": {"width": 4},
    "resnet20": {"width": 4},
    "resnet32": {"width": 4},
    "resnet44": {"width": 4},
    "resnet56": {"width": 4},
    "resnet110": {"width": 2},
    "densenet": {"growth": 4, "stem": 8},
    "densenet121": {},
    "vit": {"depth": 2, "dim": 12, "heads": 2, "patch": 4},
    "denoiser": {"width": 8},
}
NORM_OF = {"vit": "layer"}  # of tokens, each on its own
CLASSIFIERS = [n for n, gives in models.OUTPUTS.items() if gives == "logits" and n != "densenet121"]
NORMALISERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    normkit.nn.HalfInstanceNorm2d,
)


def norms_in(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, NORMALISERS)]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_is_tried() -> None:
    assert set(CHEAP) == set(models.MODELS)


@pytest.mark.parametrize("size", [28, 32, 96])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_forward_and_backward(name: str, size: int) -> None:
    torch.manual_seed(0)
    norm = NORM_OF.get(name, NORM)
    model = models.build(name, norm=norm, in_channels=3, classes=7, size=size, **CHEAP[name])
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for parameter_name, p in model.named_parameters():
        assert p.grad is not None, parameter_name
        assert torch.isfinite(p.grad).all(), parameter_name
    assert any(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


def test_densenet121_runs_small() -> None:
    model = models.build("densenet121", norm="layer").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("densenet121", 7_978_856),
        ("alexnet", 61_100_840),
    ],
)
def test_published_parameter_counts(name: str, published: int) -> None:
    # AlexNet's count is without normalizers, the others' with BatchNorm.
    norm = "none" if name == "alexnet" else NORM
    with torch.device("meta"):
        model = models.build(name, norm=norm, in_channels=3, classes=1000, size=224)
    assert count(model) == published


def test_lenet_has_the_classic_counts() -> None:
    # 156 + 2,416 + 48,120 + 10,164 + 850: convolutions, then dense layers, all with bias.
    assert count(models.build("lenet5", norm="none")) == 61_706
    # γ and β for 6, 16, 120 and 84 channels.
    assert count(models.build("lenet5", norm=NORM)) == 61_706 + 2 * (6 + 16 + 120 + 84)
    assert count(models.build("lenet5", norm=NORM, affine=False)) == 61_706
    # The textbook's has no padding, so its first dense layer sees 4×4.
    book = models.build("lenet5", norm="none", padding=0, pool="avg", init="xavier", act="sigmoid")
    assert book.fc1.in_features == 16 * 4 * 4
    assert isinstance(book.pool1, nn.AvgPool2d)


def test_quick_has_caffes_counts_and_weights() -> None:
    model = models.build("cifar10-quick", norm="none", in_channels=3, size=32)
    assert count(model) == 145_578  # 2,432 + 25,632 + 51,264 + 65,600 + 650
    assert model.conv1.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    assert model.fc1.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert not model.conv1.bias.any()


def test_densenet_is_the_sources() -> None:
    model = models.build("densenet", norm=NORM, size=96)
    widths = [model.get_submodule(f"transition{i}.conv").in_channels for i in (1, 2, 3)]
    assert widths == [64 + 128, 96 + 128, 112 + 128]
    assert model.fc.in_features == 120 + 128
    layer = model.get_submodule("block1.0.body")
    assert [type(m).__name__ for m in layer] == ["BatchNorm2d", "ReLU", "Conv2d"]
    assert model.get_submodule("block1.1.body.conv1").in_channels == 64 + 32


@pytest.mark.parametrize("name", [n for n in models.MODELS if n != "densenet121"])
def test_norm_none_has_no_normalizer(name: str) -> None:
    assert norms_in(models.build(name, norm="none", **CHEAP[name])) == []
    assert norms_in(models.build(name, norm=NORM_OF.get(name, NORM), **CHEAP[name])) != []


@pytest.mark.parametrize("name", ["lenet5", "convnet4", "alexnet", "cifar10-quick"])
@pytest.mark.parametrize("norm_at", models.NORM_POSITIONS)
def test_place(name: str, norm_at: str) -> None:
    model = models.build(name, norm=NORM, norm_at=norm_at, **CHEAP[name])
    kinds = {type(model.get_submodule(n)).__name__ for n in norms_in(model)}
    expected = {"conv": {"BatchNorm2d"}, "fc": {"BatchNorm1d"}}
    assert kinds == expected.get(norm_at, {"BatchNorm2d", "BatchNorm1d"})
    # One for each convolution, one for each dense layer but the last.
    convs = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    dense = sum(isinstance(m, nn.Linear) for m in model.modules()) - 1
    assert len(norms_in(model)) == {"conv": convs, "fc": dense}.get(norm_at, convs + dense)


@pytest.mark.parametrize("name", ["resnet18", "densenet"])
def test_place_fc_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(OptionError, match="a hidden dense layer"):
        models.build(name, norm=NORM, norm_at="fc")


@pytest.mark.parametrize("norm", models.NORMS)
@pytest.mark.parametrize("name", ["lenet5", "alexnet", "resnet18", "densenet", "denoiser"])
def test_every_norm_runs(name: str, norm: str) -> None:
    model = models.build(name, norm=norm, norm_options=NEEDED.get(norm), **CHEAP[name])
    logits = model(torch.randn(3, 1, 28, 28))
    logits.sum().backward()
    assert torch.isfinite(logits).all()


def test_norm_kinds_by_rank() -> None:
    def at(norm: str, layer: str) -> nn.Module:
        return models.build("lenet5", norm=norm).get_submodule(layer)

    layer = at("layer", "norm1")
    assert isinstance(layer, nn.GroupNorm) and layer.num_groups == 1
    assert isinstance(at("layer", "norm3"), nn.LayerNorm)
    group = at("group", "norm2")
    assert isinstance(group, nn.GroupNorm) and group.num_groups == 8
    assert isinstance(at("instance", "norm1"), nn.InstanceNorm2d)
    assert isinstance(at("instance", "norm3"), nn.Identity)


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("batch", {"momentum": 0.05, "average": "debiased", "eps": 1e-3}),
        ("batch", {"momentum": None, "average": "cumulative"}),
        ("ghost", {"ghost_size": 8, "momentum": 0.2}),
        ("torch-batch", {"momentum": None}),
        ("layer", {"eps": 1e-3}),
        ("group", {"eps": 1e-3}),
        ("instance", {"eps": 1e-3}),
        ("half-instance", {"eps": 1e-3}),
        ("noisy-batch", {"momentum": 0.2}),
    ],
)
def test_normalizers_get_their_options(norm: str, options: dict[str, object]) -> None:
    model = models.build("lenet5", norm=norm, norm_options=options)
    names = norms_in(model)
    assert len(names) == (2 if norm.endswith("instance") else 4)
    for name in names:
        layer = model.get_submodule(name)
        assert {option: getattr(layer, option) for option in options} == options


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("none", {"eps": 1e-3}),
        ("group", {"momentum": 0.1}),
        ("torch-batch", {"average": "debiased"}),
        ("ghost", {"momentum": 0.1}),
        ("layer", {"gamma": 0.5}),
        (lambda channels, rank: nn.Identity(), {"eps": 1e-3}),
    ],
)
def test_options_that_a_normalizer_lacks_are_refused(norm: Any, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="Fix"):
        models.build("lenet5", norm=norm, norm_options=options)


@pytest.mark.parametrize("norm", ["batch", "torch-batch"])
def test_gamma_and_beta_start_at_given_values(norm: str) -> None:
    start: dict[str, object] = {"gamma": 1.0000001, "beta": 1e-7}
    torch.manual_seed(3)
    usual = models.build("lenet5", norm=norm)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    model = models.build("lenet5", norm=norm, norm_options=start)
    # No random number is drawn for it: what comes next is the same, and so are all other weights.
    assert torch.equal(torch.rand(1), drawn)
    for (name, ours), theirs in zip(model.named_parameters(), usual.parameters(), strict=True):
        layer, _, kind = name.rpartition(".")
        if not layer.startswith("norm"):
            assert torch.equal(ours, theirs), name
        elif kind == "weight":
            # float32 has nothing nearer to 1.0000001 than the number after 1.
            assert (ours == 1 + 2**-23).all(), name
            assert (theirs == 1).all(), name
        else:
            assert ours.tolist() == pytest.approx([1e-7] * len(ours), rel=1e-6, abs=0), name
            assert not theirs.any(), name
        assert ours.requires_grad, name


@pytest.mark.parametrize(
    ("options", "affine"),
    [
        ({"gamma": 0.5}, False),
        ({"beta": 0.0}, False),
        ({"gamma": math.nan}, True),
        ({"gamma": "1"}, True),
        ({"beta": True}, True),
        ({"beta": None}, True),
    ],
)
def test_invalid_gamma_or_beta_start_raises(options: dict[str, object], affine: bool) -> None:
    with pytest.raises(OptionError, match="Fix"):
        models.build("lenet5", norm="batch", affine=affine, norm_options=options)


def test_normkits_own_batchnorm_is_the_default() -> None:
    model = models.build("lenet5")
    assert type(model.norm1) is normkit.nn.BatchNorm2d
    assert type(model.norm3) is normkit.nn.BatchNorm1d
    assert torch.isfinite(model(torch.randn(2, 1, 28, 28))).all()


@pytest.mark.parametrize("channels", range(1, 130))
def test_groups_divide_and_are_never_degenerate(channels: int) -> None:
    for rank, least in ((2, 2), (0, 16)):
        groups = groups_for(channels, rank)
        assert channels % groups == 0
        assert groups <= 32
        assert channels // groups >= min(least, channels)


def test_affine_off_leaves_no_gamma() -> None:
    for norm in ("batch", "torch-batch", "layer", "group", "instance", "half-instance"):
        model = models.build("lenet5", norm=norm, affine=False)
        for name in norms_in(model):
            assert list(model.get_submodule(name).parameters()) == [], (norm, name)
        assert norms_in(model)


def test_arms_start_from_the_same_weights() -> None:
    def weights(**options: object) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = models.build("convnet4", **options)  # type: ignore[arg-type]
        kept = (m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        return [p for m in kept for p in m.parameters()]

    reference = weights(norm="none")
    arms: list[dict[str, object]] = [
        {"norm": n, "norm_options": NEEDED.get(n)} for n in models.NORMS if n != "none"
    ]
    arms += [{"norm": NORM, "affine": False}, {"norm": NORM, "norm_at": "fc"}]
    for arm in arms:
        for a, b in zip(reference, weights(**arm), strict=True):
            assert torch.equal(a, b), arm


def test_norm_then_activation_everywhere() -> None:
    model = models.build("alexnet", norm=NORM, act="silu", hidden=16)
    kinds = [type(m).__name__ for m in model]
    for i, kind in enumerate(kinds):
        if kind == "Conv2d":
            assert kinds[i + 1 : i + 3] == ["BatchNorm2d", "SiLU"]
        if kind == "Linear" and i < len(kinds) - 1:
            assert kinds[i + 1 : i + 3] == ["BatchNorm1d", "SiLU"]


def test_alexnet_dropout_only_without_norm() -> None:
    def rates(**options: object) -> list[float]:
        model = models.build("alexnet", hidden=16, **options)  # type: ignore[arg-type]
        return [m.p for m in model.modules() if isinstance(m, nn.Dropout)]

    assert rates(norm="none") == [0.5, 0.5]
    assert rates(norm=NORM) == []
    assert rates(norm=NORM, dropout=0.3) == [0.3, 0.3]
    assert rates(norm="none", dropout=0.0) == []


def test_alexnet_gets_narrower_as_a_whole() -> None:
    def channels(**options: object) -> list[int]:
        model = models.build("alexnet", norm="none", hidden=16, **options)  # type: ignore[arg-type]
        return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]

    assert channels() == [64, 192, 384, 256, 256]
    assert channels(width=16) == [16, 48, 96, 64, 64]


def test_plain_network_has_no_shortcut() -> None:
    plain = models.build("resnet18", norm=NORM, residual=False, width=8)
    deep = models.build("resnet18", norm=NORM, width=8)
    blocks = [m for m in plain.modules() if isinstance(m, Residual)]
    assert len(blocks) == 8 and all(b.shortcut is None for b in blocks)
    # Three stages change their size: a 1×1 convolution with γ and β each.
    assert count(deep) - count(plain) == sum(a * 2 * a + 4 * a for a in (8, 16, 32))


@pytest.mark.parametrize(
    ("depth", "published"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_narrow_family_has_the_counts_of_the_paper(depth: int, published: int) -> None:
    # The paper's shortcuts have no parameters (0.27 M to 1.7 M, its table 6); ours have two 1×1
    # convolutions with γ and β.
    with torch.device("meta"):
        plain, deep = (
            models.build(f"resnet{depth}", norm=NORM, in_channels=3, size=32, residual=residual)
            for residual in (False, True)
        )
    assert count(plain) == published
    assert count(deep) - published == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    # As the name says, without the convolutions on shortcuts: the stem, the bodies, the logits.
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in plain.modules()) == depth


def test_narrow_family_has_three_stages_and_one_stem() -> None:
    model = models.build("resnet20", norm="none", size=96)
    assert model.conv1.kernel_size == (3, 3) and not hasattr(model, "pool1")
    assert model.fc.in_features == 64
    assert models.build("resnet20", norm="none", width=8).fc.in_features == 32
    assert models.build("resnet34", norm="none").fc.in_features == 512


def test_residual_sum_is_exact() -> None:
    block = Residual(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Identity(), nn.ReLU())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), torch.relu(block.body(x) + x))


def test_zero_init_makes_blocks_their_shortcuts() -> None:
    model = models.build("resnet50", norm=NORM, width=4, zero_init=True)
    blocks = [m for m in model.modules() if isinstance(m, Residual)]
    x = torch.randn(2, 16, 7, 7)
    assert torch.equal(blocks[1](x), torch.relu(x))
    with pytest.raises(OptionError, match="zero_init"):
        models.build("resnet18", norm="none", width=4, zero_init=True)


def test_stem_by_size() -> None:
    small, large = (models.build("resnet18", norm="none", width=8, size=s) for s in (63, 64))
    assert small.conv1.kernel_size == (3, 3) and not hasattr(small, "pool1")
    assert large.conv1.kernel_size == (7, 7) and hasattr(large, "pool1")


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("pytorch", 1 / math.sqrt(3 * 400)),
        ("xavier", math.sqrt(2 / (400 + 120))),
        ("kaiming", math.sqrt(2 / 400)),
    ],
)
def test_init_deviations(init: str, deviation: float) -> None:
    torch.manual_seed(0)
    model = models.build("lenet5", norm="none", init=init)
    assert model.fc1.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert bool(model.fc1.bias.any()) == (init != "kaiming")


def test_resnet_and_densenet_scale_their_first_weights_by_their_own_fan() -> None:
    # ResNet by what goes out of a convolution, 9 · 128; DenseNet by what comes in, 9 · 96.
    resnet = models.build("resnet18", norm=NORM)
    weight = resnet.get_submodule("stage2.0.body.conv1").weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    densenet = models.build("densenet", norm=NORM)
    weight = densenet.get_submodule("block1.1.body.conv1").weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 96)), rel=0.02)


def test_factory_is_called_with_channels_and_rank() -> None:
    asked: list[tuple[int, int]] = []

    def norm(channels: int, rank: int) -> nn.Module:
        asked.append((channels, rank))
        return nn.Identity()

    models.build("lenet5", norm=norm)
    assert asked == [(6, 2), (16, 2), (120, 0), (84, 0)]
    with pytest.raises(OptionError, match="factory"):
        models.build("lenet5", norm=norm, affine=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet6", {}, "lenet5, convnet4"),
        ("lenet5", {"norm": "btach"}, "none, batch, torch-batch"),
        ("lenet5", {"act": "swish"}, "relu, sigmoid"),
        ("lenet5", {"norm_at": "both"}, "all, conv, fc"),
        ("lenet5", {"size": 11}, "at least 16×16"),
        ("lenet5", {"pool": "min"}, "max, avg"),
        ("lenet5", {"init": "caffe"}, "pytorch, xavier, kaiming"),
        ("lenet5", {"padding": -1}, "at least 0"),
        ("lenet5", {"dropout": 0.5}, "padding, pool, init"),
        ("resnet18", {"depth": 34}, "residual, width, zero_init, init"),
        ("alexnet", {"dropout": 1.0}, "below 1"),
        ("alexnet", {"size": 8}, "at least 16×16"),
        ("alexnet", {"width": 0}, "at least 1"),
        ("densenet", {"blocks": ()}, "at least one block"),
        ("densenet", {"blocks": (2, 0)}, "at least 1"),
        ("resnet18", {"classes": 0}, "classes of at least 1"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        models.build(name, **{"norm": "none", **options})  # type: ignore[arg-type]
    assert "Fix:" in str(error.value)


@pytest.mark.parametrize("options", [{"size": 28.0}, {"in_channels": True}, {"affine": 1}])
def test_wrong_types_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(TypeMismatchError, match="to be a"):
        models.build("lenet5", norm="none", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lenet5", "convnet4", "alexnet", "cifar10-quick", "resnet18"])
def test_smallest_size_really_works(name: str) -> None:
    least = {"lenet5": 16, "convnet4": 8, "cifar10-quick": 8}.get(name, 16)
    model = models.build(name, norm="instance", size=least, **CHEAP[name])
    assert model(torch.randn(2, 1, least, least)).shape == (2, 10)
    with pytest.raises(OptionError, match=f"at least {least}×{least}"):
        models.build(name, norm="none", size=least - 1)


def test_initialise_leaves_normalizers_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    initialise(model, "kaiming")
    assert (model[1].weight == 1).all() and (model[1].bias == 0).all()
