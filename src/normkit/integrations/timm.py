"""timm's layers: normalization, then dropout and activation, in two homes."""

from __future__ import annotations

import dataclasses

from normkit.nn import BatchNorm2d, FrozenBatchNorm2d, GroupNorm, LayerNorm, LayerNorm2d, RMSNorm
from normkit.nn.norm_spec import NormSpec, register_norm
from normkit.nn.rmsnorm2d import RMSNorm2d
from normkit.nn.stats_spec import StatsSpec, register_by_name

__all__: list[str] = []

# The second until 0.8, and as names for the first since.
HOMES = ("timm.layers", "timm.models.layers")

BATCH = NormSpec(BatchNorm2d, like_torch=True)
FROZEN = NormSpec(FrozenBatchNorm2d)
# timm.layers.set_fast_norm() makes layers that treat autocast in their own way: the comparison
# finds them out.
GROUP = NormSpec(GroupNorm, like_torch=True)
ROWS = NormSpec(LayerNorm, shape="normalized_shape", like_torch=True)
PIXELS = NormSpec(LayerNorm2d, shape="normalized_shape", like_torch=True, channels_last=True)
# Computed in float32, or by hand, and returned in the input's type: under autocast unlike torch.nn.
ROWS_WIDE = NormSpec(LayerNorm, shape="normalized_shape")
PIXELS_WIDE = NormSpec(LayerNorm2d, shape="normalized_shape", channels_last=True)
RMS_ROWS = NormSpec(RMSNorm, bias=None, shape="normalized_shape")
RMS_PIXELS = NormSpec(RMSNorm2d, bias=None, shape="normalized_shape")

PLAIN = {
    "GroupNorm": GROUP, "GroupNorm1": GROUP,
    "LayerNorm": ROWS, "LayerNormFp32": ROWS_WIDE,
    "LayerNorm2d": PIXELS, "LayerNorm2dFp32": PIXELS_WIDE,
    "LayerNormExp2d": PIXELS_WIDE,
    "RmsNorm": RMS_ROWS, "RmsNormFp32": RMS_ROWS,
    "RmsNorm2d": RMS_PIXELS, "RmsNorm2dFp32": RMS_PIXELS,
}  # fmt: skip
WITH_ACT = {
    "BatchNormAct2d": BATCH, "FrozenBatchNormAct2d": FROZEN,
    "GroupNormAct": GROUP, "GroupNorm1Act": GROUP,
    "LayerNormAct": ROWS, "LayerNormActFp32": ROWS_WIDE,
    "LayerNormAct2d": PIXELS, "LayerNormAct2dFp32": PIXELS_WIDE,
    "RmsNormAct": RMS_ROWS, "RmsNormActFp32": RMS_ROWS,
    "RmsNormAct2d": RMS_PIXELS, "RmsNormAct2dFp32": RMS_PIXELS,
}  # fmt: skip

NOT_CENTRED = "divides by the deviation without subtracting the mean, as no layer here does"
FILTER = "construct the model with normkit.FilterResponseNorm2d"
EVO = "an EvoNorm, which normkit has no layer for"
OTHERS = {
    "norm_act.SyncBatchNormAct": 'pools over processes: use convert(model, "sync") in its place',
    "split_batchnorm.SplitBatchNorm2d": "has statistics for each part of the batch",
    "grn.GlobalResponseNorm": "compares channels by their norms, as no layer here does",
    "inplace_abn.InplaceAbn": "its own kernel writes over its input",
    "filter_response_norm.FilterResponseNormTlu2d": FILTER,
    "filter_response_norm.FilterResponseNormAct2d": FILTER,
    **{f"norm.SimpleNorm{form}": NOT_CENTRED for form in ("", "Fp32", "2d", "2dFp32")},
    **{
        f"evo_norm.EvoNorm2d{form}": EVO
        for form in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a")
    },
}

for home in HOMES:
    for name, spec in PLAIN.items():
        register_norm(f"{home}.norm.{name}", spec)
    for name, spec in WITH_ACT.items():
        with_act = dataclasses.replace(spec, then=("drop", "act"))
        register_norm(f"{home}.norm_act.{name}", with_act)
    for name, why in OTHERS.items():
        register_norm(f"{home}.{name}", why=why)
    for name in (
        "norm_act.BatchNormAct2d",
        "norm_act.SyncBatchNormAct",
        "inplace_abn.InplaceAbn",
    ):
        register_by_name(f"{home}.{name}", StatsSpec(momentum="momentum"))
