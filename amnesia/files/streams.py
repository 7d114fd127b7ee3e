"""Bytes of large files as a stream: read, patched, hashed and written at the same time.

Each of these runs in a thread of its own, so that the slowest of them, mostly the disk, sets the time. Where the system
allows it, bytes go past the page cache, which would cost a copy of each byte and push out what other programs keep
there; what the cache holds already is taken from it. Memory is that of a few pieces, whatever the file's size.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from amnesia.errors import CheckpointError

# Large enough for the disk's full speed; eight of them are in memory at most.
PIECE = 8 * 2**20
_N_PIECES = 4
# Every disk accepts direct access at multiples of this, and no page is smaller.
PAGE = 4096


@dataclass(frozen=True)
class Strided:
    """Bytes of a file: items of `item` bytes, `stride` bytes apart, the first one at `offset`.

    `content` are the items one after the other: a column of a matrix, or with a stride of one item a run of bytes.
    """

    offset: int
    stride: int
    item: int
    content: bytes

    @property
    def end(self) -> int:
        """Where the last item ends."""
        return self.offset + (len(self.content) // self.item - 1) * self.stride + self.item

    def places(self) -> Iterator[tuple[int, slice]]:
        """Where each item is in the file, and where in `content`."""
        for number in range(len(self.content) // self.item):
            yield self.offset + number * self.stride, slice(number * self.item, (number + 1) * self.item)

    def put(self, piece: np.ndarray, start: int) -> None:
        """Overwrite what `piece`, the bytes of the file from `start`, has of these items; they may reach beyond it."""
        values = np.frombuffer(self.content, np.uint8)
        if self.stride == self.item:
            low, high = max(self.offset, start), min(self.end, start + len(piece))
            if low < high:
                piece[low - start : high - start] = values[low - self.offset : high - self.offset]
            return
        first = max(0, -((self.offset + self.item - 1 - start) // self.stride))
        last = min(len(values) // self.item, -((self.offset - start - len(piece)) // self.stride))
        if first < last:
            items = np.arange(first, last)[:, None] * self.stride + np.arange(self.item) + (self.offset - start)
            inside = (items >= 0) & (items < len(piece))
            piece[items[inside]] = values.reshape(-1, self.item)[first:last][inside]


@dataclass(frozen=True)
class RangeHash:
    """The sha256 of `size` bytes of a file from `offset`, before or after the patches; `stream` fills it in."""

    offset: int
    size: int
    patched: bool = False
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def update(self, piece: np.ndarray, start: int) -> None:
        """Add what `piece`, the bytes of the file from `start`, has of the range; pieces come in order."""
        low, high = max(self.offset, start), min(self.offset + self.size, start + len(piece))
        if low < high:
            self.digest.update(piece[low - start : high - start].data)

    def hexdigest(self) -> str:
        """The hash, once the stream has ended."""
        return self.digest.hexdigest()


def stream(
    source: Path,
    target: Path | None = None,
    *,
    start: int = 0,
    end: int | None = None,
    patches: Sequence[Strided] = (),
    hashes: Sequence[RangeHash] = (),
    advance: Callable[[int], None] | None = None,
) -> None:
    """Read `source` from `start`, a multiple of `PAGE`, to `end`, and write it, patched, to the same place of `target`.

    `target` must exist and may be `source` itself; without it the bytes are only hashed. `advance` is called with the
    number of bytes that each step has read. Nothing is forced to the disk. Raises CheckpointError when `source` ends
    before `end`, and OSError when something cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_open_both(source, os.O_RDONLY))
        writer = None if target is None else stack.enter_context(_open_both(target, os.O_WRONLY))
        end = os.fstat(reader[0]).st_size if end is None else end
        pending: list[list[Future[None]]] = [[] for _ in range(min(_N_PIECES, -(-(end - start) // PIECE)))]
        buffers = [np.frombuffer(mmap.mmap(-1, PIECE), np.uint8) for _ in pending]
        spares = [np.frombuffer(mmap.mmap(-1, PIECE), np.uint8) for _ in pending] if patches else []
        # One worker each, so that hashes and writes stay in order.
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        for number, position in enumerate(range(start, end, PIECE)):
            slot = number % _N_PIECES
            for future in pending[slot]:
                future.result()
            size = min(PIECE, end - position)
            _read(reader, buffers[slot], size, position, source)
            piece = patched = buffers[slot][:size]
            touching = [patch for patch in patches if patch.offset < position + size and patch.end > position]
            if touching:
                patched = spares[slot][:size]
                patched[:] = piece
                for patch in touching:
                    patch.put(patched, position)
            pending[slot] = [
                workers[row.patched].submit(row.update, patched if row.patched else piece, position)
                for row in hashes
                if row.offset < position + size and row.offset + row.size > position
            ]
            if writer is not None:
                pending[slot].append(workers[2].submit(_write, writer, patched, position))
            if advance is not None:
                advance(size)
        for futures in pending:
            for future in futures:
                future.result()


def hash_ranges(path: Path, hashes: Sequence[RangeHash], patches: Sequence[Strided] = ()) -> tuple[str, ...]:
    """Fill in the hashes from the part of a file that they need, and return them; raises as `stream` does."""
    start = min(row.offset for row in hashes) // PAGE * PAGE
    end = max(row.offset + row.size for row in hashes)
    stream(path, start=start, end=end, patches=patches, hashes=hashes)
    return tuple(row.hexdigest() for row in hashes)


def overwrite(path: Path, patches: Sequence[Strided]) -> None:
    """Overwrite bytes of an existing file and force them to the disk; other bytes keep their values.

    Where items are few, the pages that hold them are written; else all pages between the first and the last of them,
    because a disk takes a run of pages faster than a quarter of them one by one.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        size = os.fstat(descriptor).st_size
        for group in _overlapping(patches):
            if group[0].stride == group[0].item or len(group) * PAGE * 4 <= group[0].stride:
                for patch in group:
                    for offset, place in patch.places():
                        _write((descriptor, None), np.frombuffer(patch.content[place], np.uint8), offset)
            else:
                end = max(patch.end for patch in group)
                stream(
                    path,
                    path,
                    start=min(patch.offset for patch in group) // PAGE * PAGE,
                    end=min(size, -(-end // PAGE) * PAGE),
                    patches=group,
                )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overlapping(patches: Sequence[Strided]) -> list[list[Strided]]:
    """Patches in groups whose ranges overlap: the columns of a matrix."""
    groups: list[list[Strided]] = []
    end = 0
    for patch in sorted(patches, key=lambda patch: patch.offset):
        if groups and patch.offset < end and patch.stride == groups[-1][0].stride:
            groups[-1].append(patch)
        else:
            groups.append([patch])
        end = max(end, patch.end)
    return groups


Descriptors = tuple[int, int | None]


@contextlib.contextmanager
def _open_both(path: Path, flags: int) -> Generator[Descriptors]:
    """A file by way of the page cache and, where the filesystem has it, past it."""
    with contextlib.ExitStack() as stack:
        plain = os.open(path, flags)
        stack.callback(os.close, plain)
        direct = None
        if hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):
                direct = os.open(path, flags | os.O_DIRECT)
                stack.callback(os.close, direct)
        if hasattr(os, "posix_fadvise") and flags == os.O_RDONLY:
            os.posix_fadvise(plain, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield plain, direct


def _read(descriptors: Descriptors, buffer: np.ndarray, size: int, offset: int, path: Path) -> None:
    """Fill the first `size` bytes of a page-aligned buffer."""
    plain, direct = descriptors
    count = 0
    if direct is not None:
        # What is in the page cache costs a copy; what is not is read past it, in whole pages.
        with contextlib.suppress(OSError):
            count = os.preadv(plain, [buffer[:size].data], offset, os.RWF_NOWAIT)
        if count < size:
            count = 0
            with contextlib.suppress(OSError):
                count = os.preadv(direct, [buffer[: -(-size // PAGE) * PAGE].data], offset)
    while count < size:
        found = os.preadv(plain, [buffer[count:size].data], offset + count)
        if not found:
            raise CheckpointError(f"{path} ends before byte {offset + size}: fetch it again")
        count += found


def _write(descriptors: Descriptors, piece: np.ndarray, offset: int) -> None:
    """Write all of `piece`; whole pages go past the page cache, if it starts with one and lies at one."""
    plain, direct = descriptors
    count = 0
    whole = len(piece) // PAGE * PAGE
    if direct is not None and whole and offset % PAGE == 0:
        # Filesystems that refuse direct access only when it happens get the bytes the usual way.
        with contextlib.suppress(OSError):
            count = os.pwritev(direct, [piece[:whole].data], offset)
    while count < len(piece):
        count += os.pwritev(plain, [piece[count:].data], offset + count)
