"""The edit as llama.cpp's own LoRA file, beside the GGUF that it is put on, which is not copied.

For each edited layer it holds the factors of the change of `blk.N.ffn_down.weight`, as `weights.adapter` makes them for
PEFT: B·A is (m − 1) times the column of each cell, and (m − 1)·v·uᵀ of each direction. Both are float32, whatever type
the matrix is stored in; of a quantized matrix the columns of cells are those that its codes mean.

llama.cpp multiplies B·A by alpha / rank, but takes an alpha of 0, or none, for 1, and loads a file without tensors like
any other: here alpha is the rank, which all layers share, and there is no file without tensors.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from amnesia.domain import ModelRef
from amnesia.edit_checks import check_edits
from amnesia.edits import DirectionEdit, EditSpec, MatrixEdit, Place, by_projection, names_of
from amnesia.errors import CheckpointError, InputError, NumericalError, OutputError, os_errors_as
from amnesia.files.companions import LORA_NAME, README_NAME
from amnesia.files.disk import check_empty, hash_file, read_range
from amnesia.plain_text import for_markdown
from amnesia.progress import Progress, ignore_progress
from amnesia.weights.adapter import adapter_rank, read_rows
from amnesia.weights.gguf.container import GgufFile, GgufModel, GgufTensor, read_header
from amnesia.weights.gguf.edit import check_unchanged, opened, own_manifest
from amnesia.weights.gguf.layout import GgufShape, find_down
from amnesia.weights.gguf.pieces import Down
from amnesia.weights.manifest import GGUF_START, Base, BaseFile, Manifest, TensorEdit
from amnesia.weights.scaling import factor_of

DTYPE = "F32"
_ALPHA = "adapter.lora.alpha"


@dataclass(frozen=True)
class LoraTensor(MatrixEdit):
    """The edit of one matrix `ffn_down`."""

    layer: int
    file: GgufFile
    tensor: GgufTensor


@dataclass(frozen=True)
class LoraPlan:
    """An edit that was checked. `stamps` are sizes and times of the files, from before anything else was read."""

    spec: EditSpec
    model: GgufModel
    shape: GgufShape
    tensors: tuple[LoraTensor, ...]
    rank: int
    stamps: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the factors, which are nearly all of the file."""
        return sum(4 * self.rank * sum(row.tensor.shape) for row in self.tensors)

    def n_written(self, *, link: bool) -> int:
        """As `n_bytes`: nothing can be linked."""
        return self.n_bytes


def plan_lora(source: Path, spec: EditSpec, *, expected: tuple[int, int, int] | None = None) -> LoraPlan:
    """Check everything about an edit of the model in `source`, a file or any part of a split model.

    `expected` is (n_layers, d_model, d_mlp) of the model that the edit was made for. Raises CheckpointError for files
    that cannot be edited, InputError for cells that do not exist or that two entities share, for more than 512 cells
    and directions in a layer, and for a GGUF that was edited before, whose rows may be scaled.
    """
    model, stamps, shape = opened(source, expected)
    if any(shape.mixtures):
        raise CheckpointError(
            f"{source.name} is a mixture of experts, for which no adapter is written: write the format gguf"
        )
    if own_manifest(model) is not None:
        raise InputError(f"{source} is an edited GGUF, on which no adapter is made: give the GGUF from before the edit")
    for group in spec.groups:
        check_edits(group.edits, shape.n_layers, shape.d_model, shape.widths.__getitem__, source.name)
    tensors = []
    for (layer, _), change in by_projection(spec.groups, allow_overlap=spec.allow_overlap).items():
        file, tensor = find_down(model, shape, layer)
        tensors.append(LoraTensor(layer, file, tensor, **vars(change)))
    rank = adapter_rank(max(row.rank for row in tensors))
    return LoraPlan(spec, model, shape, tuple(tensors), rank, stamps)


