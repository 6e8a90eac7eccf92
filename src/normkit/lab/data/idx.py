"""IDX format of the MNIST family: a header of sizes, then the bytes.

Source: LeCun, Cortes & Burges, *The MNIST database*, "File formats": two zero bytes, one for the
type of the values (8: unsigned byte), one for the rank, then each size as a big-endian 32-bit
number.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from normkit.errors import DataError, message

__all__ = ["content", "decode", "encode"]

_UNSIGNED_BYTE = 8


def content(path: Path, limit: int, *, unpack: bool) -> bytes:
    """Read at most ``limit`` bytes of a file, decompressed with ``unpack``.

    Raises:
        DataError: unreadable, cut off, damaged, or more than ``limit`` bytes, which are not read:
            a small file can hold a very large one.
    """
    opener = gzip.open if unpack else open
    try:
        with opener(path, "rb") as file:
            data: bytes = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            message(
                f"{path.name} to be a complete, readable file",
                f"{type(error).__name__}: {error}",
                f"fetch it again; this one is {path}",
            )
        ) from error
    if len(data) > limit:
        raise DataError(
            message(
                f"{path.name} to hold {limit} bytes",
                f"more, in {path}",
                "get the official file",
            )
        )
    return data


def decode(data: bytes, what: str) -> torch.Tensor:
    """Convert the bytes of an IDX file to a uint8 tensor of the shape in its header.

    Args:
        data: the file's content, decompressed.
        what: the file's name, for the messages.

    Raises:
        DataError: no IDX file of unsigned bytes, or more or fewer bytes than the header tells.

    >>> decode(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "two labels")
    tensor([7, 9], dtype=torch.uint8)
    """
    if len(data) < 4 or data[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(
            message(
                f"{what} to be an IDX file of unsigned bytes, which begins with 00 00 08",
                data[:4].hex(" ") or "no bytes",
                "get the official file",
            )
        )
    rank = data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise DataError(
            message(
                f"the header of {what} to hold {rank} sizes",
                f"a file of {len(data)} bytes",
                "fetch it again: this one is truncated",
            )
        )
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(
            message(
                f"{what} to hold {' × '.join(map(str, shape))} bytes after its header",
                f"{len(data) - start}",
                "fetch it again: this one is "
                + ("truncated" if len(data) - start < math.prod(shape) else "too long"),
            )
        )
    # copy: a tensor over the bytes themselves could be written to, and bytes must not be.
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy().reshape(shape))


def encode(values: torch.Tensor) -> bytes:
    """Return the bytes of an IDX file of a uint8 tensor.

    >>> decode(encode(torch.tensor([[1, 2]], dtype=torch.uint8)), "a row")
    tensor([[1, 2]], dtype=torch.uint8)
    """
    header = bytes([0, 0, _UNSIGNED_BYTE, values.ndim])
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return header + sizes + values.contiguous().numpy().tobytes()
