"""Accuracy, parameters and time of networks of several sizes: what C22 measures and draws."""

from __future__ import annotations

import dataclasses
from statistics import median

import torch

from normkit.lab.building import build_model
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import BN, under
from normkit.lab.claims.sweeps import mean_of
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.findings import Chart, Line, Table
from normkit.lab.runs import Run
from normkit.lab.verdicts import interval

__all__ = [
    "CUT",
    "DENSENET",
    "RESNET",
    "SOURCE",
    "Options",
    "counted",
    "epoch_seconds",
    "moving",
    "networks_table",
    "parameters",
    "parameters_chart",
    "population",
    "times",
]

Options = tuple[tuple[str, int], ...]
RESNET, DENSENET, CUT = "ResNet-18", "DenseNet", "ResNet-18, cut"
# The source's own networks.
SOURCE: dict[str, tuple[str, Options]] = {
    RESNET: ("resnet18", ()),
    DENSENET: ("densenet", ()),
    CUT: ("resnet18", (("width", 16),)),
}
# Test accuracy with the moving average after epoch 10, least, median and greatest of about 80
# published builds, 96×96 pixels.
PUBLISHED = {RESNET: (0.814, 0.913, 0.927), DENSENET: (0.406, 0.882, 0.918)}


def parameters(config: RunConfig) -> int:
    """How many the run's model has, counted from the model."""
    spec = spec_of(config.data)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(config, in_channels=spec.shape[0], classes=len(spec.classes))
    return sum(parameter.numel() for parameter in model.parameters())


def population(run: Run) -> float | None:
    """Test accuracy after the last epoch, with population statistics."""
    return under("test_accuracy", run.config.final_evaluations[0])(run)


def moving(run: Run) -> float | None:
    """The same of the same weights, with the moving average."""
    return run.last("test_accuracy")


def epoch_seconds(run: Run) -> float | None:
    """The median time of an epoch: training and evaluation with the moving average."""
    values = [value for value in run.by_epoch("epoch_seconds") if value is not None]
    return median(values) if values else None


def counted(evidence: Evidence, arm: str) -> str:
    configs = [planned.run.config for planned in evidence.planned if planned.arm == arm]
    return f"{parameters(configs[0]):,}" if configs else "unknown"


def times(evidence: Evidence) -> str:
    ours = {
        arm: [value for run in evidence.of(arm) for value in [epoch_seconds(run)] if value]
        for arm in (DENSENET, RESNET)
    }
    if not all(ours.values()):
        return "an unknown multiple of"
    return f"{median(ours[DENSENET]) / median(ours[RESNET]):.1f} times"


def _source(arm: str) -> int:
    """How many parameters the source's own network has."""
    model, options = SOURCE[arm]
    config = RunConfig(
        model=model, model_options=options, norm=BN, size=96, lr=0.1, seed=0,
        train_images=60_000, test_images=10_000, batch_size=256, epochs=10,
    )  # fmt: skip
    return parameters(config)


def parameters_chart(evidence: Evidence) -> Chart | None:
    """Test accuracy of each network, a row each, the one with most parameters first."""
    found: list[tuple[int, str, Line, str]] = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        values = [value for run in runs for value in [population(run)] if value is not None]
        if len(values) < 2:
            continue
        count = parameters(runs[0].config)
        mean, low, high = interval(values)
        line = Line(f"{arm} (mean of {len(values)})", (), (mean,), (low,), (high,), arm=arm)
        found.append((count, f"{arm}: {count:,}", line, f"{arm}, {count:,}: {mean:.3f}"))
    if not found:
        return None
    for arm, (_, middle, _) in PUBLISHED.items():
        count = _source(arm)
        line = Line(f"{arm}, published (median)", (), (middle,), role="published", arm=arm)
        found.append((count, f"{arm}, publ.: {count:,}", line, ""))
    found.sort(key=lambda each: -each[0])
    return Chart(
        key="parameters",
        title="Test accuracy, from many parameters (top) to few",
        x_label="network: parameters",
        y_label="test accuracy",
        lines=tuple(
            dataclasses.replace(line, x=(float(place),))
            for place, (_, _, line, _) in enumerate(found)
        ),
        text=(
            "Test accuracy after the last epoch, with population statistics, of networks with so "
            f"many parameters. {'; '.join(words for *_, words in found if words)}. Whiskers are 95 "
            "% intervals of the mean. Published, moving average, 96×96 pixels: median of the "
            "builds."
        ),
        kind="dots",
        rows=tuple(row for _, row, _, _ in found),
    )


def networks_table(evidence: Evidence) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        rows.append(
            (
                f"{arm}, ours",
                parameters(runs[0].config) if runs else None,
                _rounded(mean_of(runs, population), 4),
                _rounded(mean_of(runs, moving), 4),
                _rounded(_milliseconds(runs), 2),
            )
        )
    for arm, (_, middle, _) in PUBLISHED.items():
        rows.append((f"{arm}, published (median)", _source(arm), None, middle, None))
    return Table(
        "networks",
        "Accuracy, parameters and time: ours (mean over seeds; median time), and published",
        (
            "network",
            "parameters",
            "test accuracy, population statistics",
            "test accuracy, moving average",
            "ms of an epoch per training image",
        ),
        tuple(rows),
    )


def _milliseconds(runs: list[Run]) -> float | None:
    values = [value for run in runs for value in [epoch_seconds(run)] if value is not None]
    return 1000 * median(values) / runs[0].config.train_images if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
