"""IDX files: read whole or refused."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import pytest
import torch

from normkit.errors import DataError
from normkit.lab.data import idx

VALUES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
DATA = idx.encode(VALUES)


def test_header_is_the_formats() -> None:
    assert DATA[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])
    assert DATA[16:] == bytes(range(24))
    assert torch.equal(idx.decode(DATA, "x"), VALUES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with 00 00 08; received no bytes"),
        (b"\x00\x00\x08", "begins with"),
        (b"\x00\x00\x0d\x01" + bytes(8), "begins with 00 00 08; received 00 00 0d 01"),
        (b"PK\x03\x04" + bytes(40), "begins with"),
        (DATA[:10], "header of x to hold 3 sizes"),
        (DATA[:-1], "2 × 3 × 4 bytes after its header; received 23.*truncated"),
        (DATA + b"\x00", "received 25.*too long"),
    ],
)
def test_damage_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        idx.decode(data, "x")


def test_content(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(DATA)
    packed.write_bytes(gzip.compress(DATA))
    assert idx.content(plain, 40, unpack=False) == DATA == idx.content(packed, 40, unpack=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-12],  # the end is missing
        lambda b: b[:5],  # even the header is
        lambda b: b[:-8] + bytes(4) + b[-4:],  # the check sum is wrong
        lambda b: b"no gzip at all",
        lambda b: b[:12] + b"\xff" * 8 + b[20:],  # the compressed data are
    ],
)
def test_damaged_gzip_is_a_data_error(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(DATA, mtime=0)))  # type: ignore[operator]
    with pytest.raises(DataError, match="complete, readable file"):
        idx.content(path, 40, unpack=True)


def test_decompression_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="to hold 40 bytes; received more"):
        idx.content(path, 40, unpack=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
