"""What is folded, into what, and that nothing else changes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

import normkit as nk
from tests.surgery.fold.sweep import RandomNet, settle


def outputs(model: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, Tensor) else torch.cat([t.flatten() for t in y])


def assert_same(got: Tensor, expected: Tensor, relative: float) -> None:
    scale = expected.abs().max().clamp_min(1e-30)
    assert float((got - expected).abs().max() / scale) <= relative


def check(model: nn.Module, x: Tensor, folded: int, *others: Tensor) -> nk.surgery.Handle:
    """Fold, compare on the example and on other inputs, undo, and compare bit for bit."""
    before = [outputs(model, each) for each in (x, *others)]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    handle = nk.fold(model, x)
    assert len(handle.changed) == folded, handle
    relative = 1e-10 if x.dtype == torch.float64 else 1e-5
    for each, y in zip((x, *others), before, strict=True):
        assert_same(outputs(model, each), y, relative)
    handle.undo()
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[k], v) for k, v in state.items())
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(outputs(model, x), before[0])
    return handle


def seq(*layers: nn.Module) -> nn.Module:
    return settle(nn.Sequential(*layers))


IMAGES, VOLUMES, SIGNALS = (2, 4, 7, 6), (2, 4, 5, 4, 6), (2, 4, 9)
BEFORE: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "conv1d": (lambda: [nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)], SIGNALS),
    "conv2d": (lambda: [nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)], IMAGES),
    "conv3d": (lambda: [nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)], VOLUMES),
    "grouped": (lambda: [nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)], IMAGES),
    "circular": (lambda: [nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
                          nn.BatchNorm2d(6)], IMAGES),
    "up1d": (lambda: [nn.ConvTranspose1d(4, 6, 3, 2), nn.BatchNorm1d(6)], SIGNALS),
    "up2d": (lambda: [nn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)], IMAGES),
    "up3d": (lambda: [nn.ConvTranspose3d(4, 6, 2, 2), nn.BatchNorm3d(6)], VOLUMES),
    # torch.nn.utils.fusion is wrong here.
    "grouped up": (lambda: [nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)], IMAGES),
    "linear": (lambda: [nn.Linear(4, 5), nn.BatchNorm1d(5)], (3, 4)),
    "no affine": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)], IMAGES),
    "no bias": (lambda: [nn.Conv2d(4, 6, 3), nk.BatchNorm2d(6, bias=False)], IMAGES),
    "caffe": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nk.Scale(6)], IMAGES),
    "sync": (lambda: [nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)], IMAGES),
    "our sync": (lambda: [nn.Conv2d(4, 6, 3), nk.SyncBatchNorm(6)], IMAGES),
    "ours": (lambda: [nn.Conv2d(4, 6, 3), nk.BatchNorm2d(6)], IMAGES),
    "ghost": (lambda: [nn.Conv2d(4, 6, 3), nk.GhostBatchNorm2d(6, 2)], IMAGES),
    "renorm": (lambda: [nn.Conv2d(4, 6, 3), nk.BatchRenorm2d(6)], IMAGES),
    "constant": (lambda: [nn.Conv2d(4, 6, 3), nk.FrozenBatchNorm2d(6)], IMAGES),
    "instance": (lambda: [nn.Conv2d(4, 6, 3),
                          nn.InstanceNorm2d(6, affine=True, track_running_stats=True)], IMAGES),
    "group": (lambda: [nn.GroupNorm(2, 4), nn.BatchNorm2d(4)], IMAGES),
    "group without": (lambda: [nn.GroupNorm(2, 4, affine=False), nn.BatchNorm2d(4)], IMAGES),
    "layer": (lambda: [nn.LayerNorm(4), nn.BatchNorm1d(4)], (3, 4)),
    "two": (lambda: [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4)], IMAGES),
    "average": (lambda: [nn.Conv2d(4, 6, 3), nn.AvgPool2d(2, 2, 1, count_include_pad=False),
                         nn.BatchNorm2d(6)], IMAGES),
    "upsample": (lambda: [nn.Conv2d(4, 6, 3), nn.Upsample(scale_factor=2, mode="bilinear"),
                          nn.BatchNorm2d(6)], IMAGES),
    "dropout": (lambda: [nn.Conv2d(4, 6, 3), nn.Dropout2d(0.5), nn.Identity(), nn.BatchNorm2d(6)],
                IMAGES),
    "flatten": (lambda: [nn.Conv2d(4, 6, 3), nn.Flatten(2), nn.BatchNorm1d(6)], IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_into_the_layer_before(name: str) -> None:
    make, shape = BEFORE[name]
    model = seq(*make(), nn.ReLU()).double()
    count = {"caffe": 2}.get(name, 1)
    x = torch.randn(shape, dtype=torch.float64)
    check(model, x, count, torch.randn(5, *shape[1:], dtype=torch.float64))
    # In float32 what is rounded once stays within rounding.
    check(model.float(), x.float(), count)


AFTER: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "conv": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False)], IMAGES),
    "grouped": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)], IMAGES),
    "pointwise": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1)], IMAGES),
    "circular": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")],
                 IMAGES),
    "up": (lambda: [nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 6, 1, groups=2)], SIGNALS),
    "linear": (lambda: [nn.BatchNorm1d(4), nn.Linear(4, 3)], (3, 4)),
    "flatten": (lambda: [nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)],
                IMAGES),
    "global": (lambda: [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)],
               IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_into_the_layer_after(name: str) -> None:
    make, shape = AFTER[name]
    x = torch.randn(shape, dtype=torch.float64)
    check(seq(nn.Sigmoid(), *make()).double(), x, 1, torch.randn(5, *shape[1:]).double())


REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], str]] = {
    "relu": (lambda: [nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)], "relu stands between"),
    "pads": (lambda: [nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)],
             "2 pads with zeros, which a shift does not pass"),
    "same": (lambda: [nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same")],
             "2 pads with zeros"),
    "up": (lambda: [nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, 2)],
           "covers some positions more often"),
    "negative": (lambda: [nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4)],
                 "max_pool2d_with_indices stands between the two, and no negative scale"),
    "border": (lambda: [nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4)],
               "averages zeros too"),
    "batch statistics": (lambda: [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)],
                         "normalizes by its input"),
    "act": (lambda: [nk.GroupNorm(2, 4, act="relu"), nn.BatchNorm2d(4)], "computes an activation"),
    "rms": (lambda: [nn.Flatten(2), nn.RMSNorm(42), nn.BatchNorm1d(4)], "takes no scale and shift"),
    "positions": (lambda: [nn.BatchNorm2d(4), nn.LayerNorm([7, 6]), nn.BatchNorm2d(4)],
                  "normalizes over several axes"),
    "linear": (lambda: [nn.Flatten(2), nn.Linear(42, 5), nn.BatchNorm1d(4)],
               "positions of one channel have another scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:fold changed nothing")
def test_what_is_not_exact_is_left_with_the_reason(name: str) -> None:
    make, why = REFUSED[name]
    layers = make()
    model = settle(nn.Sequential(*layers, nn.Sigmoid()))
    handle = check(model.double(), torch.randn(IMAGES, dtype=torch.float64), 0)
    assert any(why in row.why for row in handle.skipped), handle


@pytest.mark.parametrize("name", ["negative", "border", "pads", "up", "relu"])
def test_the_same_is_folded_where_scales_and_shifts_pass(name: str) -> None:
    model = settle(nn.Sequential(*REFUSED[name][0](), nn.Sigmoid())).double()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.abs_()
            if name != "negative":
                layer.bias.data.zero_()
                layer.running_mean.zero_()
    check(model, torch.randn(IMAGES, dtype=torch.float64), 1)


@pytest.mark.filterwarnings("ignore:fold changed nothing")
def test_layers_that_are_no_scale_and_shift() -> None:
    model, x = seq(conv(), bn()), torch.randn(IMAGES)
    model[1].train()
    mean = model[1].running_mean.clone()
    assert "in training mode" in nk.fold(model, x).skipped[0].why
    assert torch.equal(model[1].running_mean, mean)
    model = seq(conv(), nk.DomainBatchNorm2d(4, 2))
    with nk.use_domain(model, 1):
        assert "for each domain" in nk.fold(model, x).skipped[0].why


def test_statistics_that_are_not_finite_are_left() -> None:
    model = seq(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[1].running_var[0] = -1.0
    with torch.no_grad():
        model[1].weight[0] = float("inf")
    handle = nk.fold(model, torch.randn(IMAGES))
    assert [row.name for row in handle.changed] == ["3"]
    assert handle.skipped[0].why == "its scale or shift is not finite"


class Residual(nn.Module):
    """A block as torchvision writes them: definition order is not the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2, self.bn1 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def test_residual_block() -> None:
    check(settle(Residual()).double(), torch.randn(IMAGES).double(), 2)


