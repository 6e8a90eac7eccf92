"""timm's layers with running statistics: batch normalization, then dropout and activation."""

from normkit.nn.stats_spec import StatsSpec, register_by_name

for module in ("timm.layers", "timm.models.layers"):
    register_by_name(f"{module}.norm_act.BatchNormAct2d", StatsSpec(momentum="momentum"))
    register_by_name(f"{module}.norm_act.SyncBatchNormAct", StatsSpec(momentum="momentum"))
    register_by_name(f"{module}.inplace_abn.InplaceAbn", StatsSpec(momentum="momentum"))
