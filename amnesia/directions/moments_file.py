"""The file in which the moments of a model are kept: safetensors whose tensors are written, and read, where they lie.

A large model's matrices have gigabytes, of which only those of one layer are in memory at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from amnesia.files.cache import scratch_folder
from amnesia.files.disk import BLOCK
from amnesia.weights.safetensors import NewTensor, SafetensorsHeader, new_file, read_header

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class MomentsFile:
    """A file with a header that was checked; `shared` says that what is written into its tensors goes to the disk."""

    header: SafetensorsHeader
    shared: bool = False

    def tensor(self, name: str, place: int | None = None) -> Tensor:
        """A tensor, or one of those along its first axis, mapped into memory for as long as it is used.

        Raises KeyError for a name that the file does not have, ValueError for a type that moments do not have.
        """
        row = self.header.tensors[name]
        if row.dtype not in _TYPES:
            raise ValueError(f"type {row.dtype}")
        path, size = str(self.header.path), self.header.file_size
        content = torch.from_file(path, shared=self.shared, size=size, dtype=torch.uint8)
        found = content[row.offset : row.offset + row.size].view(_TYPES[row.dtype]).view(row.shape)
        return found if place is None else found[place]


def open_moments(path: Path, n_layers: int, d_mlp: int, d_model: int, n_names: int) -> MomentsFile:
    """The moments in a file; raises CheckpointError, KeyError or ValueError where they have not the form that they
    should have, or are not finite."""
    file = MomentsFile(read_header(path))
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
    if not all(bool(file.tensor("second", place).isfinite().all()) for place in range(n_layers)):
        raise ValueError("not finite")
    return file


@contextlib.contextmanager
def new_moments(path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Generator[MomentsFile]:
    """A file of zeros with room for tensors of these types and shapes, which is at `path` when the block succeeds.

    Raises OSError where it cannot be made, or the disk has no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(path)
    with scratch_folder(path) as folder:
        made = folder / path.name
        rows = [NewTensor(name, _NAMES[dtype], shape, ()) for name, (dtype, shape) in tensors.items()]
        size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in tensors.values())
        with made.open("xb") as file:
            file.writelines(new_file(rows))
            # A disk that gets full under a mapped file would end the process.
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))
        yield MomentsFile(read_header(made), shared=True)
        made.replace(path)
