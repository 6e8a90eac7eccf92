"""Kinds of layers that ``convert`` knows: what they become, and what they are recognized by."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from normkit.errors import OptionError, message
from normkit.nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm2d,
    SyncBatchNorm,
)

__all__ = ["BATCH", "KINDS", "SAMPLE", "TORCH", "Kind", "Target", "To", "parse"]

To = str | tuple[str, int]

TORCH = "torch"
ANY = (0, 1, 2, 3)


class Kind(NamedTuple):
    """One value of ``to``.

    ``forms``: the class by the number of spatial axes of its input, 0 for any number. ``number``:
    the attribute that holds the number after the kind; ``optional`` if it may be omitted.
    ``across``: whether its statistics are of a batch, and not of each sample. ``converts_all``:
    whether layers with statistics of each sample become it too, and not those of a batch alone.
    """

    forms: dict[int, type[nn.Module]]
    number: str = ""
    optional: bool = False
    across: bool = True
    converts_all: bool = False


def _forms(*classes: type[nn.Module]) -> dict[int, type[nn.Module]]:
    return dict(zip((1, 2, 3), classes, strict=True))


KINDS: dict[str, Kind] = {
    "batch": Kind(_forms(BatchNorm1d, BatchNorm2d, BatchNorm3d), converts_all=True),
    "sync": Kind(dict.fromkeys(ANY, SyncBatchNorm)),
    "ghost": Kind(_forms(GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d), "ghost_size"),
    "renorm": Kind(_forms(BatchRenorm1d, BatchRenorm2d, BatchRenorm3d)),
    "domain": Kind(_forms(DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d), "domains"),
    "frozen": Kind(_forms(FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)),
    "group": Kind(dict.fromkeys(ANY, GroupNorm), "num_groups", True, False, True),
    "layer": Kind(dict.fromkeys(ANY, GroupNorm), across=False, converts_all=True),
    "instance": Kind(
        {0: GroupNorm, **_forms(InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)},
        across=False, converts_all=True,
    ),
}  # fmt: skip

# Exact types that can be converted, with their number of spatial axes: statistics of a batch ...
BATCH: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: 0, SyncBatchNorm: 0,
    **{cls: k for kind in ("batch", "ghost", "renorm") for k, cls in KINDS[kind].forms.items()},
}  # fmt: skip
# ... and of each sample.
SAMPLE: dict[type[nn.Module], int] = {
    nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3, nn.GroupNorm: 0,
    LayerNorm2d: 2, **{cls: k for k, cls in KINDS["instance"].forms.items()},
}  # fmt: skip


class Target(NamedTuple):
    """``to`` as read: the name of the kind, and the number after it."""

    name: str
    number: int | None = None
    group_size: int | None = None

    @property
    def kind(self) -> Kind:
        """Entry of the kind in :data:`KINDS`."""
        return KINDS[self.name]


def parse(to: object, group_size: object = None) -> Target:
    """Read what a user passed as ``to`` and ``group_size``.

    Raises:
        OptionError: there is no such kind, or it lacks its number, or takes none.

    >>> parse(("group", 8)).number, parse("group").number
    (8, None)
    """
    name, number = to if isinstance(to, tuple) and len(to) == 2 else (to, None)
    kind = KINDS.get(name) if isinstance(name, str) else None
    fits = number is None or (type(number) is int and number >= 1)
    if name == TORCH:
        fits = not isinstance(to, tuple)
    elif kind is None or isinstance(to, tuple) is (number is None):
        fits = False
    else:
        fits = fits and (kind.optional or bool(kind.number) is (number is not None))
        fits = fits and (bool(kind.number) or number is None)
    if not fits:
        raise OptionError(
            message(
                'one of "batch", "sync", ("ghost", samples), "renorm", ("domain", domains), '
                '"frozen", "group", ("group", groups), "layer", "instance" and "torch"',
                f"to={to!r}",
                'pass e.g. to=("ghost", 32)',
            )
        )
    if group_size is not None:
        _check_group_size(str(name), group_size)
    return Target(str(name), number, group_size)  # type: ignore[arg-type]


def _check_group_size(name: str, group_size: object) -> None:
    if name != "sync":
        raise OptionError(
            message('group_size with to="sync" alone', f"to={name!r}", "omit group_size")
        )
    if type(group_size) is not int or group_size < 1:
        raise OptionError(
            message(
                "group_size as a number of processes, at least 1",
                f"group_size={group_size!r}",
                "pass the number of processes of a node, such as 8, or omit it for all",
            )
        )
