"""Headers of GGUF files, read strictly and in bounded memory.

Knows the container: metadata, tensor infos, alignment, and models split over several files. Does not know what a
tensor means, and never reads tensor data. Every length in a header is checked against the file's size before anything
is read or allocated, because the header may come from anywhere; what the format permits but no model has (a million
tensors, kilobytes of key) is refused. Metadata that only a tokenizer needs is skipped, not kept.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from amnesia.errors import CheckpointError, os_errors_as
from amnesia.files.disk import open_regular
from amnesia.files.lfs import POINTER, check_no_pointer
from amnesia.files.listing import check_inside

# Limits far above any model's need (llama.cpp itself stops at 64 bytes of tensor name and 4 dimensions).
MAX_KEYS = 4096
MAX_TENSORS = 65536
MAX_NAME_BYTES = 512
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_ARRAY_STRINGS = 1 << 21
MAX_NESTED_ARRAYS = 1 << 12
# Longer strings (chat templates, licenses) are recorded by their length alone.
MAX_KEPT_BYTES = 1024

_SCALARS: Mapping[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = _SCALARS[GGUFValueType.UINT32]
_U64 = _SCALARS[GGUFValueType.UINT64]
_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?i:gguf))")
_MATRIX = re.compile(r"(?P<name>.+)\[(?P<index>\d{1,9})\]")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Skipped:
    """A metadata value that is present but not kept: an array or a long string of `length` items or bytes."""

    kind: str
    length: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.length}"


Value = int | float | bool | str | Skipped


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` slowest axis first as in PyTorch (n_rows, n_columns), `offset` in bytes from file start."""

    name: str
    tensor_type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of one index of all axes but the last; rows are whole blocks and contiguous."""
        block_size, block_bytes = GGML_QUANT_SIZES[self.tensor_type]
        return self.shape[-1] // block_size * block_bytes

    def matrix(self, index: int) -> GgufTensor | None:
        """One of the matrices that a tensor of three axes holds one after the other; None where it has no such one."""
        if len(self.shape) != 3 or index >= self.shape[0]:
            return None
        size = self.n_bytes // self.shape[0]
        return GgufTensor(f"{self.name}[{index}]", self.tensor_type, self.shape[1:], self.offset + index * size, size)


@dataclass(frozen=True)
class GgufFile:
    """The header of one file; `size` is the file's size in bytes, `data_offset` where tensor data may begin."""

    path: Path
    size: int
    data_offset: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


@dataclass(frozen=True)
class GgufModel:
    """A whole model: its files in order (one unless split), with the metadata of the first."""

    files: tuple[GgufFile, ...]

    @property
    def metadata(self) -> Mapping[str, Value]:
        return self.files[0].metadata

    def tensors(self) -> Iterator[tuple[GgufFile, GgufTensor]]:
        """Every tensor with the file that holds it, in file order."""
        for file in self.files:
            for tensor in file.tensors.values():
                yield file, tensor

    def find(self, name: str) -> tuple[GgufFile, GgufTensor] | None:
        """The tensor called `name` and its file, or None; `x[3]` is matrix 3 of a tensor of three axes."""
        match = _MATRIX.fullmatch(name)
        whole = name if match is None else match["name"]
        found = next(((file, file.tensors[whole]) for file in self.files if whole in file.tensors), None)
        if match is None or found is None:
            return found
        matrix = found[1].matrix(int(match["index"]))
        return None if matrix is None else (found[0], matrix)


