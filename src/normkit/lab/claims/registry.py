"""Finds the claims: each module ``c01.py``, ``c02.py`` … of this package, in order."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Sequence

import normkit.lab.claims
from normkit.errors import OptionError, explain
from normkit.lab.claims.claim import Claim

__all__ = ["ALL", "all_claims", "select"]

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


def select(keys: Sequence[str] = ()) -> list[Claim]:
    """The claims with these keys, in the order asked for; those of the demo if none is named.

    "all" stands for all of them.

    Raises:
        OptionError: there is no claim with such a key.

    >>> [claim.key for claim in select(["c5", "C1"])]
    ['C5', 'C1']
    """
    claims = all_claims()
    wanted = list(dict.fromkeys(key.upper() for key in keys))
    if ALL in wanted:
        return list(claims.values())
    if not wanted:
        return [claim for claim in claims.values() if claim.demo]
    unknown = [key for key in wanted if key not in claims]
    if unknown:
        raise OptionError(
            explain(
                f"a claim is one of {', '.join(claims)}",
                ", ".join(unknown),
                "choose from: normkit lab list",
            )
        )
    return [claims[key] for key in wanted]
