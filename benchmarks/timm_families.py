"""Accelerate one model of each of many families of timm, and compare it with the original.

    python benchmarks/timm_families.py                    # a table; ten minutes
    python benchmarks/timm_families.py vit_tiny_patch16_224
    python benchmarks/timm_families.py --others           # of torchvision and transformers
    python benchmarks/timm_families.py --time --write     # times, into docs/other-libraries.md

Needs timm and its torchvision, for the torch that is installed, and transformers for ``--others``;
weights are random and nothing is downloaded. Each model has random γ, β and running statistics.
Columns: normalization layers and how many of them the kernels compute, with how many activations;
the largest relative difference from the original, of the output in training and evaluation, of all
gradients and of the updated statistics, both in float64; and the error in float32 against the
original in float64, ours and the original's own. ``undo()`` must restore classes, attributes and
outputs exactly.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.stopwatch import time_interleaved

# A file beside this one, however this one is run.
sys.path.insert(0, str(Path(__file__).parent))
import other_libraries

PAGE = Path(__file__).resolve().parent.parent / "docs" / "other-libraries.md"
# The smallest model of each.
FAMILIES = """
    cait_xxs24_224 coat_tiny convnext_atto convnextv2_atto crossvit_tiny_240
    cs3darknet_s davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small
    efficientformerv2_s0 efficientnet_b0 efficientvit_b0 eva02_tiny_patch14_224 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hgnet_tiny hrnet_w18_small inception_next_atto
    inception_v3 levit_128s mixer_s32_224 mobilenetv3_small_050
    mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 pit_ti_224 poolformer_s12
    poolformerv2_s12 rdnet_tiny regnety_002 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d
    resnet18 resnetv2_50x1_bit rexnetr_100 selecsls42 skresnet18 starnet_s1
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tf_efficientnet_lite0 tinynet_e
    tiny_vit_5m_224 visformer_tiny vit_tiny_patch16_224 ese_vovnet19b_slim_dw xception41
    xcit_nano_12_p16_224
"""
TIMED = """
    efficientnet_b0 mobilenetv3_small_050 regnety_002 densenet121 vit_tiny_patch16_224 convnext_atto
"""
BATCH, SIZE = 4, 96
# Of those that would leave one value per channel and image.
LARGER = {"inception_v3": 160}


class Row(NamedTuple):
    name: str
    layers: int
    changed: int
    fused: int
    skipped: Counter[str]
    outputs: float
    gradients: float
    statistics: float
    ours: float
    theirs: float
    undone: bool


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return the model with random normalization, and an input that it takes."""
    model, x = other_libraries.BUILDERS.get(name, functools.partial(build_timm, name))()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.dim() == 1 and tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator)
                    if key == "running_var":
                        tensor.copy_(0.5 + noise)
                    elif tensor.numel() > 1:
                        tensor.add_(0.2 * noise - 0.1)
    return model, x


def build_timm(name: str) -> tuple[nn.Module, Tensor]:
    try:
        import timm
    except ImportError as error:
        sys.exit(
            f"This program needs timm ({error}). To keep the torch that is installed: "
            "pip install --no-deps timm torchvision safetensors huggingface_hub pyyaml"
        )
    size = SIZE
    try:
        model = timm.create_model(name, pretrained=False, num_classes=10, img_size=size)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except (TypeError, AssertionError, ValueError, RuntimeError):  # takes any size, or one only
        model = timm.create_model(name, pretrained=False, num_classes=10)
        cfg = model.pretrained_cfg
        fixed = cfg.get("fixed_input_size")
        size = cfg["input_size"][-1] if fixed else LARGER.get(name, SIZE)
    return model, torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """Run a training step and an evaluation."""
    torch.manual_seed(0)
    model.train()
    y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad((y * weights).sum(), parameters, allow_unused=True)
    statistics = [b.clone() for b in model.buffers() if b.is_floating_point()]
    with torch.no_grad():
        outputs = [y.detach(), model.eval()(x)]
    return {
        "outputs": outputs,
        "gradients": [g for g in grads if g is not None],
        "statistics": statistics,
    }


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference relative to the norm of each tensor, floored by the mean's."""
    norms = [t.double().norm() for t in theirs]
    floor = torch.stack(norms).mean() * 1e-3 if norms else torch.zeros(())
    pairs = zip(ours, theirs, norms, strict=True)
    return max(
        (float((a.double() - b).norm() / (n + floor + 1e-30)) for a, b, n in pairs), default=0.0
    )