class Calls(nn.Module):
    """Layers of one pass, called as ``run`` says."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(4, 4, 1, **options)


def bn() -> nn.Module:
    return nn.BatchNorm2d(4)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def hooked() -> nn.Module:
    layer = conv()
    layer.register_forward_hook(lambda *_: None)
    return layer


def tapped(layer: nn.Module) -> nn.Module:
    wrapper = nn.Sequential(layer)
    wrapper.register_forward_hook(lambda *_: None)
    return wrapper


def keep(self: Any, x: Tensor) -> Tensor:
    self.kept = self.conv(x)
    return self.bn(self.kept)


def write_view(self: Any, x: Tensor) -> Tensor:
    z = self.conv(x)
    z.detach()[:1].add_(1)
    return self.bn(z)


def write_data(self: Any, x: Tensor) -> Tensor:
    z = self.conv(x)
    z.data = z.data.abs()
    return self.bn(z)


def log(self: Any, x: Tensor) -> Tensor:
    z = self.conv(x)
    self.logged = float(z.numpy().mean())
    return self.bn(z)


def write_input(self: Any, x: Tensor) -> Tensor:
    z = x.sigmoid()
    y = self.bn(z)
    z.mul_(2)
    return self.conv(y) + z.sum()


def branch(self: Any, x: Tensor) -> Tensor:
    z = self.conv(x)
    return self.bn(z) if z.mean() > 0 else z.relu()


TRAPS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # Definition order, as mmengine's fuse_conv_bn goes: torchcrepe's conv, ReLU, BN.
    "order": (lambda: Calls(lambda m, x: m.bn(m.conv(x).relu()), conv=conv(), bn=bn()), 0),
    "conv twice, one bn": (lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.conv(x.sin()),
                                         conv=conv(), bn=bn()), 0),
    "conv twice, two bn": (lambda: Calls(lambda m, x: m.a(m.conv(x)) + m.b(m.conv(x)),
                                         conv=conv(), a=bn(), b=bn()), 0),
    "both twice": (lambda: Calls(lambda m, x: m.bn(m.conv(m.bn(m.conv(x)).relu())),
                                 conv=conv(), bn=bn()), 1),
    "one bn, two convs": (lambda: Calls(lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)),
                                        a=conv(), b=conv(bias=False), bn=bn()), 1),
    "bn also elsewhere": (lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.bn(x.sin()),
                                        conv=conv(), bn=bn()), 0),
    "one output, two bn": (lambda: Calls(lambda m, x: (lambda z: m.a(z) + m.b(z))(m.conv(x)),
                                         conv=conv(), a=bn(), b=bn()), 0),
    "output used too": (lambda: Calls(lambda m, x: (lambda z: m.bn(z) + z)(m.conv(x)),
                                      conv=conv(), bn=bn()), 0),
    "output returned": (lambda: Calls(lambda m, x: (lambda z: (m.bn(z), z))(m.conv(x)),
                                      conv=conv(), bn=bn()), 0),
    "output kept": (lambda: Calls(keep, conv=conv(), bn=bn()), 0),
    "written through a view": (lambda: Calls(write_view, conv=conv(), bn=bn()), 0),
    "other data": (lambda: Calls(write_data, conv=conv(), bn=bn()), 0),
    "read by numpy": (lambda: Calls(log, conv=conv(), bn=bn()), 0),
    "written later": (lambda: Calls(write_input, conv=conv(), bn=bn()), 0),
    "branch": (lambda: Calls(branch, conv=conv(), bn=bn()), 0),
    "hook": (lambda: Calls(lambda m, x: m.bn(m.conv(x)), conv=hooked(), bn=bn()), 0),
    "hook around": (lambda: Calls(lambda m, x: m.bn(m.conv(x)), conv=tapped(conv()), bn=bn()), 0),
    "hook around both": (lambda: tapped(nn.Sequential(conv(), bn())), 1),
    "functional": (lambda: Calls(lambda m, x: m.bn(F.conv2d(x, m.conv.weight)),
                                 conv=conv(), bn=bn()), 0),
    "forward called": (lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.bn.forward(x),
                                     conv=conv(), bn=bn()), 0),
    "statistics used too": (lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.bn.running_var.sum(),
                                          conv=conv(), bn=bn()), 0),
    "other weights": (lambda: Calls(lambda m, x: m.bn(functional_call(
        m.conv, {"weight": m.conv.weight.detach() * 2}, (x,))), conv=conv(), bn=bn()), 0),
    "parametrized normalization": (lambda: nn.Sequential(conv(), parametrized(bn())), 1),
    "weight used too": (lambda: Calls(lambda m, x: m.bn(m.conv(x)) + m.conv.weight.sum(),
                                      conv=conv(), bn=bn()), 0),
    "cat": (lambda: Calls(lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)),
                          a=conv(), b=conv(), bn=nn.BatchNorm2d(8)), 1),
    "cat with the input": (lambda: Calls(lambda m, x: m.bn(torch.cat([m.a(x), x], 1)),
                                         a=conv(), bn=nn.BatchNorm2d(8)), 0),
    "sum": (lambda: Calls(lambda m, x: m.bn(m.a(x) + m.b(x)), a=conv(), b=conv(), bn=bn()), 1),
    "transposed": (lambda: Calls(lambda m, x: m.bn(m.l(x.flatten(2).mT).mT),
                                 l=nn.Linear(4, 5), bn=nn.BatchNorm1d(5)), 1),
    "swapped axes": (lambda: Calls(lambda m, x: m.bn(m.conv(x).transpose(1, 2)),
                                   conv=nn.Conv2d(4, 7, 1), bn=nn.BatchNorm2d(6)), 0),
    "part of the channels": (lambda: Calls(lambda m, x: m.bn(m.conv(x)[:, :4]),
                                           conv=nn.Conv2d(4, 6, 1), bn=bn()), 1),
    "indices": (lambda: Calls(lambda m, x: (lambda y, i: (m.bn(y), i))(
        *F.max_pool2d(m.conv(x), 2, return_indices=True)), conv=conv(), bn=bn()), 0),
    "not reached": (lambda: Calls(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=bn(),
                                  a=conv(), b=bn()), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.filterwarnings("ignore:fold changed nothing")
def test_traps(name: str) -> None:
    make, folded = TRAPS[name]
    model = settle(make()).double()
    x = torch.randn(2, 4, 6, 7).double()
    handle = check(model, x, folded, torch.randn(3, 4, 6, 7).double())
    assert all(row.why for row in handle.skipped)
    # None depends on its check: they are recognised.
    assert not any("folded, it" in row.why for row in handle.skipped), handle
    if name == "output returned":
        assert "the output of conv is seen by the model's output" in str(handle)
    if name == "not reached":
        assert "the example does not reach it" in str(handle) and "not reached" in str(handle)


def test_tied_and_computed_weights_are_left() -> None:
    tied = nn.Sequential(conv(), bn(), nn.ReLU(), conv(), bn())
    tied[3].weight = tied[0].weight
    computed = [
        nn.utils.parametrizations.weight_norm(conv()),
        nn.utils.parametrizations.spectral_norm(conv()),
        prune.l1_unstructured(conv(), "weight", 0.5),
    ]
    for model in (tied, *(nn.Sequential(c, bn()) for c in computed)):
        with pytest.warns(UserWarning, match="fold changed nothing, and skipped"):
            check(settle(model).double(), torch.randn(IMAGES).double(), 0)


def test_weights_that_share_memory_alone_are_not_written_to() -> None:
    model = settle(nn.Sequential(conv(), bn(), nn.ReLU(), conv(), bn())).double()
    model[3].weight = nn.Parameter(model[0].weight.data)
    check(model, torch.randn(IMAGES).double(), 2)


class SamePadding(nn.Conv2d):
    """A convolution with its own forward, as ports from TensorFlow have."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


