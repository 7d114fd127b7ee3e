"""Streams against plain bytes: whatever the pieces are, and also without access past the page cache."""

import hashlib
import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia.errors import CheckpointError
from amnesia.files import streams
from amnesia.files.streams import PAGE, RangeHash, Strided, hash_ranges, overwrite, stream


def patched(content, patches):
    """The same with one item at a time."""
    result = bytearray(content)
    for patch in patches:
        for offset, place in patch.places():
            result[offset : offset + patch.item] = patch.content[place]
    return bytes(result)


@pytest.fixture(params=["direct", "refused", "missing"])
def disk(request, monkeypatch):
    """Pieces of two pages, on filesystems that have, refuse, or do not know access past the page cache."""
    monkeypatch.setattr(streams, "PIECE", 2 * PAGE)
    if request.param == "missing":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    elif request.param == "refused":
        monkeypatch.setattr(os, "O_DIRECT", -1, raising=False)


@given(
    st.integers(0, 30),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 12),
    st.integers(0, 120),
    st.integers(1, 40),
)
def test_items_are_put_wherever_a_piece_ends(offset, item, gap, count, start, length):
    content = bytes(range(1, 1 + item * count % 251)) or b"\x07"
    patch = Strided(offset, item + gap, item, (content * (item * count))[: item * count])
    whole = np.zeros(400, np.uint8)
    piece = whole[start : start + length].copy()
    patch.put(piece, start)
    assert piece.tobytes() == patched(bytes(400), [patch])[start : start + length]
    assert patch.end == offset + (count - 1) * (item + gap) + item


def columns(content, seed=1):
    """Three columns of a matrix whose rows cross pages, and a run of bytes."""
    generator = random.Random(seed)
    rows = [Strided(101 + 6 * column, 700, 6, generator.randbytes(6 * 40)) for column in (0, 3, 50)]
    return [*rows, Strided(len(content) - 50, 50, 50, generator.randbytes(50))]


@pytest.mark.parametrize("size", [1, PAGE, 5 * PAGE, 8 * PAGE + 123])
def test_a_stream_copies_hashes_and_patches(tmp_path, disk, size):
    content = random.Random(0).randbytes(size)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").touch()
    patches = columns(content) if size > 7 * PAGE else []
    part = (size // 3, size // 2)
    hashes = [RangeHash(0, size), RangeHash(*part), RangeHash(0, size, patched=True), RangeHash(*part, patched=True)]
    steps = []
    stream(tmp_path / "a", tmp_path / "b", patches=patches, hashes=hashes, advance=steps.append)
    expected = patched(content, patches)
    assert (tmp_path / "b").read_bytes() == expected
    assert (tmp_path / "a").read_bytes() == content
    pieces = [whole[low : low + length] for whole in (content, expected) for low, length in ((0, size), part)]
    assert [row.hexdigest() for row in hashes] == [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert sum(steps) == size


def test_a_range_is_hashed_without_a_copy(tmp_path, disk):
    content = random.Random(0).randbytes(9 * PAGE)
    (tmp_path / "a").write_bytes(content)
    expected = hashlib.sha256(content[5000:25000]).hexdigest()
    assert hash_ranges(tmp_path / "a", [RangeHash(5000, 20000)]) == (expected,)


def test_a_file_that_ends_early(tmp_path, disk):
    (tmp_path / "a").write_bytes(b"x" * PAGE)
    with pytest.raises(CheckpointError, match="ends before byte 5000"):
        stream(tmp_path / "a", end=5000)


def test_a_failing_hash_or_write_is_not_lost(tmp_path, disk, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(9 * PAGE))
    (tmp_path / "b").touch()

    def full(descriptor, buffers, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        stream(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("stride", [700, 50000])
def test_overwriting_changes_these_bytes_only(tmp_path, disk, stride):
    """Close columns are written with all between them, distant ones item by item."""
    generator = random.Random(0)
    content = generator.randbytes(101 + 41 * stride)
    (tmp_path / "a").write_bytes(content)
    rows = [Strided(101 + 6 * column, stride, 6, generator.randbytes(6 * 40)) for column in (0, 3, 50)]
    rows.append(Strided(len(content) - 50, 50, 50, generator.randbytes(50)))
    overwrite(tmp_path / "a", rows)
    assert (tmp_path / "a").read_bytes() == patched(content, rows)