def read_model(path: Path) -> GgufModel:
    """Headers of the model that `path` belongs to: of the file itself, or of every part if it is split.

    Raises CheckpointError for a malformed file, a part that is missing, and parts that contradict each other.
    """
    first = read_header(path)
    match = _PART_NAME.fullmatch(path.name)
    declared = _integer(first, "split.count", default=0 if match is None else None)
    if declared <= 1 and match is None:
        return GgufModel((first,))
    if match is None:
        raise CheckpointError(
            f"{path.name} is one of {declared} parts by its metadata, but not by its name: "
            f"name the parts like NAME-00001-of-{declared:05d}.gguf"
        )
    count = int(match["count"])
    if declared != count or not 1 <= int(match["number"]) <= count:
        raise CheckpointError(
            f"{path.name} has split.count = {declared} in its metadata: its name says something else; "
            "restore the original name"
        )
    paths = [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}{match['suffix']}")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {count} parts are missing beside {path.name}, the first is {missing[0]}: fetch them all"
        )
    for part in paths:
        if part != path:  # That one was named, wherever it leads.
            check_inside(part, path.parent)
    files = tuple(read_header(part) for part in paths)
    names: set[str] = set()
    for number, file in enumerate(files):
        place = _integer(file, "split.no"), _integer(file, "split.count")
        if place != (number, count):
            raise CheckpointError(
                f"{file.path.name} is not part {number + 1} of {count} by its metadata "
                f"(split.no = {place[0]}, split.count = {place[1]}): restore the original names"
            )
        repeated = names.intersection(file.tensors)
        if repeated:
            raise CheckpointError(f"tensor {min(repeated)} is in two parts of {path.name}: fetch the parts again")
        names.update(file.tensors)
    total = _integer(files[0], "split.tensors.count")
    if total != len(names):
        raise CheckpointError(
            f"the {count} parts of {path.name} hold {len(names)} tensors, but declare {total}: fetch the parts again"
        )
    return GgufModel(files)


def read_header(path: Path) -> GgufFile:
    """Read and check the header of one file; raises CheckpointError that names the file and the fault."""
    with os_errors_as(CheckpointError, f"{path} cannot be read", "give a .gguf file"):
        with open_regular(path) as stream:
            check_no_pointer(str(path), stream.read(len(POINTER)))
            stream.seek(0)
            return _Header(path, stream, os.fstat(stream.fileno()).st_size).read()