class Biasless(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


def test_convolutions_with_their_own_forward() -> None:
    x = torch.randn(IMAGES).double()
    check(seq(SamePadding(4, 4, 2), bn()).double(), x, 1)
    for cls, why in ((Standardized, "computes its weights"), (Biasless, "folded, it differs")):
        with pytest.warns(UserWarning, match="fold changed nothing"):
            handle = check(seq(cls(4, 4, 1, bias=False), bn()).double(), x, 0)
        assert why in handle.skipped[0].why


@pytest.mark.parametrize("act", ["relu", "relu6", "silu", "gelu", ("leaky_relu", 0.2)])
def test_activation_of_a_layer_remains(act: Any) -> None:
    model = seq(nn.Conv2d(4, 4, 3), nk.BatchNorm2d(4, act=act)).double()
    x = torch.randn(IMAGES).double()
    check(model, x, 1)
    nk.fold(model, x)
    assert type(model[1]).__module__.startswith("torch.nn")
    assert not model[1].training and not list(model[1].parameters())


def test_residual_of_a_layer_remains() -> None:
    model = Calls(lambda m, x: m.bn(m.conv(x), residual=x), conv=conv(),
                  bn=nk.BatchNorm2d(4, act="relu"))  # fmt: skip
    check(settle(model).double(), torch.randn(IMAGES).double(), 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    model = seq(nn.Conv2d(4, 4, 3, bias=False), bn(), nk.Scale(4)).to(dtype)
    x = torch.randn(IMAGES).to(dtype)
    exact = copy.deepcopy(model).double()
    nk.fold(exact, x.double())
    handle = nk.fold(model, x)
    assert len(handle.changed) == 2 and model[0].bias.dtype == dtype
    for name in ("weight", "bias"):
        assert torch.equal(getattr(model[0], name), getattr(exact[0], name).to(dtype))
    assert_same(outputs(model, x).double(), outputs(exact, x.double()), 4 * torch.finfo(dtype).eps)


def test_weights_that_would_overflow_are_left() -> None:
    model = seq(conv(), bn()).half()
    model[1].running_var.fill_(0)
    model[1].eps = 1e-12
    with pytest.warns(UserWarning, match="too large for torch.float16"):
        nk.fold(model, torch.randn(IMAGES).half())


def test_memory_format_and_who_holds_the_weights() -> None:
    model = seq(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).to(memory_format=torch.channels_last)
    parameter, before = model[0].weight, model.state_dict()
    values = {k: v.clone() for k, v in before.items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    nk.fold(model, torch.randn(IMAGES))
    assert model[0].weight is parameter is optimizer.param_groups[0]["params"][0]
    assert parameter.is_contiguous(memory_format=torch.channels_last)
    # A state dict taken before is not written to.
    assert all(torch.equal(before[k], v) for k, v in values.items())


def test_undo_after_the_model_was_moved_and_after_training() -> None:
    model = seq(nn.Conv2d(4, 4, 3), bn())
    before = copy.deepcopy(model).double()
    handle = nk.fold(model, torch.randn(IMAGES))
    model.double()
    handle.undo()
    x = torch.randn(IMAGES).double()
    assert model[1].running_mean.dtype == torch.float64 and torch.equal(model(x), before(x))
    handle = nk.fold(model, x)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.warns(UserWarning, match="undo of fold skipped 1 .* the weights of 0 were changed"):
        handle.undo()


def test_state_dict_exports_and_pickles_after_folding() -> None:
    x = torch.randn(IMAGES)
    model = seq(nn.Conv2d(4, 4, 3, bias=False), nk.BatchNorm2d(4, act="relu"), nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4))  # fmt: skip
    y = outputs(model, x)
    nk.fold(model, x)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [
        copy.deepcopy(model),
        torch.load(file, weights_only=False),
        torch.jit.script(model),
        torch.jit.trace(model, x),
        torch.fx.symbolic_trace(model),
        torch.export.export(model, (x,)).module(),
    ]
    for other in others:
        with torch.no_grad():
            assert_same(other(x), y, 1e-5)


def test_a_frozen_layer_and_its_mode_come_back() -> None:
    model = seq(nn.Conv2d(4, 4, 3), nk.BatchNorm2d(4))
    nk.freeze(model)
    check(model, torch.randn(IMAGES), 1)
    handle = nk.fold(model, torch.randn(IMAGES))
    model.train()
    handle.undo()
    assert not model[1].training and model.training
    nk.unfreeze(model)
    assert model[1].training


@pytest.mark.parametrize("kind", ["dict", "tuple", "forward", "integers"])
def test_examples(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv, self.bn = (
                nn.Embedding(5, 4),
                nn.Conv1d(4, 4, 1),
                nn.BatchNorm1d(4),
            )

        def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
            x = self.embed(ids).mT
            y = self.bn(self.conv(x))
            return {"y": y if mask is None else y * mask}

    ids, mask = torch.randint(5, (2, 7)), torch.ones(2, 1, 7)
    example, forward = {
        "dict": ({"ids": ids, "mask": mask, "other": 3}, None),
        "tuple": ((ids, "labels"), None),
        "forward": ((ids, mask), lambda model, batch: model(*batch)["y"]),
        "integers": (ids, None),
    }[kind]
    assert len(nk.fold(settle(Net()), example, forward=forward).changed) == 1


@pytest.mark.filterwarnings("ignore:fold changed nothing")
def test_random_networks_are_folded_exactly_or_not_at_all() -> None:
    folded = 0
    for seed in range(40):
        net = RandomNet(seed)
        x, other = (torch.randn(n, net.channels[0], 6, s).double() for n, s in ((2, 6), (3, 7)))
        try:
            net(x), net(other)
        except RuntimeError:  # too small for a kernel
            continue
        handle = check(net, x, len(nk_fold_count(net, x)), other)
        # The check of each fold is for what the search cannot know; here it can.
        assert not any("folded, it" in row.why for row in handle.skipped), (seed, handle)
        folded += len(handle.changed)
    assert folded > 20


def nk_fold_count(net: nn.Module, x: Tensor) -> tuple[Any, ...]:
    handle = nk.fold(net, x)
    handle.undo()
    return handle.changed
