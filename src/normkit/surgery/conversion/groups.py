"""Number of groups that a layer's channels are divided into."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normkit.errors import OptionError, message
from normkit.handle import place_name

__all__ = ["GROUP_OF", "check_divides", "groups_for"]

GROUP_OF = 16
"""Channels of a group where no number of groups is asked for (Wu & He 2018, table 3)."""

# Layers that an error names.
NAMED = 3


def groups_for(channels: int) -> int:
    """Return the number of groups with about :data:`GROUP_OF` channels each.

    Of the divisors of ``channels`` the one whose ratio to it is nearest to 1; of two, the larger.
    None has a single channel, which alone may have a single value.

    >>> [groups_for(n) for n in (64, 24, 20, 17, 16, 3, 521)]
    [4, 2, 1, 1, 1, 1, 1]
    """
    sizes = [size for size in range(channels, 1, -1) if channels % size == 0]
    size = min(sizes, key=lambda size: max(size / GROUP_OF, GROUP_OF / size), default=1)
    return max(channels // size, 1)


def check_divides(groups: int, layers: Sequence[tuple[str, int]]) -> None:
    """Raise unless ``groups`` divides the channels of all ``layers``, given by name and channels.

    Raises:
        OptionError: it does not; the message names the layers.
    """
    uneven = [(name, channels) for name, channels in layers if channels % groups]
    if not uneven:
        return
    named = ", ".join(f"{place_name(name)} ({channels})" for name, channels in uneven[:NAMED])
    more = f" and {len(uneven) - NAMED} more layers" if len(uneven) > NAMED else ""
    common = math.gcd(*(channels for _, channels in layers))
    fitting = max(n for n in range(1, groups + 1) if common % n == 0)
    raise OptionError(
        message(
            f"channels that {groups} groups divide, in every layer to convert",
            f"{named}{more}",
            f'pass to="group", which chooses for each layer, or ("group", {fitting}), which '
            "divides all of them; nothing was changed",
        )
    )
