"""Claims: words, a plan of runs, and a way to judge them.

A claim's file holds all of it: where the claim comes from, what was published, what is predicted,
which arms are trained at each preset, what is measured, which endpoint decides and why, and what
is drawn. The endpoint is fixed before the runs are made. The file ends in ``CLAIM``, and
:mod:`normkit.lab.claims.registry` finds it there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from normkit.lab.config import Edition, RunConfig
from normkit.lab.findings import AtScale, Chart, Comparison, Reference, Table, Topic
from normkit.lab.runs import Planned, Run

__all__ = [
    "PRESETS",
    "SETUP",
    "Arms",
    "Available",
    "Claim",
    "Evidence",
    "Judgement",
    "Preset",
    "Scale",
]

Preset = Literal["tour", "quick", "full", "paper"]
PRESETS: tuple[Preset, ...] = ("tour", "quick", "full", "paper")
"""``tour`` has five claims, which take three minutes on two cores, all together; ``quick`` takes
minutes; ``full`` has at least five seeds for every claim and takes about two hours on two
cores, all claims together; ``paper`` is the sources' own scale, for a GPU."""

SETUP = ("network", "data", "steps", "figures")
"""What is set beside the source's: the keys of :attr:`Claim.source_setup`, in order."""

Arms = list[tuple[str, RunConfig]]
"""The runs of a claim, each with the name of the arm it belongs to."""


@dataclasses.dataclass(frozen=True)
class Available:
    """The data that are there: which edition, how many images, their side and classes.

    >>> Available("subset", train=2000, test=1000).at_most(20_000, 10_000)
    {'data': 'fashion-mnist', 'edition': 'subset', 'train_images': 2000, 'test_images': 1000}
    """

    edition: Edition
    train: int
    test: int
    data: str = "fashion-mnist"
    side: int = 28
    classes: int = 10

    @classmethod
    def whole(cls, data: str) -> Available:
        """The whole data set of this name, whether it is here or not."""
        from normkit.lab.data.catalogue import spec_of

        spec = spec_of(data)
        train, test = spec.counts
        return cls("full", train, test, data, side=spec.shape[-1], classes=len(spec.classes))

    def at_most(self, train: int, test: int) -> dict[str, Any]:
        """The fields of a run that ask for so many images, or for all if there are fewer."""
        return {
            "data": self.data,
            "edition": self.edition,
            "train_images": min(train, self.train),
            "test_images": min(test, self.test),
        }


@dataclasses.dataclass(frozen=True)
class Scale:
    """The scale of a preset: seeds, images, epochs."""

    seeds: int
    train: int
    test: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The runs that were planned for a claim, each as far as it has come."""

    preset: str
    planned: tuple[Planned, ...]

    @property
    def runs(self) -> list[Run]:
        """All that are results."""
        return [planned.run for planned in self.planned if planned.run.finished_training]

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms, in the order planned."""
        return tuple(dict.fromkeys(planned.arm for planned in self.planned))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds planned."""
        return tuple(sorted({planned.run.config.seed for planned in self.planned}))

    def of(self, arm: str, **fields: Any) -> list[Run]:
        """The results of an arm, by seed, with these values in their description."""
        runs = [
            planned.run
            for planned in self.planned
            if planned.arm == arm
            and planned.run.finished_training
            and all(getattr(planned.run.config, name) == value for name, value in fields.items())
        ]
        return sorted(runs, key=lambda run: run.config.seed)

    def pairs(self, first: str, second: str, **fields: Any) -> list[tuple[Run, Run]]:
        """The results of two arms, seed by seed, where both have one."""
        others = {run.config.seed: run for run in self.of(second, **fields)}
        return [
            (run, others[run.config.seed])
            for run in self.of(first, **fields)
            if run.config.seed in others
        ]

    def coverage(self, pairs: int) -> str:
        """Say how many of the planned seeds a result rests on.

        >>> Evidence("quick", ()).coverage(0)
        '0 seeds'
        """
        planned = len(self.seeds)
        return f"{pairs} seeds" if pairs == planned else f"{pairs} of {planned} seeds"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The result of judging a claim's evidence.

    ``decides`` has the claim's parts, from which :func:`normkit.lab.verdicts.decide` gets the
    verdict. ``information`` is compared in the same way and decides nothing. ``figures`` are ours,
    to stand beside the source's; ``holds`` says when the claim holds, ``practice`` what to do.
    """

    sentence: str
    decides: Sequence[Comparison | None]
    information: Sequence[Comparison | None] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    figures: str = ""
    holds: str = ""
    practice: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: see the module's text.

    ``topic`` is its subject, one of :data:`normkit.lab.findings.TOPICS`: the page and its readers
    filter by it.

    ``plan(preset, available)`` gives its runs by arm, none at a preset that the claim is not part
    of; ``judge(evidence)`` looks at what there is of them, which may be nothing yet, and trains
    nothing. ``decision`` says which endpoint
    decides, fixed before the runs. ``data`` is the data set of the runs, but for arms that name
    another one made of the same files. ``also`` names further data sets on which the source made
    its claim; :func:`normkit.lab.claims.registry.forms` makes a claim of each. ``setup`` adds rows
    to those read from the runs. ``demo`` says whether a study that names no claim has this one
    in it. ``differs`` says why our result may differ from the source's; it is
    shown where it does. ``source_setup`` has network, data, steps and figures of the source
    (:data:`SETUP`), ``at_scale`` what the literature found where all was larger. ``headline`` says
    whether the claim stands in the README's short table: one that a user of the package acts on.
    """

    key: str
    title: str
    topic: Topic
    statement: str
    sources: tuple[Reference, ...]
    prediction: str
    decision: str
    plan: Callable[[Preset, Available], Arms]
    judge: Callable[[Evidence], Judgement]
    data: str = "fashion-mnist"
    also: tuple[str, ...] = ()
    setup: tuple[tuple[str, str], ...] = ()
    demo: bool = True
    differs: str = ""
    source_setup: Mapping[str, str] = dataclasses.field(default_factory=dict)
    at_scale: tuple[AtScale, ...] = ()
    headline: bool = False

    @property
    def presets(self) -> tuple[Preset, ...]:
        """The presets at which it has runs."""
        whole = Available.whole(self.data)
        return tuple(preset for preset in PRESETS if self.plan(preset, whole))

    def data_sets(self, preset: Preset) -> tuple[str, ...]:
        """Return the names of the data sets that its runs use, its own first."""
        arms = self.plan(preset, Available.whole(self.data))
        return tuple(dict.fromkeys((self.data, *(config.data for _, config in arms))))
