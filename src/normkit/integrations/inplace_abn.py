"""InPlace-ABN's layers: batch normalization and activation that store one tensor."""

from normkit.nn.stats_spec import StatsSpec, register_by_name

for name in ("ABN", "InPlaceABN", "InPlaceABNSync"):
    register_by_name(f"inplace_abn.abn.{name}", StatsSpec(momentum="momentum"))
