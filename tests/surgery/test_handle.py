"""The table that a handle prints, before and after it is undone."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import normkit as nk


def test_repr_names_fused_activations_and_says_when_undone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    handle = nk.accelerate(model)
    shown = repr(handle)
    head, row, *_ = shown.splitlines()
    assert head == "accelerate: 1 changed, 1 fused, 0 skipped"
    assert row == "  1  nn.BatchNorm2d → normkit.BatchNorm2d, fused with 2"
    handle.undo()
    assert repr(handle) == f"undone: {shown}"
    handle.undo()
    assert repr(handle) == f"undone: {shown}"


def test_repr_of_nothing_to_change_says_when_undone() -> None:
    handle = nk.freeze(nn.Linear(1, 1))
    handle.undo()
    assert repr(handle) == "undone: 0 changed by freeze: nothing to change"


def exported() -> nn.Module:
    layer = nn.Sequential(nn.BatchNorm2d(3)).eval()
    return torch.export.export(layer, (torch.randn(2, 3, 4, 4),), strict=False).module()


def test_nothing_changed_comes_first_with_the_reasons() -> None:
    model = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3)])
    model[0].forward = model[1].forward = lambda x: x  # type: ignore[method-assign]
    model.append(torch.jit.script(nn.BatchNorm2d(3)))
    with pytest.warns(UserWarning, match=r"freeze changed nothing, and skipped 0 \(nn.BatchNorm2d"):
        handle = nk.freeze(model)
    head, *rows = repr(handle).splitlines()
    assert head == "0 changed by freeze: 2 × its forward was replaced; scripted"
    assert rows[0] == "  0  nn.BatchNorm2d skipped: its forward was replaced" and len(rows) == 3


def test_text_is_plain_also_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may go to a log file from there."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for handle in (nk.freeze(nn.ReLU()), nk.freeze(nn.BatchNorm1d(2))):
        assert "\x1b" not in str(handle) and str(handle) == repr(handle)


@pytest.mark.parametrize("terminal", [True, False])
def test_rich_prints_nothing_changed_in_yellow_on_a_terminal(terminal: bool) -> None:
    colours = "standard" if terminal else "auto"
    options: Any = {"force_terminal": terminal, "color_system": colours, "no_color": False}
    for model, yellow in ((nn.ReLU(), terminal), (nn.BatchNorm1d(2), False)):
        console = Console(file=(out := io.StringIO()), width=200, **options)
        handle = nk.freeze(model)
        console.print(handle)
        head, _, rows = str(handle).partition("\n")
        expected = f"\x1b[33m{head}\x1b[0m" if yellow else head
        assert out.getvalue() == "\n".join([expected, *rows.splitlines()]) + "\n"


TOOLS = {
    "freeze": nk.freeze,
    "convert": lambda m: nk.convert(m, "renorm"),
    "scale_momentum": lambda m: nk.scale_momentum(m, 2),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_warning_where_nothing_could_be_changed(tool: str) -> None:
    with pytest.warns(UserWarning, match=rf"{tool} changed nothing, and skipped .*graph") as w:
        TOOLS[tool](exported())
    assert w[0].filename == __file__
    # Not where there is nothing to change, or where some was or is changed already.
    for model in (nn.ReLU(), nn.Sequential(nn.BatchNorm2d(3), exported())):
        assert TOOLS[tool](model)
    if tool != "scale_momentum":
        assert not TOOLS[tool](model).changed
    assert not nk.freeze(nk.FrozenBatchNorm2d(3)).changed


def test_undo_warns_of_a_layer_changed_since_at_the_caller() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    handle = nk.accelerate(model)
    nk.convert(model, "renorm")
    with pytest.warns(UserWarning, match="undo of accelerate skipped 0") as w:
        handle.undo()
    assert w[0].filename == __file__


def test_undo_goes_on_after_an_error_of_other_code() -> None:
    class Guarded(nn.BatchNorm1d):
        locked = False

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "momentum" and self.locked:
                raise PermissionError
            super().__setattr__(name, value)

    model = nn.Sequential(nn.BatchNorm1d(2), Guarded(2), nn.BatchNorm1d(2))
    handle = nk.scale_momentum(model, 4)
    model[1].locked = True
    with pytest.raises(PermissionError):
        handle.undo()
    del model[0].momentum  # no longer there to be restored
    with pytest.warns(UserWarning, match="skipped 0 .*its momentum was changed again"):
        handle.undo()
    assert model[2].momentum == 0.1
