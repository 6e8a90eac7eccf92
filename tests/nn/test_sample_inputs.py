"""PyTorch's own sample inputs for its normalization modules, through ours: everything equal."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.compat import release

NAMES = [
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm", "RMSNorm",
    "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
]  # fmt: skip


@pytest.fixture(scope="module")
def infos() -> dict[str, Any]:
    """PyTorch's descriptions of its normalization modules; importing them takes seconds."""
    from torch.testing._internal.common_modules import module_db

    names = {info.module_cls.__name__: info for info in module_db}
    return {name: info for name, info in names.items() if "Norm" in name and hasattr(nk, name)}


def _samples(info: Any, training: bool) -> list[Any]:
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    )
    return list(inputs)


def test_there_are_as_many_as_pytorch_has(infos: dict[str, Any]) -> None:
    # 126 in PyTorch 2.13, 104 in 2.9; a release with more adds them by itself.
    modes, least = (True, False), 126 if release(str(torch.__version__)) >= (2, 13) else 100
    assert sum(len(_samples(info, mode)) for info in infos.values() for mode in modes) >= least
    assert set(infos) == set(NAMES)


@pytest.mark.filterwarnings("ignore:input's size at dim:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_all_equal(name: str, training: bool, infos: dict[str, Any]) -> None:
    for sample in _samples(infos[name], training):
        _check_sample(infos[name].module_cls, training, sample)


def _check_sample(theirs: type[nn.Module], training: bool, sample: Any) -> None:
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    a = theirs(*args, **kwargs).double().train(training)
    b = getattr(nk, theirs.__name__)(*args, **kwargs).double().train(training)
    for p in a.parameters():
        nn.init.normal_(p)
    b.load_state_dict(a.state_dict())
    assert isinstance(b, theirs)
    assert repr(a) == repr(b)

    xa = list(sample.forward_input.args)
    xb = [x.detach().clone().requires_grad_(x.requires_grad) for x in xa]
    ya, yb = a(*xa), b(*xb)
    torch.testing.assert_close(yb, ya)
    assert yb.stride() == ya.stride()

    # Buffers and everything else that is saved.
    sa, sb = a.state_dict(), b.state_dict()
    assert list(sa) == list(sb)
    for key in sa:
        assert sa[key].dtype == sb[key].dtype
        torch.testing.assert_close(sb[key], sa[key])

    # Gradients by the hand-written backward, and through a second derivative.
    dy = torch.randn_like(ya).requires_grad_()
    ia, ib = [*xa, *a.parameters()], [*xb, *b.parameters()]
    ga = torch.autograd.grad(ya, ia, dy, retain_graph=True)
    gb = torch.autograd.grad(yb, ib, dy, retain_graph=True)
    for got, expected in zip(gb, ga, strict=True):
        torch.testing.assert_close(got, expected)
    ha = torch.autograd.grad(ya, ia, dy, create_graph=True)
    hb = torch.autograd.grad(yb, ib, dy, create_graph=True)
    va = [torch.randn_like(g) for g in ha]
    da = torch.autograd.grad(ha, [*ia, dy], va, allow_unused=True)
    db = torch.autograd.grad(hb, [*ib, dy], va, allow_unused=True)
    for got, expected in zip(db, da, strict=True):
        if expected is None:
            assert got is None or not got.any()
        elif got is None and release(str(torch.__version__)) >= (2, 14):
            assert not expected.any()  # zeros from 2.14 on, None before
        else:
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_errors(name: str, infos: dict[str, Any]) -> None:
    from torch.testing._internal.common_modules import ModuleErrorEnum

    info, ours = infos[name], getattr(nk, name)
    if info.module_error_inputs_func is None:
        return
    for training in (True, False):
        for case in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
        ):
            made = case.module_error_input.constructor_input
            if case.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(case.error_type, match=case.error_regex):
                    ours(*made.args, **made.kwargs)
            elif training:
                layer = ours(*made.args, **made.kwargs)
                with pytest.raises(case.error_type, match=case.error_regex):
                    layer(*case.module_error_input.forward_input.args)


def test_error_types_are_those_of_pytorch() -> None:
    """Where torch.nn raises ValueError for one input and RuntimeError for another, so do we."""
    cases: list[tuple[Any, tuple[Any, ...], torch.Tensor]] = [
        ("BatchNorm2d", (3,), torch.ones(2, 3, 4)),
        ("BatchNorm2d", (3,), torch.ones(2, 4, 4, 4)),
        ("BatchNorm2d", (3,), torch.ones(1, 3, 1, 1)),
        ("BatchNorm1d", (3,), torch.ones(2, 3, 4, 4)),
        ("BatchNorm1d", (3,), torch.ones(2, 3, dtype=torch.long)),
        ("GroupNorm", (2, 4), torch.ones(2, 6, 3)),
        ("GroupNorm", (2, 4), torch.ones(4)),
        ("LayerNorm", (4,), torch.ones(2, 3)),
        ("RMSNorm", (4,), torch.ones(2, 3)),
        ("InstanceNorm2d", (3,), torch.ones(2, 3, 1, 1)),
        ("InstanceNorm1d", (3,), torch.ones(2, 2, 3, 3)),
    ]
    for name, args, x in cases:
        with pytest.raises(Exception) as theirs:
            getattr(nn, name)(*args)(x)
        with pytest.raises(type(theirs.value)) as ours:
            getattr(nk, name)(*args)(x)
        assert isinstance(ours.value, nk.NormkitError)
        assert re.search(r"; received .* Fix: ", str(ours.value), re.DOTALL), name
