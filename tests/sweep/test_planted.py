"""The sweep itself: each planted fault is found, within the programs that the short sweep draws."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from normkit.core.activations import Act
from normkit.nn import averages
from normkit.nn.freezing import FrozenMixin
from normkit.nn.ghostbatchnorm import _Ghost
from normkit.nn.layer import Layer
from normkit.statistics import contexts
from normkit.statistics.layers import replace
from normkit.statistics.measuring import observer, observing, passes
from normkit.statistics.outputs import losses
from normkit.surgery import momentum, sequential
from tests.sweep.test_sweep import EXAMPLES, OTHERS
from tests.sweep.tools import hunt

# By name: the package exports functions of these names.
ACCELERATE: Any = importlib.import_module("normkit.surgery.accelerate")
FREEZE: Any = importlib.import_module("normkit.surgery.freeze")


class Planted(NamedTuple):
    """A fault: the tool that breaks, the promise that it then breaks, and how to plant it."""

    tool: str
    kind: str
    plant: Callable[[pytest.MonkeyPatch], None]


def _biased(patch: pytest.MonkeyPatch) -> None:
    right = passes.merge_statistics

    def wrong(*args: Any) -> Any:
        merged, numbers = right(*args)
        return {k: v._replace(variance=v.variance * (1 - 1 / v.count))
                for k, v in merged.items()}, numbers  # fmt: skip

    patch.setattr(passes, "merge_statistics", wrong)


def _forget(patch: pytest.MonkeyPatch) -> None:
    right = replace.Replacement.undo

    def wrong(self: Any) -> None:
        self._before = [row for row in self._before if "var" not in str(row[1])]
        right(self)

    patch.setattr(replace.Replacement, "undo", wrong)


def _modes(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def wrong(model: torch.nn.Module) -> Any:
        for module in model.modules():
            module.training = False
        yield

    patch.setattr(observing, "evaluation_mode", wrong)


def _random(patch: pytest.MonkeyPatch) -> None:
    right = observer.run_model

    def wrong(*args: Any) -> Any:
        torch.randn(1)
        return right(*args)

    patch.setattr(observer, "run_model", wrong)
    for module in (observing, passes):
        patch.setattr(module, "preserve_rng", contextlib.nullcontext)


def _no_act(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Layer, "_act", property(lambda self: None, lambda self, act: None), raising=False)


def _trainable_bias(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FREEZE, "_affine_change", _without_bias(FREEZE._affine_change))


def _without_bias(right: Any) -> Any:
    def wrong(parameter: Any, *args: Any) -> Any:
        step = right(parameter, *args)
        return step._replace(do=lambda: None) if float(parameter.sum()) < 0 else step

    return wrong


def _thaws(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrozenMixin, "train", torch.nn.Module.train)


def _parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Ghost, "part_sizes", lambda self, n: [n])


def _slope(patch: pytest.MonkeyPatch) -> None:
    right = sequential._view_with_act

    def wrong(layer: Any, act: Act) -> Any:
        return right(layer, Act("leaky_relu", 0.1) if act.name == "leaky_relu" else act)

    patch.setattr(sequential, "_view_with_act", wrong)


def _scaled(patch: pytest.MonkeyPatch) -> None:
    right = momentum._momentum_change

    def wrong(name: str, layer: Any, key: str, after: float) -> Any:
        return right(name, layer, key, after * 0.9)

    patch.setattr(momentum, "_momentum_change", wrong)


def _updates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contexts, "_as_in_training", contextlib.nullcontext)


def _labels(patch: pytest.MonkeyPatch) -> None:
    right = losses.Losses.add

    def wrong(self: Any, pair: list[float], weight: int) -> None:
        right(self, pair, weight + 1)

    patch.setattr(losses.Losses, "add", wrong)


def _average(patch: pytest.MonkeyPatch) -> None:
    right = averages.share

    def wrong(*args: Any) -> Any:
        share = right(*args)
        return share * 1.001 if isinstance(share, torch.Tensor) else share

    patch.setattr(averages, "share", wrong)


def _silent(patch: pytest.MonkeyPatch) -> None:
    right = ACCELERATE.Handle

    def wrong(verb: str, changed: Any, skipped: Any, *rest: Any) -> Any:
        return right(verb, changed, (), *rest)

    patch.setattr(ACCELERATE, "Handle", wrong)


PLANTED = {
    "biased variance": Planted("recalibrate", "wrong variance", _biased),
    "undo forgets a buffer": Planted("recalibrate", "undo is not exact", _forget),
    "modes are not restored": Planted("recalibrate", "changed something else", _modes),
    "random state is not restored": Planted("recalibrate", "changed something else", _random),
    "activation is dropped": Planted("layers", "wrong output", _no_act),
    "a frozen parameter learns": Planted("freeze", "a layer frozen moved", _trainable_bias),
    "train() thaws": Planted("freeze", "a layer frozen moved", _thaws),
    "ghost batches are one": Planted("layers", "wrong output in training", _parts),
    "fused with another slope": Planted("accelerate", "wrong", _slope),
    "momentum is scaled otherwise": Planted("scale_momentum", "wrong momentum", _scaled),
    "statistics move within": Planted("batch_statistics", "changed something", _updates),
    "loss is another": Planted("consistency", "wrong first loss", _labels),
    "an average takes another share": Planted("layers", "wrong buffer", _average),
    "skipped layers are not named": Planted("accelerate", "neither changed nor named", _silent),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = PLANTED[name]
    planted.plant(monkeypatch)
    examples = EXAMPLES.get(planted.tool, OTHERS)
    find = hunt(planted.tool, examples, set(), Counter(), shrinks=False)
    assert find is not None
    assert find.fault.kind.startswith(planted.kind), find.fault
    print(f"found after {find.examples} programs: {find.fault}")
