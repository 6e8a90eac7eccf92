"""average_buffers over gloo: statistics gathered apart become one, the same bits everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.statistics import average_buffers
from tests.few import few
from tests.statistics import distributed_worker
from tests.together import together


def merged(states: list[dict[str, Tensor]], layer: str, weights: list[float]) -> list[Tensor]:
    """Mean and total variance, straight from their definition in float64."""
    w = torch.tensor(weights, dtype=torch.float64).view(-1, 1) / sum(weights)
    means, variances = (
        torch.stack([s[f"{layer}.running_{what}"].double() for s in states])
        for what in ("mean", "var")
    )
    mean = (w * means).sum(0)
    between = 0 if layer == "instance" else (means - mean) ** 2
    return [mean, (w * (variances + between)).sum(0)]


@pytest.mark.parametrize(
    "counts",
    few([[7, 7], [9, 2], [5, 0], [4, 1, 30]], lambda counts: counts in ([5, 0], [4, 1, 30])),
    ids=str,
)
def test_ranks_agree_bitwise_on_total_variance(counts: list[int], tmp_path: Path) -> None:
    results = together(distributed_worker, counts, "average", tmp_path)
    before = [r["before"] for r in results]
    after = results[0]["after"]
    for result in results:
        assert list(result["after"]) == list(after)
        for key, value in result["after"].items():
            own = result["before"][key]
            assert value.dtype == own.dtype and torch.equal(result["undone"][key], own)
            if key.startswith("frozen."):
                assert torch.equal(value, own)
            else:
                assert torch.equal(value, after[key]), key
        assert "average_buffers: 5 changed, 1 skipped" in result["text"]
        assert "frozen" in result["text"]
    exponential = [1 - 0.9**c for c in counts]
    for layer, weights in {
        "exponential": exponential, "debiased": exponential, "cumulative": counts,
        "instance": [1] * len(counts),
    }.items():  # fmt: skip
        mean, var = merged(before, layer, weights)
        torch.testing.assert_close(after[f"{layer}.running_mean"], mean.float())
        torch.testing.assert_close(after[f"{layer}.running_var"], var.float(), rtol=1e-5, atol=0)
        if layer != "instance":
            assert int(after[f"{layer}.num_batches_tracked"]) == max(counts)
    # Each bank by itself: processes 0 and 2 have seen the first, process 1 the second.
    for bank in (0, 1):
        those = [r for r in range(len(counts)) if r % 2 == bank and counts[r]]
        if len(those) == 1:
            for what in ("mean", "var"):
                key = f"domains.running_{what}"
                torch.testing.assert_close(after[key][bank], before[those[0]][key][bank])
    seen = [max((c for r, c in enumerate(counts) if r % 2 == bank), default=0) for bank in (0, 1)]
    assert after["domains.num_batches_tracked"].tolist() == seen


def test_only_the_group_is_averaged(tmp_path: Path) -> None:
    *pair, third = together(distributed_worker, [3, 4, 5], "pair", tmp_path)
    for key, value in pair[0]["after"].items():
        assert key.startswith("frozen.") or torch.equal(value, pair[1]["after"][key])
    for key, value in third["before"].items():
        assert torch.equal(value, third["undone"][key])


def test_ddp_broadcast_keeps_first_rank_only(tmp_path: Path) -> None:
    """By default the first process's share is remembered, and of the others nothing."""
    results = together(distributed_worker, [30, 30], "broadcast", tmp_path)
    shares = [torch.cat(distributed_worker.batches(rank, 30)).double() for rank in (0, 1)]
    whole = torch.cat(shares).transpose(0, 1).flatten(1)
    for result in results:
        lost, kept = result["broadcast True"], result["broadcast False"]
        first = shares[0].mean((0, 2, 3))
        weight = 1 - 0.9**30  # the start has not faded wholly in thirty batches
        if result is results[0]:
            assert float((lost["running_mean"] / weight - first).abs().max()) < 1
        assert float((lost["running_mean"] / weight - whole.mean(1)).abs().min()) > 1
        assert float((kept["running_mean"] / weight - whole.mean(1)).abs().max()) < 0.2
        # Within 1 and 4, between 2.5 squared; what is left of the start blows up no more than 4 %.
        assert 0.9 < float((kept["running_var"] / whole.var(1)).mean()) < 1.1
        assert float((lost["running_var"] / whole.var(1)).max()) < 0.5


def test_failure_on_one_rank_changes_nothing(tmp_path: Path) -> None:
    first, second = together(distributed_worker, [1, 1], "failures", tmp_path)
    for result in (first, second):
        nan, sizes, _, exceeds = result["errors"]
        assert "NaN or infinity in cumulative of process 1" in nan and "normkit.recalibrate" in nan
        assert "other names and sizes" in sizes
        assert "3.6e+09 for torch.float16" in exceeds
        assert torch.equal(result["apart"]["running_var"], torch.ones(3).half())
        torch.testing.assert_close(
            result["undone"], result["before"], rtol=0, atol=0, equal_nan=True
        )
    assert "a failure in process 1" in first["errors"][2]
    assert "a layer with running statistics that is not frozen" in second["errors"][2]


def test_batch_statistics_of_sync_layers_span_ranks(tmp_path: Path) -> None:
    for result in together(distributed_worker, [1, 1], "scope", tmp_path):
        assert result["equal"] and not result["alone"] and not result["moved"]


def test_single_process() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=0.0))
    handle = average_buffers(model)
    assert not handle.changed and [row.name for row in handle.skipped] == ["1"]
    for wrong, error in ((nn.ReLU(), nk.StatisticsError), ([model], nk.TypeMismatchError)):
        with pytest.raises(error, match="Fix: "):
            average_buffers(wrong)  # type: ignore[arg-type]
    with pytest.raises(nk.OptionError, match="not initialized"):
        average_buffers(model, process_group="a group")
