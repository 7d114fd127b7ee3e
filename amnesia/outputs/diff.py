"""Which tensors differ between any two checkpoints, and whether an edit of cells or of directions explains it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from amnesia.domain import Cell, is_gguf_path, user_path
from amnesia.errors import AmnesiaError, CheckpointError
from amnesia.files.companions import gguf_output, whole_output
from amnesia.files.disk import read_exactly
from amnesia.progress import SILENT, Tracker
from amnesia.sources.resolve import resolve, resolve_file
from amnesia.weights.checkpoint import open_source
from amnesia.weights.consistency import scaled_tensors
from amnesia.weights.difference import EPSILON, MatrixDifference, Stored, compare
from amnesia.weights.gguf.container import GgufModel, GgufTensor, read_model
from amnesia.weights.gguf.layout import GgufShape, check_is_model, find_up, gguf_shape, kind_of
from amnesia.weights.safetensors import DTYPE_BITS, TensorInfo, read_weight_files
from amnesia.weights.scaling import number_type

_MAX_RANK = 8
"""Of a difference that passes for an edit of directions: so many at most in a layer; set by hand."""


@dataclass(frozen=True)
class DirectionsFound:
    """A difference of low rank on some columns of a layer's output projection."""

    layer: int
    rank: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class EditFound:
    """An edit of this package that explains all differences: multipliers of cells, and directions."""

    cells: tuple[tuple[Cell, float], ...]
    directions: tuple[DirectionsFound, ...]


@dataclass(frozen=True)
class ModelDifference:
    """How two checkpoints differ: tensors that only one has or that have another shape, and those that differ.

    `n_compared` counts the matrices that both have. `edit` is what explains it all, where something does.
    """

    n_compared: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: tuple[str, ...]
    tensors: tuple[MatrixDifference, ...]
    edit: EditFound | None

    @property
    def same(self) -> bool:
        return not (self.only_first or self.only_second or self.reshaped or self.tensors)


Owners = Mapping[tuple[str, int], tuple[int, int | None, int]]
"""Whose the vectors of a tensor along an axis are: the layer, the expert if any, and the index that neuron 0 has."""


def diff(model: str, other: str, tracker: Tracker = SILENT) -> ModelDifference:
    """Compare all tensors of two models as `resolve` takes them, or of two GGUF files as they are.

    Where one of the two is a GGUF, it is compared as transformers read it. Raises what `resolve` and the readers raise.
    """
    model, other = (str(gguf_output(whole_output(user_path(name))) or name) for name in (model, other))
    if is_gguf_path(model) and is_gguf_path(other):
        read = [read_model(resolve_file(name, tracker.notice).require_gguf()) for name in (model, other)]
        if len({kind_of(one) for one in read}) > 1:
            for one in read:
                check_is_model(one)
        opened = [_gguf(one) for one in read]
    else:
        opened = [_folder(resolve(name, tracker.notice).folder) for name in (model, other)]
    (first, owners), (second, _) = opened
    both = [name for name in first if name in second]
    reshaped = tuple(name for name in both if first[name].shape != second[name].shape)
    pairs = [(first[name], second[name]) for name in both if name not in reshaped]
    n_bytes = sum(one.n_bytes + two.n_bytes for one, two in pairs)
    with tracker.task(f"comparing {len(pairs)} tensors", n_bytes) as progress:
        found = tuple(row for one, two in pairs if (row := compare(one, two, progress)) is not None)
    only = [tuple(name for name in these if name not in those) for these, those in ((first, second), (second, first))]
    explained = None if reshaped or any(only) or not found else _edit(found, owners)
    return ModelDifference(len(pairs), *only, reshaped, found, explained)


def _edit(found: tuple[MatrixDifference, ...], owners: Owners) -> EditFound | None:
    """The edit that gives all differences, or None."""
    cells, directions = [], []
    for row in found:
        owner = owners.get((row.name, -1 if row.axis is None else row.axis))
        if owner is None or row.dtypes[0] != row.dtypes[1]:
            return None
        layer, expert, start = owner
        if any(index < start for index in row.indices):
            return None  # Rows of the gate, which comes before `up` where one tensor holds both.
        cells += [(Cell(layer, index - start, expert), by) for index, by in row.scaled.items()]
        rest = tuple(index for index in row.indices if index not in row.scaled)
        if rest:
            rank = None if row.rank is None else row.rank - len(row.scaled)
            if expert is not None or rank is None or not 1 <= rank <= min(_MAX_RANK, len(rest)) or rank == len(rest):
                return None
            directions.append(DirectionsFound(layer, rank, rest))
    return EditFound(tuple(sorted(cells)), tuple(sorted(directions, key=lambda row: row.layer)))


