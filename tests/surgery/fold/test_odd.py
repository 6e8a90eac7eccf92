"""Folding odd models: each normalization is folded or named, and outputs and undo are exact."""

from __future__ import annotations

import pytest
import torch

import normkit as nk
from tests.surgery.fold.sweep import settle
from tests.surgery.models import WILD, made
from tests.surgery.test_odd_models import KINDS, anatomy, fitting, norms, rounding, rows

REFUSED = {"compiled", "compiled in place", "DataParallel", "AveragedModel", "lazy"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_folded_or_named(kind: str) -> None:
    model = KINDS[kind]()
    x = fitting(kind, model)
    try:
        with torch.no_grad():
            model(x)  # statistics of a batch
        model.eval()
        y = model(x)
    except (NotImplementedError, RuntimeError):  # an exported graph has a mode of its own
        y = model(x)
    before = anatomy(model)
    try:
        handle = nk.fold(model, x)
    except nk.OptionError:
        assert kind in REFUSED or model.training
        assert anatomy(model) == before
        return
    names, skipped = rows(handle)
    for name, layer in norms(model).items():
        layer_names = {n for n, m in model.named_modules(remove_duplicate=False) if m is layer}
        within = any(name.startswith(f"{row}.") or not row for row in skipped)
        assert layer_names & (names | skipped) or within, (name, handle)
    torch.testing.assert_close(model(x), y, **rounding(x))
    handle.undo()
    assert anatomy(model) == before
    # Observers of quantization change what the next pass computes.
    assert kind == "quantization" or torch.equal(model(x), y)


@pytest.mark.filterwarnings("ignore:fold changed nothing")
@pytest.mark.parametrize("name", WILD)
def test_networks_of_the_wild(name: str) -> None:
    model, x = made(name)
    settle(model)
    y = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    handle = nk.fold(model, x)
    assert not any("folded, it" in row.why for row in handle.skipped), handle
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)
    handle.undo()
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[k], v) for k, v in state.items())
    assert torch.equal(model(x), y)
