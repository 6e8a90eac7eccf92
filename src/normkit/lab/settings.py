"""Settings of a claim's runs in words: all of them, and the few beside the source's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from normkit.errors import OptionError
from normkit.lab import models
from normkit.lab import setting_words as words
from normkit.lab.building import network_of, outline
from normkit.lab.claims.claim import SETUP, Claim, Evidence
from normkit.lab.config import RunConfig
from normkit.lab.data.catalogue import spec_of
from normkit.lab.findings import Table

__all__ = ["here", "images", "setup"]


def setup(claim: Claim, evidence: Evidence) -> tuple[tuple[str, str], ...]:
    """List the settings of the runs in words: each value that occurs, once."""
    configs = [planned.run.config for planned in evidence.planned]

    def each(name: str) -> list[Any]:
        return list(dict.fromkeys(getattr(config, name) for config in configs))

    def join(values: Iterable[object]) -> str:
        return ", ".join(map(str, values))

    spreads = each("noise_spread")
    noises = list(dict.fromkeys(config.noise for config in configs if config.noise))
    options = words.network_options(configs)
    data_sets = [spec_of(name).title for name in each("data")]
    frozen = each("frozen_epochs")
    schedules = each("schedule")
    rows = [
        *([("data sets", "; ".join(data_sets))] if len(data_sets) > 1 else []),
        *([("task", f"{join(each('task'))}, noise {words.listed(noises)}")] if noises else []),
        *([("spread of the noise", words.listed(spreads))] if spreads != [0.0] else []),
        ("network", words.networks(each("model"))),
        *([("its options", options)] if options else []),
        ("image size", f"{join(each('size'))} pixels"),
        ("activation", join(map(words.activation, each("act")))),
        ("normalizer by arm", _norms(evidence)),
        ("optimizer", join(map(words.optimizer, each("optimizer")))),
        ("learning rate", words.listed(each("lr"))),
        *([] if schedules == ["constant"] else [("schedule", join(schedules))]),
        ("momentum", words.listed(each("momentum"))),
        ("weight decay", words.listed(each("weight_decay"))),
        ("batch size", join(each("batch_size"))),
        *_last_batch(configs),
        ("epochs", join(each("epochs"))),
        *([] if frozen == [0] else [("last epochs with fixed statistics", words.listed(frozen))]),
        ("seeds", str(len(evidence.seeds))),
        ("preset", evidence.preset),
        ("decided by", claim.decision),
    ]
    return tuple(rows) + claim.setup if configs else claim.setup


def _last_batch(configs: Sequence[RunConfig]) -> list[tuple[str, str]]:
    """Say what happens to images that do not fill a batch, where there are any."""
    rest = [each for each in configs if each.train_images % each.batch_size]
    words = dict.fromkeys("dropped" if config.drop_last else "kept" for config in rest)
    return [("incomplete last batch", ", ".join(words))] if words else []


def _norms(evidence: Evidence) -> str:
    """Say what normalizes in each arm, in brackets the arms; one for all needs no names."""
    arms: dict[str, list[str]] = {}
    for planned in evidence.planned:
        named = arms.setdefault(words.normalizer(planned.run.config), [])
        if planned.arm not in named:
            named.append(planned.arm)
    if len(arms) == 1:
        return next(iter(arms))
    return "; ".join(f"{norm} ({', '.join(of)})" for norm, of in arms.items())


def images(evidence: Evidence, data: str) -> str:
    """Say how many images of the data the runs use."""
    configs = [planned.run.config for planned in evidence.planned]
    if not configs:
        return data
    subset = any(config.edition == "subset" for config in configs)
    return f"{data}: {_counts(configs)}" + (" (shipped subset)" if subset else "")


def here(claim: Claim, evidence: Evidence, figures: str) -> Table | None:
    """Set network, data, steps and figures of the runs beside the source's; None without both."""
    configs = [planned.run.config for planned in evidence.planned]
    if not configs or not claim.source_setup:
        return None
    ours = (_networks(configs), _data(configs), _steps(configs), figures)
    rows = tuple(
        (name, cell, claim.source_setup.get(name, ""))
        for name, cell in zip(SETUP, ours, strict=True)
    )
    return Table("here", "Here and in the source", ("", "here", "in the source"), rows)


def _networks(configs: Sequence[RunConfig]) -> str:
    """Name each network with the number of its parameters, a range where arms differ."""
    counts: dict[str, set[int]] = {}
    for config in configs:
        name = models.TITLES.get(config.model, config.model)
        counts.setdefault(name, set()).update(_parameters(network_of(config)))
    return "; ".join(
        f"{name}, {_span(map(_rounded, of))} parameters" if of else name
        for name, of in counts.items()
    )


@functools.lru_cache(maxsize=512)
def _parameters(config: RunConfig) -> tuple[int, ...]:
    """Count the parameters; nothing for a network that this version cannot build."""
    try:
        model = outline(config)
    except OptionError:
        return ()
    return (sum(parameter.numel() for parameter in model.parameters()),)


def _data(configs: Sequence[RunConfig]) -> str:
    """Name each data set with the number and the size of its images."""
    sizes = _span(config.size for config in configs)
    parts: dict[str, list[RunConfig]] = {}
    for config in configs:
        parts.setdefault(spec_of(config.data).title, []).append(config)

    named = (f"{title}, {_counts(of)}" for title, of in parts.items())
    return "; ".join(named) + f", {sizes} pixels"


def _counts(configs: Sequence[RunConfig]) -> str:
    trained = [config for config in configs if config.kind == "training"]
    if not trained:
        return "batches of training images"
    train, test = (
        _span(getattr(config, name) for config in trained)
        for name in ("train_images", "test_images")
    )
    return f"{train} training and {test} test images"


def _steps(configs: Sequence[RunConfig]) -> str:
    """Count the steps of a training, with batch size and epochs."""
    trained = [config for config in configs if config.kind == "training"]
    batches = _span(config.batch_size for config in configs)
    if not trained:
        return f"single steps of {batches} images, timed"
    steps, epochs = (_span(getattr(each, name) for each in trained) for name in ("steps", "epochs"))
    return f"{steps} steps of {batches} images, {epochs} epochs"


def _span(values: Iterable[int]) -> str:
    known = sorted(set(values))
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,}–{known[-1]:,}"


def _rounded(count: int) -> int:
    """Round to two digits.

    >>> _rounded(62158), _rounded(23_289_802), _rounded(9)
    (62000, 23000000, 9)
    """
    return int(float(f"{count:.2g}"))