def _folder(folder: Path) -> tuple[dict[str, Stored], Owners]:
    """The matrices of a safetensors checkpoint; of a tensor of experts, those of each."""
    files = read_weight_files(folder)
    scales = scaled_tensors({name for header in files.headers.values() for name in header.tensors})
    found: dict[str, Stored] = {}
    for header in files.headers.values():
        for tensor in header.tensors.values():
            # Not the kernels of convolutions, which are many and small.
            fused = len(tensor.shape) == 3 and min(tensor.shape[1:]) > 1 and DTYPE_BITS[tensor.dtype] % 8 == 0
            parts = [f"{tensor.name}[{place}]" for place in range(tensor.shape[0])] if fused else []
            for name in parts or [tensor.name]:
                part = header.find(name) if parts else tensor
                found[name] = _plain(header.path, part or tensor, scales.get(tensor.name))
    owners: dict[tuple[str, int], tuple[int, int | None, int]] = {}
    with contextlib.suppress(AmnesiaError):  # Any model can be compared, also one that cannot be edited.
        shape = open_source(folder).shape
        for layer in range(shape.n_layers):
            experts = shape.experts_in(layer)
            for expert in (None, *range(0 if experts is None else experts[0])):
                if expert is not None or shape.width(layer):
                    name, axis = shape.tensor(layer, expert)
                    owners[name, axis] = (layer, expert, 0)
    return found, owners


def _plain(path: Path, tensor: TensorInfo, scales: str | None) -> Stored:
    """A tensor as a matrix; numbers that are to be multiplied by `scales` are not those of the model."""
    whole = DTYPE_BITS[tensor.dtype] % 8 == 0
    # Of numbers that are no whole bytes, each byte is a row.
    rows, columns = (math.prod(tensor.shape[:-1]), *(tensor.shape[-1:] or (1,))) if whole else (tensor.size, 1)
    number = number_type(tensor.dtype) if tensor.dtype in EPSILON and scales is None else None
    row_size = columns * tensor.item_size if whole else 1

    def numbers(raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, number).reshape(-1, columns)

    read = partial(_read, path, tensor.offset, row_size)
    shape = (rows, columns)
    return Stored(tensor.name, tensor.dtype, shape, tensor.size, read, None if number is None else numbers, scales)


def _read(path: Path, offset: int, row_size: int, first: int, count: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return read_exactly(file.fileno(), count * row_size, offset + first * row_size, str(path))


def _gguf(model: GgufModel) -> tuple[dict[str, Stored], Owners]:
    """The matrices of a GGUF, with numbers as the `gguf` package reads them."""
    found: dict[str, Stored] = {}
    for file, tensor in model.tensors():
        # All experts of a layer, of which each is a matrix.
        names = [f"{tensor.name}[{place}]" for place in range(tensor.shape[0])] if len(tensor.shape) == 3 else []
        parts = [part[1] for part in map(model.find, names) if part is not None]
        found |= {part.name: _quantized(file.path, part) for part in parts or [tensor]}
    owners: dict[tuple[str, int], tuple[int, int | None, int]] = {}
    with contextlib.suppress(AmnesiaError):
        shape = gguf_shape(model)
        for layer, mixture in enumerate(shape.mixtures):
            for expert in (None, *range(0 if mixture is None else mixture[0])):
                if _is_of_cells(model, shape, layer, expert):
                    up, first = shape.name(layer, "up", expert), shape.first_row(layer, expert)
                    owners[up, 0] = (layer, expert, first)
                owners[shape.name(layer, "down", expert), 1] = (layer, expert, 0)
    return found, owners


def _is_of_cells(model: GgufModel, shape: GgufShape, layer: int, expert: int | None) -> bool:
    """Whether a row of `up`, multiplied, multiplies what a cell writes, so that edits of cells are made there."""
    if shape.by_columns:
        return False
    try:
        find_up(model, shape, layer, expert)
    except CheckpointError:
        return False
    return True


def _quantized(path: Path, tensor: GgufTensor) -> Stored:
    columns, kind = tensor.shape[-1], tensor.tensor_type

    def numbers(raw: bytes) -> np.ndarray:
        return dequantize(np.frombuffer(raw, np.uint8).reshape(-1, tensor.row_bytes), kind).reshape(-1, columns)

    readable = True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        readable = False
    read = partial(_read, path, tensor.offset, tensor.row_bytes)
    shape = (math.prod(tensor.shape[:-1]), columns)
    return Stored(tensor.name, kind.name, shape, tensor.n_bytes, read, numbers if readable else None)
