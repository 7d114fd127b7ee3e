"""What a model will take from memory, told before it is taken, and what to do where there is not so much."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from amnesia.errors import InputError
from amnesia.files.memory import available_memory
from amnesia.weights.checkpoint import CheckpointSource
from amnesia.weights.safetensors import TensorInfo

_GB = 1e9
_WORTH_A_LINE = 1e9
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Need:
    """Bytes of a model's weights: `taken` from memory, and `mapped`, which stay in their files and share what is left.

    `dtype` is the type that is computed in, `stored` that of most of the files where it is another one.
    """

    taken: float
    mapped: float
    dtype: str
    stored: str | None

    def line(self, name: str) -> str | None:
        """What the model `name` takes, for those who wait for it; None for small models."""
        if self.taken + self.mapped < _WORTH_A_LINE:
            return None
        sizes = ((self.taken, "in memory"), (self.mapped, "mapped from files"))
        parts = [f"{size / _GB:.1f} GB {how}" for size, how in sizes if size]
        return f"weights of {name} in {self.dtype}: {' and '.join(parts)}, {available_memory() / _GB:.1f} GB are free"

    def check(self, name: str, options: Collection[str] = ()) -> None:
        """Raise InputError when there is less memory than the model `name` takes, before it is taken.

        Of `options` it advises those that take less.
        """
        if self.taken <= (free := available_memory()):
            return
        remedies = []
        if self.stored is not None and "--dtype" in options:
            remedies.append(f"give --dtype {self.stored}, in which nothing is copied")
        if "--offload" in options:
            remedies.append("leave its layers on the disk (--offload)")
        remedies.append("use a machine with more memory")
        raise InputError(
            f"{name} takes {self.taken / _GB:.1f} GB of memory in {self.dtype}, and {free / _GB:.1f} GB are free: "
            f"{', or '.join(remedies)}"
        )


def need_of(parameters: Mapping[str, nn.Parameter], checkpoint: CheckpointSource, dtype: str) -> Need:
    """What parameters take, of which shapes are enough, in the type of the name `dtype`; "auto" is as they are stored.

    Weights that are stored in the type that is computed in are not copied. Matrices of experts are, where transformers
    puts them together.
    """
    found = [(parameter, _stored(checkpoint, name)) for name, parameter in parameters.items()]
    sizes: dict[str, int] = {}
    for parameter, stored in found:
        if stored is not None:
            sizes[stored] = sizes.get(stored, 0) + parameter.numel()
    usual = max(sizes, key=lambda name: sizes[name], default=None)
    dtype = usual or "float32" if dtype == "auto" else dtype
    size = getattr(torch, dtype).itemsize
    taken = mapped = 0
    for parameter, stored in found:
        together = stored is None and parameter.ndim == 3
        if (stored or usual) == dtype and not together:
            mapped += parameter.numel() * size
        else:
            taken += parameter.numel() * size
    return Need(taken, mapped, dtype, None if usual == dtype else usual)


def stored_size(checkpoint: CheckpointSource, name: str) -> int | None:
    """Bytes of a tensor of the model in its files; None where they have none of this name."""
    found = _found(checkpoint, name)
    return None if found is None else found.size


def _stored(checkpoint: CheckpointSource, name: str) -> str | None:
    """The type of a tensor of the model in its files; None for types of torch that numbers are not computed in."""
    found = _found(checkpoint, name)
    return None if found is None else _TYPES.get(found.dtype)


def _found(checkpoint: CheckpointSource, name: str) -> TensorInfo | None:
    found = checkpoint.weights.find(name) or checkpoint.weights.find(name.partition(".")[2])
    return None if found is None else found[1]