def _integer(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found = "lacks" if value is None else f"has {value!r} as"
        raise CheckpointError(f"{file.path.name} {found} {key}: expected a whole number; the file is damaged")
    return value


class _Header:
    """A cursor over a header; every step first checks that the file is long enough for it."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self._path = path
        self._stream = stream
        self._size = size
        self._position = 0
        self._strings_left = MAX_ARRAY_STRINGS
        self._arrays_left = MAX_NESTED_ARRAYS

    def read(self) -> GgufFile:
        self._read_preamble()
        n_tensors = self._count("tensors", MAX_TENSORS)
        n_keys = self._count("metadata keys", MAX_KEYS)
        metadata = self._read_entries("metadata key", n_keys, self._read_value_of_key)
        infos = self._read_entries("tensor", n_tensors, self._read_tensor_info)
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment}, not a power of two between 8 and 1 Mi")
        data_offset = -(-self._position // alignment) * alignment
        tensors = {name: self._place(name, info, alignment, data_offset) for name, info in infos.items()}
        self._check_overlap(tensors.values())
        return GgufFile(self._path, self._size, data_offset, metadata, tensors)

    def _error(self, fault: str, remedy: str = "the file is damaged; fetch it again") -> CheckpointError:
        return CheckpointError(f"{self._path.name}: {fault}: {remedy}")

    def _read_preamble(self) -> None:
        if self._size < 24 or self._take(4) != b"GGUF":
            raise self._error("it does not begin like a GGUF file", "give a .gguf file of version 2 or 3")
        version = self._unpack(_U32)
        if version & 0xFFFF == 0 and version:
            raise self._error("it is big-endian", "convert it to little-endian first")
        if version not in (2, 3):
            raise self._error(f"it has GGUF version {version}", "convert it to version 3 with llama.cpp")

    def _take(self, n_bytes: int) -> bytes:
        """The next `n_bytes`, which callers have bounded to something small."""
        self._require(n_bytes)
        data = self._stream.read(n_bytes)
        if len(data) != n_bytes:
            raise self._error(f"it became shorter than {self._size} bytes while it was read")
        self._position += n_bytes
        return data

    def _skip(self, n_bytes: int) -> None:
        self._require(n_bytes)
        self._position += n_bytes
        if n_bytes <= MAX_KEPT_BYTES:
            self._stream.read(n_bytes)  # Reading from the buffer is much faster than seeking, for 100,000 tokens.
        else:
            self._stream.seek(self._position)

    def _require(self, n_bytes: int) -> None:
        if n_bytes > self._size - self._position:
            raise self._error(
                f"it has {self._size} bytes, but its header asks for {n_bytes} more at byte {self._position}"
            )

    def _unpack(self, kind: struct.Struct) -> int:
        return kind.unpack(self._take(kind.size))[0]

    def _count(self, what: str, limit: int) -> int:
        count = self._unpack(_U64)
        if count > limit:
            raise self._error(f"it declares {count} {what}, more than the {limit} that any model has")
        return count

    def _name(self, what: str) -> str:
        length = self._unpack(_U64)
        if length > MAX_NAME_BYTES:
            raise self._error(f"a {what} has {length} bytes, more than {MAX_NAME_BYTES}")
        return self._text(self._take(length), what)

    def _text(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"a {what} is not UTF-8 text") from error

    def _read_entries(self, what: str, count: int, read_entry: Callable[[str], _T]) -> dict[str, _T]:
        entries: dict[str, _T] = {}
        for _ in range(count):
            name = self._name(what)
            if name in entries:
                raise self._error(f"{what} {name!r} is listed twice")
            entries[name] = read_entry(name)
        return entries

    def _read_value_of_key(self, key: str) -> Value:
        return self._read_value(key, self._unpack(_U32), depth=0)

    def _read_value(self, key: str, kind: int, depth: int) -> Value:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind == GGUFValueType.STRING:
            length = self._unpack(_U64)
            if length <= MAX_KEPT_BYTES:
                return self._text(self._take(length), f"value of {key!r}")
            self._skip(length)
            return Skipped("string", length)
        if kind == GGUFValueType.ARRAY:
            item_kind, length = self._unpack(_U32), self._unpack(_U64)
            self._skip_items(key, item_kind, length, depth + 1)
            return Skipped("array", length)
        raise self._error(f"metadata key {key!r} has the unknown type {kind}")

    def _skip_items(self, key: str, kind: int, length: int, depth: int) -> None:
        if kind in _SCALARS:
            self._skip(length * _SCALARS[kind].size)
            return
        if depth > MAX_ARRAY_DEPTH:
            raise self._error(f"metadata key {key!r} nests more than {MAX_ARRAY_DEPTH} arrays")
        # Items of these kinds take time one by one, so that their number is bounded over the whole header.
        if kind == GGUFValueType.STRING:
            self._strings_left -= length
        else:
            self._arrays_left -= length
        if self._strings_left < 0 or self._arrays_left < 0:
            raise self._error(f"metadata key {key!r} has {length} items, more than any tokenizer")
        if kind == GGUFValueType.STRING:
            for _ in range(length):
                self._skip(self._unpack(_U64))
        else:
            for _ in range(length):
                self._read_value(key, kind, depth)

    def _read_tensor_info(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Shape (slowest axis first), type number and offset relative to the data."""
        n_dimensions = self._unpack(_U32)
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {n_dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        sizes = [self._unpack(_U64) for _ in range(n_dimensions)]
        return tuple(reversed(sizes)), self._unpack(_U32), self._unpack(_U64)

    def _place(self, name: str, info: tuple[tuple[int, ...], int, int], alignment: int, data_offset: int) -> GgufTensor:
        shape, number, relative = info
        try:
            tensor_type = GGMLQuantizationType(number)
        except ValueError:
            raise self._error(
                f"tensor {name!r} has the unknown type {number}", "update the gguf package, or use another quantization"
            ) from None
        block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
        if shape[-1] % block_size:
            raise self._error(
                f"tensor {name!r} has rows of {shape[-1]} values, not whole {tensor_type.name} blocks of {block_size}"
            )
        n_bytes = block_bytes
        for size in (*shape[:-1], shape[-1] // block_size):
            n_bytes *= size
        if not n_bytes:
            raise self._error(f"tensor {name!r} is empty")
        if relative % alignment:
            raise self._error(f"tensor {name!r} starts at {relative}, not at a multiple of {alignment}")
        if data_offset + relative + n_bytes > self._size:
            raise self._error(f"tensor {name!r} ends at byte {data_offset + relative + n_bytes} of {self._size}")
        return GgufTensor(name, tensor_type, shape, data_offset + relative, n_bytes)

    def _check_overlap(self, tensors: Iterable[GgufTensor]) -> None:
        end, previous = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._error(f"tensors {previous!r} and {tensor.name!r} overlap")
            end, previous = tensor.offset + tensor.n_bytes, tensor.name
