"""The safetensors format on disk: headers, indices, and strided access without loading a tensor.

Everything that a file says about itself is checked before it is believed: a header that lies about offsets, shapes or
its own length gives a CheckpointError, never a large allocation.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amnesia.domain import is_gguf_name
from amnesia.errors import CheckpointError, os_errors_as
from amnesia.files.companions import LORA_NAME
from amnesia.files.disk import BLOCK, open_regular, read_exactly, read_small
from amnesia.files.lfs import POINTER, check_no_pointer
from amnesia.files.listing import list_files
from amnesia.files.streams import Strided
from amnesia.files.strict_json import StrictJson, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Bits per element of every type that the format defines.
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
# The format's own limit; real headers have at most a few megabytes.
_MAX_HEADER = 100_000_000
MAX_INDEX = 100_000_000
_MAX_DIMENSIONS = 64
# No model has longer rows or columns; a file that claims one is hostile.
_MAX_VECTOR = 2**26


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its data are `size` bytes from `offset` (counted from the start of the file)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def item_size(self) -> int:
        """Bytes per element; only meaningful for types of whole bytes."""
        return DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file contains. `content` are the bytes before the data: the length and the JSON, as they are in the file.

    `path` is only its name where the file is not on this disk.
    """

    path: Path
    file_size: int
    content: bytes
    tensors: Mapping[str, TensorInfo]

    def find(self, name: str) -> TensorInfo | None:
        """The tensor `name`, where `name[3]` is matrix 3 of a tensor with three axes; None if there is none."""
        stem, place = split_name(name)
        if name in self.tensors or place is None:
            return self.tensors.get(name)
        whole = self.tensors.get(stem)
        if whole is None or len(whole.shape) != 3 or DTYPE_BITS[whole.dtype] % 8 or place >= whole.shape[0]:
            return None
        size = whole.size // whole.shape[0]
        return TensorInfo(name, whole.dtype, whole.shape[1:], whole.offset + place * size, size)


