"""Finds the claims: each module ``c01.py``, ``c02.py`` … of this package, in order."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence

import normkit.lab.claims
from normkit.errors import OptionError, message
from normkit.lab.claims.claim import Arms, Available, Claim, Preset
from normkit.lab.data.catalogue import spec_of

__all__ = ["ALL", "all_claims", "forms", "select", "with_seeds"]

ALL = "ALL"
"""Asks for every claim, in place of a key."""


@functools.cache
def all_claims() -> dict[str, Claim]:
    """The claims by their key, "C1" first.

    >>> list(all_claims())[:2]
    ['C1', 'C2']
    """
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(normkit.lab.claims.__path__)
        if re.fullmatch(r"c\d\d", module.name)
    )
    claims: list[Claim] = [
        importlib.import_module(f"normkit.lab.claims.{name}").CLAIM for name in names
    ]
    return {claim.key: claim for claim in claims}


def forms(
    claims: Iterable[Claim], present: Callable[[str], bool] = lambda name: True
) -> list[Claim]:
    """The claims, each followed by itself on the further data sets that are ``present``.

    >>> [claim.key for claim in forms([all_claims()["C10"]])]
    ['C10', 'C10-CIFAR-10']
    """
    present = functools.cache(present)  # a data set may be read to find out
    variants = []
    for claim in claims:
        variants.append(claim)
        variants += [_on(claim, name) for name in claim.also if present(name)]
    return variants


def _on(claim: Claim, name: str) -> Claim:
    key, title = f"{claim.key}-{name.upper()}", f"{claim.title}, on {spec_of(name).title}"
    return dataclasses.replace(claim, key=key, title=title, data=name, also=())


def select(
    keys: Sequence[str] = (),
    present: Callable[[str], bool] = lambda name: False,
    preset: Preset | None = None,
) -> list[Claim]:
    """The claims with these keys, in the order asked for; those run by default if none is named.

    "all" stands for all of them. With a ``preset``, all means those that have runs at it; of the
    tour, all are run by default. A claim that its source made on another data set as well comes
    along on that one where it is ``present``, and can be asked for by a key of its own.

    Raises:
        OptionError: there is no claim with such a key, or it has no runs at the preset.

    >>> [claim.key for claim in select(["c5", "C1"])]
    ['C5', 'C1']
    >>> [claim.key for claim in select(["c10-cifar-10"])]
    ['C10-CIFAR-10']
    """
    claims = {
        key: claim
        for key, claim in all_claims().items()
        if preset is None or preset in claim.presets
    }
    wanted = list(dict.fromkeys(key.upper() for key in keys))
    if ALL in wanted:
        return forms(claims.values(), present)
    if not wanted:
        return [claim for claim in claims.values() if claim.demo or preset == "tour"]
    every = {claim.key: claim for claim in forms(claims.values())}
    unknown = [key for key in keys if key.upper() not in every]
    if unknown:
        raise OptionError(
            message(
                f"keys among {', '.join(every)}" + (f" at preset {preset}" if preset else ""),
                ", ".join(unknown),
                "choose from: normkit lab list",
            )
        )
    chosen = forms([every[key] for key in wanted], present)
    return list({claim.key: claim for claim in chosen}.values())


def with_seeds(claim: Claim, seeds: int) -> Claim:
    """The claim with so many seeds in place of a preset's.

    Arms that a preset gives fewer seeds than others, since they decide nothing, get no more.

    >>> claim = with_seeds(all_claims()["C1"], 3)
    >>> [config.seed for _, config in claim.plan("quick", Available.whole(claim.data))]
    [0, 0, 1, 1, 2, 2]
    """

    def plan(preset: Preset, available: Available) -> Arms:
        arms = claim.plan(preset, available)
        planned = len({config.seed for _, config in arms})
        rows = [(arm, config) for arm, config in arms if config.seed < seeds]
        last = [(arm, config) for arm, config in arms if config.seed == planned - 1]
        return rows + [
            (arm, dataclasses.replace(config, seed=seed))
            for seed in range(planned, seeds)
            for arm, config in last
        ]

    return dataclasses.replace(claim, plan=plan)