def compare(name: str) -> Row:
    original, x = build(name)
    ours = copy.deepcopy(original)
    classes = [type(m) for m in ours.modules()]
    attributes = [set(vars(m)) for m in ours.modules()]
    keys = list(ours.state_dict())
    handle = nk.accelerate(ours)
    assert list(ours.state_dict()) == keys, f"{name}: other keys"
    wide = copy.deepcopy(original).double()
    wide_x = x.double() if x.is_floating_point() else x
    exact = step(wide, wide_x)
    by_kernels = step(copy.deepcopy(ours).double(), wide_x)
    ours32, theirs32 = (step(copy.deepcopy(m), x) for m in (ours, original))
    error = [
        max(difference(r[k], exact[k]) for k in ("outputs", "gradients"))
        for r in (ours32, theirs32)
    ]
    step(ours, x)
    handle.undo()
    reference = copy.deepcopy(original)
    reference.load_state_dict(ours.state_dict())
    with torch.no_grad():
        same = torch.equal(ours.eval()(x), reference.eval()(x))
    undone = same and classes == [type(m) for m in ours.modules()]
    undone = undone and attributes == [set(vars(m)) for m in ours.modules()]
    skipped = Counter(row.why for row in handle.skipped)
    return Row(
        name, len(handle.changed) + len(handle.skipped), len(handle.changed),
        sum(len(row.fused) for row in handle.changed), skipped,
        *(difference(by_kernels[k], exact[k]) for k in ("outputs", "gradients", "statistics")),
        *error, undone,
    )  # fmt: skip


def call(model: nn.Module, x: Tensor, training: bool) -> None:
    with torch.set_grad_enabled(training):
        y = model.train(training)(x)
    if training:
        leaves = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(y.sum(), leaves, allow_unused=True)


def times(name: str) -> list[str]:
    """Return the cells of a row: a training step and an evaluation, before and after."""
    model, x = build(name)
    ours = copy.deepcopy(model)
    nk.accelerate(ours)
    cells = [name]
    for training in (True, False):
        sides = {
            "ours": functools.partial(call, ours, x, training),
            "theirs": functools.partial(call, model, x, training),
        }
        result = time_interleaved(sides, seconds=12, min_rounds=15)
        ratio, low, high = result.ratio("ours", "theirs")
        before, after = (result.of(side) * 1e3 for side in ("theirs", "ours"))
        cells.append(f"{before:.0f} → {after:.0f} ms, ×{ratio:.2f} [{low:.2f}, {high:.2f}]")
    return cells


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


HEADS = ["model", "layers", "changed", "fused", "left", "outputs", "gradients", "statistics",
         "float32 error", "original's", "undo"]  # fmt: skip


def cells(row: Row) -> list[str]:
    left = "; ".join(f"{n} × {why}" for why, n in row.skipped.items()) or "–"
    numbers = (row.outputs, row.gradients, row.statistics, row.ours, row.theirs)
    return [row.name, str(row.layers), str(row.changed), str(row.fused), left,
            *(f"{v:.0e}" for v in numbers), "exact" if row.undone else "DIFFERS"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="default: one of each family")
    parser.add_argument("--others", action="store_true", help="torchvision's and transformers'")
    parser.add_argument("--time", action="store_true", help="time a few models instead")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.time:
        heads = ["model", f"training step, batch of {BATCH}", "evaluation"]
        text = table(heads, [times(name) for name in options.models or TIMED.split()])
        print(text)
        write("times", text, options.write)
        return
    others = [*other_libraries.BUILDERS]
    rows = measured(options.models or (others if options.others else FAMILIES.split()))
    print(f"\n{total(rows)}")
    text = "\n\n".join([table(HEADS, [cells(row) for row in rows]), total(rows)])
    write("others" if options.others else "families", text, options.write)
    worst = [max(row.outputs, row.gradients, row.statistics) for row in rows]
    if max(worst) > 1e-6 or not all(row.undone for row in rows):
        sys.exit("a model differs from its original")


def write(key: str, text: str, wanted: bool) -> None:
    """Replace one table of the page, if that is ``wanted``."""
    if wanted:
        begin, end = f"<!-- {key}: made by benchmarks/timm_families.py -->", f"<!-- {key} end -->"
        before, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def measured(names: list[str]) -> list[Row]:
    print(table(HEADS, []), flush=True)
    rows = []
    for name in names:
        rows.append(compare(name))
        print("| " + " | ".join(cells(rows[-1])) + " |", flush=True)
    return rows


def total(rows: list[Row]) -> str:
    changed, layers = sum(row.changed for row in rows), sum(row.layers for row in rows)
    return f"{changed} of {layers} layers in {len(rows)} models."


if __name__ == "__main__":
    main()
