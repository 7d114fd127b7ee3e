"""The file in which the moments of a model are kept: safetensors whose tensors are written, and read, where they lie.

A large model's matrices have gigabytes, of which only those of one layer are in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from amnesia.files.cache import remove_all_abandoned, scratch_folder
from amnesia.files.disk import BLOCK, sync
from amnesia.weights.safetensors import NewTensor, SafetensorsHeader, new_file, read_header

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


_DIGEST = NewTensor("sha256", "U8", (32,), ())
"""The last tensor of a file: sha256 of all bytes before it."""


@dataclass(frozen=True)
class MomentsFile:
    """A file with a header that was checked.

    It is read through `handle`, which holds it though its name should go. Without one, what is written into its tensors
    goes to the disk.
    """

    header: SafetensorsHeader
    handle: BinaryIO | None = None

    def tensor(self, name: str, place: int | None = None) -> Tensor:
        """A tensor, or one of those along its first axis, mapped into memory for as long as it is used.

        Raises KeyError for a name that the file does not have, ValueError for a type that moments do not have.
        """
        row = self.header.tensors[name]
        if row.dtype not in _TYPES:
            raise ValueError(f"type {row.dtype}")
        path = str(self.header.path) if self.handle is None else f"/dev/fd/{self.handle.fileno()}"
        content = torch.from_file(path, shared=self.handle is None, size=self.header.file_size, dtype=torch.uint8)
        found = content[row.offset : row.offset + row.size].view(_TYPES[row.dtype]).view(row.shape)
        return found if place is None else found[place]


def open_moments(path: Path, n_layers: int, d_mlp: int, d_model: int, n_names: int) -> MomentsFile:
    """The moments in a file; raises OSError, CheckpointError, KeyError or ValueError where they have not the form that
    they should have, or a byte is not as it was written."""
    file = MomentsFile(read_header(path), path.open("rb"))
    shapes = {name: row.shape for name, row in file.header.tensors.items()}
    n_tokens = shapes["activations"][0]
    wanted = {
        "second": (n_layers, d_mlp, d_mlp),
        "name_keys": (n_names, n_layers, d_mlp),
        "activations": (n_tokens, n_layers, d_mlp),
        "gradients": (n_tokens, n_layers, d_model),
    }
    if any(shapes[name] != shape for name, shape in wanted.items()):
        raise ValueError("shapes")
    if _digest(file.header) != _stored(file.header):
        raise ValueError("other bytes")
    return file


def _digest(header: SafetensorsHeader) -> bytes:
    """sha256 of all bytes before that of the file."""
    found, left = hashlib.sha256(), header.tensors[_DIGEST.name].offset
    with header.path.open("rb") as file:
        while block := file.read(min(BLOCK, left)):
            found.update(block)
            left -= len(block)
    return found.digest()


def _stored(header: SafetensorsHeader) -> bytes:
    row = header.tensors[_DIGEST.name]
    with header.path.open("rb") as file:
        file.seek(row.offset)
        return file.read(row.size)


@contextlib.contextmanager
def new_moments(path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Generator[MomentsFile]:
    """A file of zeros with room for tensors of these types and shapes, which is at `path` when the block succeeds.

    Raises OSError where it cannot be made, or the disk has no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(path)
    remove_all_abandoned(path.parent)
    with scratch_folder(path) as folder:
        made = folder / path.name
        rows = [*(NewTensor(name, _NAMES[dtype], shape, ()) for name, (dtype, shape) in tensors.items()), _DIGEST]
        size = 32 + sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in tensors.values())
        with made.open("xb") as file:
            file.writelines(new_file(rows))
            # A disk that gets full under a mapped file would end the process.
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))
        header = read_header(made)
        yield MomentsFile(header)
        with made.open("r+b") as file:
            file.seek(header.tensors[_DIGEST.name].offset)
            file.write(_digest(header))
        sync(made)
        made.replace(path)