def split_name(name: str) -> tuple[str, int | None]:
    """A tensor's name without the `[3]` that picks one of its matrices, and that number."""
    match = re.fullmatch(r"(.+)\[([0-9]{1,9})\]", name)
    return (name, None) if match is None else (match[1], int(match[2]))


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header; raises CheckpointError when the file is missing, truncated or contradicts itself."""
    with os_errors_as(CheckpointError, f"{path} cannot be read", "fetch it again"):
        with open_regular(path) as file:
            file_size = os.fstat(file.fileno()).st_size
            return header_of(path, file_size, lambda start, size: read_exactly(file.fileno(), size, start, str(path)))


def header_of(path: Path, file_size: int, read: Callable[[int, int], bytes]) -> SafetensorsHeader:
    """The header of a file of `file_size` bytes, wherever it is: `read` gets an offset and a number of bytes.

    Checked: length, JSON without duplicate keys, known types, shapes that fit their offsets, and data that fill the
    file without gaps or overlaps. Raises CheckpointError.
    """
    json_file = StrictJson(str(path), CheckpointError, "the file is damaged, fetch it again")
    if file_size < 8:
        raise json_file.fail(f"has {file_size} bytes, too few for a safetensors header")
    prefix = read(0, 8)
    if prefix == POINTER[:8]:
        check_no_pointer(str(path), read(0, min(file_size, len(POINTER))))
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER, file_size - 8):
        raise json_file.fail(f"claims a header of {length} bytes in a file of {file_size}")
    content = read(8, length)
    if not content.startswith(b"{"):
        raise json_file.fail("has a header that does not start with {")
    rows = json_file.mapping(json_file.parse(content), "header")
    metadata = rows.get("__metadata__")
    for key, value in json_file.mapping({} if metadata is None else metadata, "__metadata__").items():
        if not isinstance(value, str):
            raise json_file.fail(f"has metadata {shown(key)} that is not a string")
    tensors = [_tensor(json_file, name, row, 8 + length) for name, row in rows.items() if name != "__metadata__"]
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            raise json_file.fail(f"has tensor {shown(tensor.name)} at byte {tensor.offset}, expected {end}")
        end += tensor.size
    if end != file_size:
        raise json_file.fail(f"has {file_size} bytes, its header describes {end}")
    return SafetensorsHeader(path, file_size, prefix + content, {tensor.name: tensor for tensor in tensors})


def _tensor(json_file: StrictJson, name: str, value: object, data_start: int) -> TensorInfo:
    row = json_file.object(value, shown(name), "dtype shape data_offsets")
    dtype = row["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise json_file.fail(f"has tensor {shown(name)} of unknown type {shown(dtype)}")
    shape = tuple(json_file.integer(size, "shape") for size in json_file.list(row["shape"], "shape"))
    offsets = [json_file.integer(offset, "data_offsets") for offset in json_file.list(row["data_offsets"], "offsets")]
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > _MAX_DIMENSIONS:
        raise json_file.fail(f"has tensor {shown(name)} with malformed offsets or shape")
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    if bits != 8 * (offsets[1] - offsets[0]):
        raise json_file.fail(
            f"has tensor {shown(name)} with {offsets[1] - offsets[0]} bytes, its shape and type need {shown(bits // 8)}"
        )
    return TensorInfo(name, dtype, shape, data_start + offsets[0], offsets[1] - offsets[0])


Wanted = Callable[[Collection[str]], Collection[str]]
"""Which of the names of tensors are asked for."""


@dataclass(frozen=True)
class WeightFiles:
    """Where the weights of a model folder are: tensor name → file name, and the checked header of each file."""

    location: Mapping[str, str]
    headers: Mapping[str, SafetensorsHeader]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name."""
        return {row.name: row.shape for header in self.headers.values() for row in header.tensors.values()}

    def find(self, name: str) -> tuple[str, TensorInfo] | None:
        """File and place of a tensor, as `SafetensorsHeader.find` understands its name."""
        file = self.location.get(name) or self.location.get(split_name(name)[0])
        tensor = None if file is None else self.headers[file].find(name)
        return None if file is None or tensor is None else (file, tensor)

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None if there is none of this name."""
        found = self.find(name)
        return None if found is None else found[1].shape


def read_weight_files(folder: Path, wanted: Wanted = frozenset) -> WeightFiles:
    """Read the index, or the single file, and the header of every shard that holds a tensor that is wanted.

    Raises CheckpointError when there are no safetensors weights, when the index points outside the folder, when a shard
    is missing, and when index and shards disagree.
    """
    index = folder / INDEX_FILE
    content = None
    if index.is_file():
        with os_errors_as(CheckpointError, f"{index} cannot be read", "fetch the model again"):
            content = read_small(index, MAX_INDEX)
    elif not (folder / SINGLE_FILE).is_file():
        raise CheckpointError(no_weights(str(folder), list_files(folder)))
    return weight_files(
        str(folder), content, lambda name: (folder / name).is_file(), lambda name: read_header(folder / name), wanted
    )


def weight_files(
    where: str,
    index: bytes | None,
    has: Callable[[str], bool],
    read: Callable[[str], SafetensorsHeader],
    wanted: Wanted = frozenset,
) -> WeightFiles:
    """The weights of the model `where`, from the content of its index, or from a single file when there is none.

    `has` tells whether the model has a file, `read` gives its header; of the names in an index only those `wanted` are
    looked for. Raises CheckpointError as `read_weight_files`.
    """
    if index is None:
        header = read(SINGLE_FILE)
        return WeightFiles(dict.fromkeys(header.tensors, SINGLE_FILE), {SINGLE_FILE: header})
    location = location_of(where, index)
    if has(SINGLE_FILE) and SINGLE_FILE not in location.values():
        raise CheckpointError(
            f"{where} has {SINGLE_FILE} and an index of other files: remove the one that is not to be used"
        )
    n_shards, keep = len({*location.values()}), wanted(location.keys())
    location = {tensor: name for tensor, name in location.items() if tensor in keep}
    shards = sorted(set(location.values()))
    missing = [name for name in shards if not has(name)]
    if missing:
        raise CheckpointError(
            f"{where} lacks {missing[0]}, {len(missing)} of {n_shards} shards are missing: fetch the whole model"
        )
    headers = {name: read(name) for name in shards}
    for tensor, name in location.items():
        if tensor not in headers[name].tensors:
            raise CheckpointError(
                f"{where}/{INDEX_FILE} places {shown(tensor)} in {name}, which lacks it: fetch the model again"
            )
    # The index may leave tensors out, which programs find in the shards nevertheless.
    holders: dict[str, str] = {}
    for name, header in headers.items():
        for tensor in header.tensors:
            if holders.setdefault(tensor, name) != name:
                raise CheckpointError(
                    f"{where} holds {shown(tensor)} in {holders[tensor]} and again in {name}: fetch the model again"
                )
    return WeightFiles(holders, headers)


def location_of(where: str, content: bytes) -> dict[str, str]:
    """Tensor → file, by the content of the index of the model `where`; raises CheckpointError."""
    json_file = StrictJson(f"{where}/{INDEX_FILE}", CheckpointError, "fetch the model again")
    if len(content) > MAX_INDEX:
        raise json_file.fail(f"has more than {MAX_INDEX} bytes")
    index = json_file.mapping(json_file.parse(content), "index")
    weight_map = json_file.mapping(index.get("weight_map"), "weight_map")
    if not weight_map:
        raise json_file.fail("has an empty weight_map")
    location = {tensor: json_file.file_name(name, f"the file of {tensor}") for tensor, name in weight_map.items()}
    for tensor, name in location.items():
        if not name.endswith(".safetensors"):
            raise json_file.fail(f"places {shown(tensor)} in {shown(name)}, which is no safetensors file")
    return location


def no_weights(where: str, names: Collection[str]) -> str:
    """Why the folder or repository `where`, with files of these names, has no weights to read, and what to give."""
    files = sorted(names)
    if {"adapter_config.json", "adapter_model.safetensors"} <= {*files}:
        return f"{where} is an adapter, not a model: give the model that it is for, or merge the two with PEFT"
    ggufs = [name for name in files if is_gguf_name(name)]
    if ggufs == [LORA_NAME]:
        return f"{where} is a LoRA of llama.cpp, not a model: give the .gguf model that it is for"
    if found := next((name for name in ggufs if name != LORA_NAME), None):
        return f"{where} has no safetensors weights, but a GGUF: give the path of {found} itself, on this disk"
    if found := next((name for name in files if name.endswith("/config.json")), None):
        inner = found.removesuffix("/config.json")
        return f"{where} has no safetensors weights, but a model in {inner}: give that folder, {where}/{inner}"
    if found := next((name for name in files if name.endswith(PICKLE_SUFFIXES)), None):
        return (
            f"{where} has only pickle weights ({found}), which can run code when loaded: convert them to "
            "safetensors, for example with the Hub's convert Space, and use the result"
        )
    return f"{where} has no safetensors weights: expected {SINGLE_FILE} or a sharded index"


def check_matrix(tensor: TensorInfo, axis: int, indices: Iterable[int]) -> None:
    """Raises CheckpointError unless `tensor` has two axes of sane length, whole bytes, and every index on `axis`."""
    if len(tensor.shape) != 2 or DTYPE_BITS[tensor.dtype] % 8 or max(tensor.shape) * tensor.item_size > _MAX_VECTOR:
        raise CheckpointError(
            f"tensor {tensor.name} is {tensor.dtype} of shape {list(tensor.shape)}: expected a matrix of whole bytes"
        )
    for index in indices:
        if not 0 <= index < tensor.shape[axis]:
            raise CheckpointError(
                f"tensor {tensor.name} has no index {index} on axis {axis}: its shape is {tensor.shape}"
            )


def read_vectors(descriptor: int, tensor: TensorInfo, axis: int, indices: tuple[int, ...]) -> dict[int, bytes]:
    """The vectors at `indices` of `axis` (columns for axis 1, rows for axis 0), each as contiguous bytes.

    For columns the whole tensor is read, in order: a disk gives a run of pages faster than one page of each row. Memory
    is bounded by the vectors themselves and one block. Raises CheckpointError as `check_matrix` does.
    """
    check_matrix(tensor, axis, indices)
    if axis == 1:
        return columns_of(tensor, indices, read_row_blocks(descriptor, tensor))
    row_size = tensor.shape[1] * tensor.item_size
    return {
        index: read_exactly(descriptor, row_size, tensor.offset + index * row_size, tensor.name) for index in indices
    }


def columns_of(tensor: TensorInfo, indices: tuple[int, ...], blocks: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Columns out of all rows of a tensor, which come in blocks of whole rows: (first row, bytes)."""
    rows, columns = tensor.shape
    item = tensor.item_size
    vectors = {index: bytearray(rows * item) for index in indices}
    for first, block in blocks:
        elements = np.frombuffer(block, np.uint8).reshape(-1, columns, item)
        for index, vector in vectors.items():
            vector[first * item : (first + len(elements)) * item] = elements[:, index].tobytes()
    return {index: bytes(vector) for index, vector in vectors.items()}