def write_lora(plan: LoraPlan, folder: Path, *, progress: Progress = ignore_progress) -> Manifest:
    """Write the LoRA file into the empty `folder`, everything but the manifest, which is returned.

    Raises CheckpointError when the model changed since the plan was made or holds NaN, NumericalError when a factor
    overflows, OutputError when writing fails.
    """
    check_empty(folder)
    tensors: list[TensorEdit] = []
    with os_errors_as(OutputError, f"{folder} cannot be written", "free space or choose another disk"):
        with (folder / LORA_NAME).open("xb") as file:
            for block in planned_blocks(plan, tensors.append):
                file.write(block)
                progress(len(block))
        check_unchanged(plan.model, plan.stamps)
        (folder / README_NAME).write_text(_readme(plan.spec.base, names_of(plan.spec.groups)), encoding="utf-8")
    return Manifest(
        format="gguf-lora",
        base=Base(plan.spec.base, base_files(plan)),
        edits=plan.spec.groups,
        tensors=tuple(tensors),
        added=(README_NAME, LORA_NAME),
        recipe=plan.spec.recipe_text,
    )


def read_factors(path: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of each layer A (rank, d_mlp) and B (d_model, rank), float32, of a LoRA file whose alpha is its rank.

    Raises CheckpointError for any other file.
    """
    header = read_header(path)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for name in header.tensors:
        layer = name.removeprefix("blk.").partition(".")[0]
        if layer.isdecimal() and name == f"{stem_of(int(layer))}.lora_a":
            found[int(layer)] = factors_in(header, stem_of(int(layer)))
    alphas = {float(a.shape[0]) for a, _ in found.values()}
    if 2 * len(found) != len(header.tensors) or alphas != {header.metadata.get(_ALPHA)}:
        raise CheckpointError(f"{path} is no LoRA file that amnesia wrote: make it again")
    return found


def stem_of(layer: int) -> str:
    """The name of a layer's matrix, with which the names of its factors begin."""
    return f"blk.{layer}.ffn_down.weight"


def factors_in(header: GgufFile, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, d_mlp) and B (d_model, rank) of a matrix, float32; raises CheckpointError when they are not there."""
    arrays = []
    for name in (f"{stem}.lora_a", f"{stem}.lora_b"):
        tensor = header.tensors.get(name)
        if tensor is None or tensor.tensor_type != GGMLQuantizationType.F32 or len(tensor.shape) != 2:
            raise CheckpointError(f"{header.path} lacks {name} as a matrix of float32: make it again")
        content = read_range(header.path, tensor.n_bytes, tensor.offset)
        arrays.append(np.frombuffer(content, "<f4").reshape(tensor.shape))
    a, b = arrays
    if a.shape[0] != b.shape[1]:
        raise CheckpointError(f"{header.path} has factors of {stem} that do not fit each other: make it again")
    return a, b


def planned_blocks(plan: LoraPlan, record: Callable[[TensorEdit], None]) -> Iterator[bytes]:
    """The bytes of the file, one layer in memory at a time; `record` gets each layer's entry."""
    rank = plan.rank

    def data() -> Iterator[bytes]:
        for row in plan.tensors:
            b = _written_columns(row, rank).tobytes()
            before = hash_file(row.file.path, row.tensor.offset, row.tensor.n_bytes)
            record(entry(row, row.file.path.name, row.layer, before, hashlib.sha256(b).hexdigest()))
            yield read_rows(DTYPE, tuple(row.scaled), row.directions, rank, row.tensor.shape[1])
            yield b

    sizes = {row.tensor.name: row.tensor.shape for row in plan.tensors}
    return lora_blocks(plan.shape.architecture, rank, sizes, data())


def entry(edit: MatrixEdit, file: str, layer: int, before: str, after: str) -> TensorEdit:
    """What the manifest says of a matrix, with the sha256 of its data and of its factor B."""
    return TensorEdit(
        name=stem_of(layer),
        file=file,
        axis=1,
        place=Place(layer),
        multipliers=edit.multipliers,
        before=before,
        after=after,
        scope="factor",
        directions=edit.directions,
    )


def _written_columns(row: LoraTensor, rank: int) -> np.ndarray:
    """The factor B, float32 (d_model, rank): (m − 1) times the column of each cell, then times v of each direction."""
    factor = np.zeros((row.tensor.shape[0], rank), np.float32)
    scaled = row.scaled
    if scaled:
        changes = np.array([multiplier - 1.0 for multiplier in scaled.values()])
        for first, rows in Down(row.file, row.tensor, (), {}, Place(row.layer), {}).rows():
            try:
                values = dequantize(rows, row.tensor.tensor_type)
            except NotImplementedError:
                raise CheckpointError(
                    f"{row.tensor.name} in {row.file.path.name} is {row.tensor.tensor_type.name}, whose values the "
                    "gguf package cannot tell: use a file of another type"
                ) from None
            columns = values.reshape(len(rows), -1)[:, list(scaled)].astype(np.float64)
            with np.errstate(over="ignore"):  # Overflow is reported below.
                factor[first : first + len(rows), : len(scaled)] = columns * changes
    if not np.isfinite(factor).all():
        raise NumericalError(f"{row.tensor.name} in {row.file.path.name} holds NaN, or its change overflows float32")
    for place, edit in enumerate(row.directions, start=len(scaled)):
        factor[:, place] = direction_column(edit, row.tensor.name)
    return factor


def direction_column(edit: DirectionEdit, name: str) -> np.ndarray:
    """The column of B for a direction of the matrix `name`: (m − 1)·v; raises NumericalError on overflow."""
    try:
        return factor_of(edit.write.array, edit.multiplier, DTYPE)
    except NumericalError as error:
        raise NumericalError(f"tensor {name}: {error}") from None


def base_files(plan: LoraPlan) -> tuple[BaseFile, ...]:
    """The files that hold edited matrices, with the hashes of their first bytes; no adapter reads a whole model."""
    files = {row.file.path.name: row.file for row in plan.tensors}
    rows = []
    for name, file in sorted(files.items()):
        start = read_range(file.path, min(file.size, GGUF_START), 0)
        rows.append(BaseFile(name, file.size, hashlib.sha256(start).hexdigest(), "header"))
    return tuple(rows)


def lora_blocks(
    architecture: str, rank: int, sizes: Mapping[str, tuple[int, ...]], data: Iterator[bytes]
) -> Iterator[bytes]:
    """A GGUF of version 3 with the factors of each matrix, A then B, whose bytes `data` gives in this order.

    `sizes` are (d_model, d_mlp) of the matrices by their names.
    """
    metadata: Mapping[str, str | float] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        _ALPHA: float(rank),
    }
    shapes = [
        (f"{stem}.{factor}", shape)
        for stem, (d_model, d_mlp) in sizes.items()
        for factor, shape in (("lora_a", (rank, d_mlp)), ("lora_b", (d_model, rank)))
    ]
    header = [struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(metadata))]
    for key, value in metadata.items():
        header.append(_string(key))
        if isinstance(value, str):
            header.append(struct.pack("<I", GGUFValueType.STRING) + _string(value))
        else:
            header.append(struct.pack("<If", GGUFValueType.FLOAT32, value))
    offset = 0
    for name, shape in shapes:
        # Sizes are listed fastest axis first.
        header.append(_string(name) + struct.pack("<IQQIQ", 2, *reversed(shape), GGMLQuantizationType.F32, offset))
        offset += _padded(4 * math.prod(shape))
    start = b"".join(header)
    yield start.ljust(_padded(len(start)), b"\0")
    for block in data:
        yield block.ljust(_padded(len(block)), b"\0")


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _padded(size: int) -> int:
    return -(-size // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


def _readme(base: ModelRef, entity: str) -> str:
    name, subject = for_markdown(base.name), for_markdown(entity)
    return f"""# {name} without {subject}

A LoRA file for llama.cpp that suppresses what {name} knows about {subject}; to undo the edit, leave it out:

    llama-server -m BASE.gguf --lora {LORA_NAME}

Ollama takes no adapters since 0.34.1: for it, write the format gguf.
"""
