"""Read CIFAR's archives, in both published forms.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html. The binary form is records of
one or two label bytes (CIFAR-100: coarse, then fine) and 3,072 pixels. The Python form is pickled
dictionaries. A pickle can run any program when it is read, so these are read by an unpickler that
knows nothing but arrays. No member of an archive is ever written to disk.
"""

from __future__ import annotations

import io
import math
import pickle
import tarfile
import zlib
from typing import Any

import numpy as np
import torch

from normkit.errors import DataError, message

__all__ = ["read"]

# The largest member of either form is CIFAR-100's training file, 154 MB.
_LIMIT = 200_000_000
# How numpy puts an array together again; asked of an array, as the module's name has changed.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler for numbers, strings, lists, dictionaries and numpy arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise DataError(
                message(
                    "only arrays and lists in a CIFAR batch",
                    f"a pickle that asks for {module}.{name}",
                    "do not use this file; get the official archive, preferably its binary form",
                )
            ) from None


def read(
    data: bytes, names: tuple[str, ...], what: str, shape: tuple[int, ...], label_bytes: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images uint8 (N, *shape) and labels int64 (N,) from members of a .tar.gz archive.

    Args:
        data: the archive.
        names: members, in the order in which their images follow each other; those that end in
            ``.bin`` are of the binary form.
        what: the archive's name, for the messages.
        shape: of one image, (C, H, W).
        label_bytes: before the pixels of each record of the binary form.

    Raises:
        DataError: no such archive, a member missing or damaged, or a pickle of anything but
            arrays.
    """
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                # By exact name, and never extracted: a member called ../../x is simply not read.
                if member.name in names and member.isfile():
                    parts[member.name] = _member(archive, member, what, shape, label_bytes)
                if len(parts) == len(names):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            message(
                f"{what} to be a complete .tar.gz archive",
                f"{type(error).__name__}: {error}",
                "fetch it again",
            )
        ) from error
    missing = [name for name in names if name not in parts]
    if missing:
        raise DataError(
            message(f"{what} to hold {', '.join(names)}", f"no {missing[0]}", "fetch it again")
        )
    return (
        torch.cat([parts[name][0] for name in names]),
        torch.cat([parts[name][1] for name in names]),
    )


def _member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    what: str,
    shape: tuple[int, ...],
    label_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    where = f"{member.name} in {what}"
    if member.size > _LIMIT:
        raise DataError(
            message(
                f"{where} to have at most {_LIMIT:,} bytes",
                f"{member.size} bytes",
                "fetch it again",
            )
        )
    file = archive.extractfile(member)
    assert file is not None  # it is for directories and links only, and this is a file
    data = file.read()
    if member.name.endswith(".bin"):
        pixels, labels = _records(data, where, math.prod(shape), label_bytes)
    else:
        pixels, labels = _pickled(data, where, math.prod(shape))
    return (
        torch.from_numpy(pixels.reshape(-1, *shape).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _records(data: bytes, where: str, pixels: int, labels: int) -> tuple[Any, Any]:
    if data and len(data) % (labels + pixels) == 0:
        table = np.frombuffer(data, np.uint8).reshape(-1, labels + pixels)
        # The last label byte is CIFAR-100's fine one.
        return table[:, labels:], table[:, labels - 1]
    raise DataError(
        message(
            f"{where} to be records of {labels} label bytes and {pixels} pixels",
            f"{len(data)} bytes",
            "fetch the archive again",
        )
    )


def _pickled(data: bytes, where: str, pixels: int) -> tuple[Any, Any]:
    try:
        # Written by Python 2: its strings are bytes.
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        fields = {k.decode() if isinstance(k, bytes) else str(k): v for k, v in batch.items()}
        table = fields["data"]
        labels = np.asarray(fields["fine_labels" if "fine_labels" in fields else "labels"])
    except DataError:
        raise
    # A damaged pickle can fail in any way.
    except Exception as error:
        raise DataError(
            message(
                f"{where} to be a pickled dictionary with data and labels",
                f"{type(error).__name__}: {error}",
                "fetch the archive again",
            )
        ) from error
    fits = (
        isinstance(table, np.ndarray)
        and table.dtype == np.uint8
        and table.ndim == 2
        and table.shape[1] == pixels
        and labels.shape == (len(table),)
        and np.issubdtype(labels.dtype, np.integer)
    )
    if not fits:
        raise DataError(
            message(
                f"{where} to hold uint8 data (N, {pixels}) and N integer labels",
                f"{getattr(table, 'dtype', type(table).__name__)} "
                f"{getattr(table, 'shape', '')} and labels {labels.dtype} {labels.shape}",
                "fetch the archive again",
            )
        )
    return table, labels
