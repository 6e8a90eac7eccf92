"""Where a training takes place. No GPU is needed: tensors without data stand for one.

PyTorch's device "meta" computes shapes only, and an operation on tensors of two devices is an error
there as on a GPU. What would be read off such a tensor is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from normkit.errors import OptionError
from normkit.lab import data, machine, worker
from normkit.lab.building import build_model, build_optimizer
from normkit.lab.checkpoints import Progress, restore, state
from normkit.lab.config import RunConfig
from normkit.lab.placement import Placement, current_placement, find_device, use_placement
from normkit.lab.store import Store
from normkit.lab.training import train

Make = Callable[..., RunConfig]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tensor without data says when it is read: 1, and a loss of half."""

    def reading(name: str, answer: Any) -> None:
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self: answer if self.is_meta else real(self))

    for name, answer in (
        ("item", 0.5), ("__bool__", True), ("__int__", 1), ("__float__", 1.0), ("tolist", [1.0])
    ):  # fmt: skip
        reading(name, answer)


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "torch-batch", "momentum": 0.9, "evaluations": (("batch", 20),)},
        {"norm": "batch", "final_evaluations": (("composed", 20, 2),)},
        {"norm": "group", "optimizer": "adam"},
        {"norm": "ghost", "norm_options": (("ghost_size", 16),)},
        {"norm": "batch", "domains": "negatives"},
        {"norm": "none", "probes": (("gradients", 1),)},
    ],
)
@pytest.mark.usefixtures("made_up")
def test_all_tensors_of_a_run_are_on_its_device(
    fields: dict[str, Any], make_config: Make, dataset: data.Dataset, make_log: Any
) -> None:
    config, log = make_config(**fields), make_log()
    outcome = train(config, dataset, log, placement=Placement("meta"), checkpoint_seconds=1e9)
    assert outcome.step == config.steps
    assert log.metrics["train_loss", config.steps] == 0.5
    assert current_placement().device.type == "cpu"


@pytest.mark.usefixtures("made_up")
def test_batch_on_wrong_device_raises(
    make_config: Make, dataset: data.Dataset, make_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for forgotten in ("shard_batch", "to_device"):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="device"):
            patch.setattr(
                Placement, forgotten, lambda self, *given: given if given[1:] else given[0]
            )
            train(
                make_config(),
                dataset,
                make_log(),
                placement=Placement("meta"),
                checkpoint_seconds=1e9,
            )


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_checkpoint_resumes_on_another_device(make_config: Make) -> None:
    config = make_config(optimizer="adam")
    model = build_model(config, in_channels=1, classes=10)
    optimizer = build_optimizer(config, model)
    model(torch.zeros(4, 1, 28, 28)).sum().backward()
    optimizer.step()
    saved = state(model, optimizer, Progress(step=1))
    other = build_model(config, in_channels=1, classes=10).to("meta")
    moved = build_optimizer(config, other)
    assert restore(saved, other, moved).step == 1
    devices = {weight.device.type for weight in other.state_dict().values()}
    devices |= {moment["exp_avg"].device.type for moment in moved.state_dict()["state"].values()}
    assert devices == {"meta"}


def test_place_is_noted_beside_the_run(store: Store, make_config: Make) -> None:
    config = make_config()
    store.add(config)
    argument = worker.argument(store.path, config.key)
    # Nothing of the description changes, so nothing of the key does.
    found = worker.carry_out(argument, lambda: False, train, lambda _: "cuda: some GPU")
    run = store.get(config.key)
    assert found == "done"
    assert run is not None
    assert run.machine == machine.summary() + "; cuda: some GPU"
    assert str(Placement()) == ""


def test_placement_is_current_inside_block() -> None:
    placement = Placement("meta")
    with use_placement(placement):
        assert current_placement() is placement
    assert current_placement().device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_raises(store: Store, make_config: Make) -> None:
    with pytest.raises(OptionError, match="sees none"):
        find_device("cuda")
    with pytest.raises(OptionError, match="sees none"):
        worker.run(worker.argument(store.path, make_config().key), lambda: False, "cuda")
