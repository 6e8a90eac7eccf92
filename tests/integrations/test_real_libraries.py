"""The libraries themselves, where they are installed: no test needs them."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.nn.norm_spec import norm_spec, why_no_norm_spec


def library(name: str) -> Any:
    """Import a library, or skip the test. A broken or unsuitable one raises anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            pytest.skip(f"{name} cannot be imported: {error}")


def check(model: nn.Module, x: Tensor | dict[str, Tensor], read: Callable[[Any], Tensor]) -> None:
    """Compare a training step and an evaluation in float64, and undo."""
    ours = copy.deepcopy(model)
    handle = nk.accelerate(ours)
    assert handle.changed and not handle.skipped
    assert list(ours.state_dict()) == list(model.state_dict())
    results = []
    for m in (ours, model):
        torch.manual_seed(0)
        y = read(m.train()(**x) if isinstance(x, dict) else m.train()(x))
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        parameters = [p for p in m.parameters() if p.requires_grad]
        grads = torch.autograd.grad((y * weights).sum(), parameters, allow_unused=True)
        with torch.no_grad():
            evaluated = read(m.eval()(**x) if isinstance(x, dict) else m.eval()(x))
        results.append([y.detach(), evaluated, *(g for g in grads if g is not None), *m.buffers()])
    for a, b in zip(*results, strict=True):
        floor = 1e-5 * float(b.double().abs().max() + 1)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=floor)
    handle.undo()
    assert [type(m) for m in ours.modules()] == [type(m) for m in model.modules()]


TIMM = "mobilenetv3_small_050 regnetx_002 resnetv2_50x1_bit convnext_atto vit_tiny_patch16_224"


@pytest.mark.parametrize("name", TIMM.split())
def test_timm(name: str) -> None:
    timm = library("timm")
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, pretrained=False, num_classes=5, **options).double()
    check(
        model, torch.randn(3, 3, 32 if options else 64, 32 if options else 64).double(), lambda y: y
    )


@pytest.mark.parametrize("home", ["norm", "norm_act", "evo_norm", "filter_response_norm", "grn"])
def test_every_layer_of_timm_is_known_or_has_a_reason(home: str) -> None:
    library("timm")
    module = library(f"timm.layers.{home}")
    for cls in vars(module).values():
        if (
            isinstance(cls, type)
            and issubclass(cls, nn.Module)
            and cls.__module__ == module.__name__
        ):
            layer = cls(32)
            assert norm_spec(layer) is not None or why_no_norm_spec(layer) is not None, cls


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small"])
def test_torchvision(name: str) -> None:
    models = library("torchvision.models")
    check(
        models.get_model(name, weights=None, num_classes=5).double(),
        torch.randn(3, 3, 64, 64).double(),
        lambda y: y,
    )


def test_frozen_layers_of_torchvisions_detection() -> None:
    utils = library("torchvision.models.detection.backbone_utils")
    model = utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None).double()
    check(
        model,
        torch.randn(2, 3, 64, 64).double(),
        lambda y: torch.cat([v.flatten() for v in y.values()]),
    )


SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Cohere", "Olmo", "Nemotron"])
def test_transformers(name: str) -> None:
    transformers = library("transformers")
    sizes = {**SIZES, "head_dim": 8} if name in ("Gemma2", "Qwen3") else SIZES
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).double()
    check(model, {"input_ids": torch.randint(0, 60, (2, 7))}, lambda y: y.logits)


def test_t5() -> None:
    transformers = library("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    ids = torch.randint(0, 60, (2, 7))
    model = transformers.T5Model(config).double()
    check(model, {"input_ids": ids, "decoder_input_ids": ids}, lambda y: y.last_hidden_state)