def read_row_blocks(descriptor: int, tensor: TensorInfo) -> Iterator[tuple[int, bytes]]:
    """The tensor's data in blocks of whole rows: (first row, bytes). A row larger than a block comes alone."""
    rows, columns = tensor.shape
    row_size = columns * tensor.item_size
    step = max(1, BLOCK // max(1, row_size))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield first, read_exactly(descriptor, count * row_size, tensor.offset + first * row_size, tensor.name)


def patches_of(tensor: TensorInfo, axis: int, vectors: Mapping[int, bytes]) -> list[Strided]:
    """Columns (axis 1) or rows (axis 0) of a tensor, by index, as bytes of its file."""
    item = tensor.item_size
    row = tensor.shape[1] * item
    step, stride, size = (item, row, item) if axis == 1 else (row, row, row)
    return [Strided(tensor.offset + index * step, stride, size, vector) for index, vector in vectors.items()]


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: `blocks` gives its data in order, so that it need not be in memory at once."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[bytes]


def new_file(tensors: Iterable[NewTensor]) -> Iterator[bytes]:
    """The bytes of a safetensors file that holds `tensors` in the given order, block by block."""
    tensors = tuple(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        size = DTYPE_BITS[tensor.dtype] // 8
        for length in tensor.shape:
            size *= length
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    content = json.dumps(header, separators=(",", ":")).encode("utf-8")
    content += b" " * (-len(content) % 8)  # The format wants aligned data.
    yield struct.pack("<Q", len(content)) + content
    for tensor in tensors:
        yield from tensor.blocks
