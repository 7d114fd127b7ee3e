"""GGUF files written anew with some tensors in another type and size, and everything after them moved.

Metadata and the bytes of all other tensors stay what they are; the list of tensors gets the new types and offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from amnesia.errors import CheckpointError
from amnesia.files.disk import patched_blocks
from amnesia.files.streams import Strided
from amnesia.weights.gguf.container import GgufFile, GgufTensor


@dataclass(frozen=True)
class ResizedTensor:
    """A tensor and its bytes to be: `content`, as `tensor_type`, comes for `size` bytes, both with their padding."""

    tensor: GgufTensor
    tensor_type: GGMLQuantizationType
    content: bytes
    size: int


def padding_of(file: GgufFile, before: int, after: int) -> int:
    """Zeros after a matrix that grew from `before` to `after` bytes, so that what follows stays aligned."""
    alignment = file.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int), "checked with the header"
    return (before - after) % alignment


def _infos(tensors: Iterable[tuple[GgufTensor, GGMLQuantizationType, int]]) -> bytes:
    """A file's list of tensors, each with its type and its offset from the start of the data."""
    parts = []
    for tensor, kind, offset in tensors:
        name = tensor.name.encode()
        sizes = tuple(reversed(tensor.shape))
        parts.append(struct.pack("<Q", len(name)) + name)
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset))
    return b"".join(parts)


def rewritten_blocks(file: GgufFile, resized: Sequence[ResizedTensor], patches: Sequence[Strided]) -> Iterator[bytes]:
    """The file with `patches`, then with these tensors replaced: all bytes, in blocks."""
    resized = sorted(resized, key=lambda row: row.tensor.offset)
    header = b"".join(patched_blocks(file.path, [], 0, file.data_offset))
    kinds = {row.tensor.name: row.tensor_type for row in resized}
    before, after = [], []
    for tensor in file.tensors.values():
        offset = tensor.offset - file.data_offset
        moved = sum(len(row.content) - row.size for row in resized if row.tensor.offset < tensor.offset)
        before.append((tensor, tensor.tensor_type, offset))
        after.append((tensor, kinds.get(tensor.name, tensor.tensor_type), offset + moved))
    infos = _infos(before)
    place = header.rfind(infos)
    if place < 0:
        raise CheckpointError(f"{file.path} has an unusual header: convert it again with llama.cpp")
    yield header[:place] + _infos(after) + header[place + len(infos) :]
    position = file.data_offset
    for row in resized:
        yield from patched_blocks(file.path, patches, position, row.tensor.offset - position)
        yield row.content
        position = row.tensor.offset + row.size
    yield from patched_blocks(file.path, patches, position, file.size - position)
