"""Other libraries' batch normalization across processes or devices.

Each normalizes axis 1 of its input, in training by the moments of all devices.
"""

from normkit.nn.stats_spec import StatsSpec, register_by_name

for rank in ("1d", "2d", "3d"):
    for module in (
        "mmdet3d.models.layers.norm",
        "mmdet3d.ops.norm",
        "pytorchvideo.layers.batch_norm",
    ):
        register_by_name(f"{module}.NaiveSyncBatchNorm{rank}", StatsSpec(momentum="momentum"))
for name in (
    "apex.parallel.sync_batchnorm.SyncBatchNorm",
    "detectron2.layers.batch_norm.NaiveSyncBatchNorm",
    "mmcv.ops.sync_bn.SyncBatchNorm",
    # From before torch.nn.SyncBatchNorm; many repositories have a copy.
    "sync_batchnorm.batchnorm._SynchronizedBatchNorm",
):
    register_by_name(name, StatsSpec(momentum="momentum"))

# Its option says that the channels come last.
register_by_name(
    "apex.parallel.optimized_sync_batchnorm.SyncBatchNorm",
    StatsSpec(
        values=lambda layer, x: x.movedim(-1, 1) if layer.channel_last else x, momentum="momentum"
    ),
)
