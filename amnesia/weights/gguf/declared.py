"""The rows and columns that the manifest of an edited GGUF declares, with the bytes that were there before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from amnesia.errors import VerificationError
from amnesia.files.disk import read_range
from amnesia.files.staging import MANIFEST_NAME
from amnesia.weights.checkpoint import undo_key
from amnesia.weights.gguf.container import GgufModel
from amnesia.weights.gguf.edit import find_pieces
from amnesia.weights.gguf.layout import gguf_shape
from amnesia.weights.gguf.pieces import Down, DownEdit, Piece, RowEdit, TensorBytes, UpRow
from amnesia.weights.safetensors import SafetensorsHeader
from amnesia.weights.scaling import inverse_multiplier
from amnesia.weights.steps import Step


def declared_pieces(
    model: GgufModel,
    step: Step,
    present_rows: Mapping[tuple[str, int], bytes],
    present_columns: Mapping[str, TensorBytes],
) -> list[Piece]:
    """What one manifest declares, present and original, after checking that its parts agree.

    What later edits have changed comes as it was before them: rows by file and offset, columns by tensor. Raises
    VerificationError for parts that do not agree, and for originals that are neither saved nor to be computed.
    """
    manifest = step.manifest
    rows, downs = find_pieces(model, gguf_shape(model), manifest.edits, manifest.previous, allow_overlap=True)
    declared: dict[tuple[str, str, int, int], tuple[float, object]] = {
        (row.tensor.name, row.file.path.name, 0, row.index): (multiplier, ()) for row, multiplier in rows
    }
    for down in downs:
        for column, multiplier in down.multipliers.items():
            declared[down.tensor.name, down.file.path.name, 1, column] = multiplier, down.directions
    listed = {
        (entry.name, entry.file, entry.axis, index): (multiplier, entry.directions)
        for entry in manifest.tensors
        for index, multiplier in entry.multipliers.items()
    }
    if declared != listed:
        raise VerificationError(
            f"{MANIFEST_NAME} lists other rows or columns than its edits for {manifest.entity!r}: the output is "
            "damaged, make it again"
        )
    saved = step.saved_columns()
    edits: list[Piece] = []
    for row, multiplier in rows:
        after = present_rows.get((row.file.path.name, row.offset)) or row.read()
        before = None if saved is None else _saved_row(saved, row)
        edits.append(RowEdit(row, multiplier, _invert(row, after, multiplier) if before is None else before, after))
    for down in downs:
        later = present_columns.get(down.tensor.name)
        edits.append(DownEdit(down, _saved_columns(saved, down), down.read([] if later is None else [later])))
    return edits


def _saved_columns(saved: SafetensorsHeader | None, down: Down) -> TensorBytes:
    name, places = down.tensor.name, down.places
    tensor = None if saved is None else saved.tensors.get(name)
    if saved is None or tensor is None:
        raise VerificationError(f"the saved columns of {name} are missing: the output is damaged, use the base model")
    shape = (down.tensor.shape[0], len(places))
    if (tensor.dtype, tensor.shape) != ("U8", shape):
        raise VerificationError(f"{saved.path} holds {name} in an unexpected form: use the base model")
    content = read_range(saved.path, tensor.size, tensor.offset)
    return TensorBytes(places, np.frombuffer(content, np.uint8).reshape(shape))


def _saved_row(saved: SafetensorsHeader, row: UpRow) -> bytes | None:
    """The original bytes of a row, or None if it was not saved because it can be computed."""
    tensor = saved.tensors.get(undo_key(row.tensor.name, row.index))
    if tensor is None:
        return None
    if (tensor.dtype, tensor.shape) != ("U8", (row.tensor.row_bytes,)):
        raise VerificationError(f"{saved.path} holds {tensor.name} in an unexpected form: use the base model")
    return read_range(saved.path, tensor.size, tensor.offset)


def _invert(row: UpRow, content: bytes, multiplier: float) -> bytes:
    inverse = inverse_multiplier(multiplier)
    if inverse is None:
        raise VerificationError(
            f"the original of row {row.index} of {row.tensor.name} was not saved and cannot be computed for multiplier "
            f"{multiplier:g}: the output is damaged, use the base model"
        )
    return row.scale(content, inverse)
