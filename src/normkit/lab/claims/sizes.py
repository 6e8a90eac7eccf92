"""Accuracy, parameters and time of networks of several sizes: what C22 measures and draws."""

from __future__ import annotations

from statistics import median

import torch

from normkit.lab.building import build_model
from normkit.lab.claims.claim import Evidence
from normkit.lab.claims.parts import BN, under
from normkit.lab.claims.sweeps import mean_of
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.findings import Chart, Line, Table
from normkit.lab.store import Run
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
RESNET, DENSENET, CUT = "ResNet-18", "DenseNet", "ResNet-18, cut to DenseNet's size"
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
    lines, words = [], []
    for arm in evidence.arms:
        runs = evidence.of(arm)
        values = [value for run in runs for value in [population(run)] if value is not None]
        if len(values) < 2:
            continue
        count = parameters(runs[0].config)
        mean, low, high = interval(values)
        # From one end of the interval to the other and back to the mean: a stroke with marks.
        lines.append(
            Line(f"{arm} (mean, 95 % interval)", (float(count),) * 3, (low, high, mean), arm=arm)
        )
        words.append(f"{arm}: {mean:.3f} with {count:,} parameters")
    if not lines:
        return None
    published = [
        Line(
            f"{arm}, published: least, median, greatest",
            (float(_source(arm)),) * 3,
            (least, most, middle),
            role="published",
            arm=arm,
        )
        for arm, (least, middle, most) in PUBLISHED.items()
    ]
    return Chart(
        key="parameters",
        title="Test accuracy against parameters: left is smaller, up is better",
        x_label="parameters",
        y_label="test accuracy",
        lines=(*lines, *published),
        text=(
            "Test accuracy after the last epoch, with population statistics, against the number of "
            f"parameters. {'; '.join(words)}. Published, moving average, 96×96 pixels: "
            + "; ".join(f"{arm} {low} to {high}" for arm, (low, _, high) in PUBLISHED.items())
            + "."
        ),
        x_log=True,
        markers=True,
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
