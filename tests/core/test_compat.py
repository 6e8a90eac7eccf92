"""Releases of torch: what an older one lacks is made up for, in one place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import normkit as nk
from normkit import compat

PACKAGE = Path(nk.__file__).parent
# A release asked for, or a name asked for before it is used.
ASKS = re.compile(r"torch\.__version__|torch\.version|TORCH_VERSION|(get|has)attr\(torch")
# Which torch the kernels were built for, and with which a run, a page or a benchmark was made.
RECORDS = ("kernels/cpu/__init__.py", "bench/", "lab/", "report/live/record.py")


def test_releases_are_asked_for_in_one_file() -> None:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("kernels/cpu/*.h"), *PACKAGE.rglob("*.cpp")]
    asking = {str(path.relative_to(PACKAGE)) for path in files if ASKS.search(path.read_text())}
    # An installed package has no headers.
    asking.discard("kernels/cpu/torch_versions.h")
    assert {name for name in asking if not name.startswith(RECORDS)} == {"compat.py"}


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("2.6.0", ""),
        ("2.14.1+cpu", ""),
        ("2.5.1", "torch 2.5.1 is older than"),
        ("2.16.0.dev20270101", "torch 2.16.0.dev20270101 is newer than"),
        ("3.0", "torch 3.0 is newer than"),
        ("parrot", ""),  # of a build of one's own
    ],
)
def test_untested_releases(version: str, says: str) -> None:
    note = compat.untested(version)
    assert note.startswith(says) and bool(note) == bool(says)


def test_hooks_of_all_modules() -> None:
    """Both answers, torch's own and the one for a torch without it."""
    for ask in (compat.has_global_hooks, compat._any_global_hook):
        for register in (
            torch_module.register_module_forward_hook,
            torch_module.register_module_forward_pre_hook,
            torch_module.register_module_full_backward_pre_hook,
        ):
            assert not ask()
            handle = register(lambda *_: None)
            assert ask()
            handle.remove()
        handle = torch_module.register_module_buffer_registration_hook(lambda *_: None)
        assert not ask()
        handle.remove()


@pytest.fixture
def without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the classes of ``torch.nn`` the constructors and resets that they had before 2.12."""
    monkeypatch.setattr(compat, "_TAKES_BIAS", False)

    def no_bias(init: Callable[..., None]) -> Callable[..., None]:
        def former(self: nn.Module, *args: Any, **options: Any) -> None:
            assert "bias" not in options
            init(self, *args, **options)

        return former

    def reset(self: Any) -> None:
        if hasattr(self, "reset_running_stats"):
            self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    norms = nn.modules.batchnorm
    monkeypatch.setattr(norms._NormBase, "reset_parameters", reset)
    monkeypatch.setattr(nn.GroupNorm, "reset_parameters", reset)
    make = norms._LazyNormBase.initialize_parameters

    def initialize(self: Any, input: Tensor) -> None:
        assert not self.affine or isinstance(self.bias, nn.UninitializedParameter)
        make(self, input)

    monkeypatch.setattr(norms._LazyNormBase, "initialize_parameters", initialize)
    for cls in (nn.GroupNorm, nn.LazyBatchNorm1d, nn.LazyInstanceNorm2d):
        monkeypatch.setattr(cls, "__init__", no_bias(cls.__init__))


@pytest.mark.usefixtures("without_bias")
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: nk.BatchNorm1d(4, **o),
        lambda **o: nk.SyncBatchNorm(4, **o),
        lambda **o: nk.GhostBatchNorm1d(4, 2, **o),
        lambda **o: nk.DomainBatchNorm1d(4, 1, **o),
        lambda **o: nk.InstanceNorm1d(4, affine=True, track_running_stats=True, **o),
        lambda **o: nk.GroupNorm(2, 4, **o),
    ],
)
def test_bias_where_torch_has_none(make: Callable[..., nn.Module]) -> None:
    """β is None as from 2.12 on, also after a reset; with β nothing differs."""
    for bias in (True, False):
        layer: Any = make(bias=bias)
        assert (layer.bias is None) != bias and layer.weight is not None
        assert list(layer.state_dict())[: 1 + bias] == ["weight", "bias"][: 1 + bias]
        nn.init.normal_(layer.weight)
        layer.reset_parameters()
        assert bool((layer.weight == 1).all()) and (layer.bias is None) != bias
        assert layer(torch.randn(6, 4, 3)).shape == (6, 4, 3)


@pytest.mark.usefixtures("without_bias")
@pytest.mark.parametrize(
    ("make", "shape"),
    [(nk.nn.LazyBatchNorm1d, (6, 4)), (nk.nn.LazyInstanceNorm2d, (6, 4, 3, 3))],
)
@pytest.mark.parametrize("affine", [True, False])
def test_lazy_bias_where_torch_has_none(make: Any, shape: tuple[int, ...], affine: bool) -> None:
    for bias in (True, False):
        layer = make(affine=affine, bias=bias)
        assert layer(torch.randn(shape)).shape == shape
        assert (layer.bias is not None) == (affine and bias)
        assert (layer.weight is not None) == affine
        assert type(layer) is make.cls_to_become
        if affine and bias:
            assert bool((layer.bias == 0).all())
