"""Columns of a checkpoint before and after its edits, and its bytes with other columns in place.

`verify` and `undo` share this: the one computes what the edit must have written, the other what it must have found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.errors import AmnesiaError, NumericalError, VerificationError, os_errors_as
from amnesia.files.disk import patched_blocks, read_exactly, read_range, read_small
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash, Strided, hash_ranges
from amnesia.weights.checkpoint import BASE_FOLDER, undo_key
from amnesia.weights.manifest import Manifest, TensorEdit
from amnesia.weights.manifest_file import MAX_MANIFEST, manifest_bytes
from amnesia.weights.plan import edited_vectors
from amnesia.weights.residue import residue_key, restored
from amnesia.weights.safetensors import (
    SafetensorsHeader,
    TensorInfo,
    check_matrix,
    patches_of,
    read_header,
    read_vectors,
)
from amnesia.weights.scaling import check_dtype, inverse_multiplier, scale_bytes


@dataclass(frozen=True)
class Replacement:
    """Columns (axis 1) or rows (axis 0) of one tensor, by index."""

    tensor: TensorInfo
    axis: int
    vectors: Mapping[int, bytes]


@dataclass(frozen=True)
class Step:
    """One edit and the files as it left them: names in that state → paths in the folder that is being read."""

    manifest: Manifest
    files: Mapping[str, Path]

    def saved_columns(self) -> SafetensorsHeader | None:
        """Header of the file with what is needed, beside the edit, to give columns back."""
        return None if self.manifest.undo is None else read_header(self.files[self.manifest.undo])


def trace_back(
    folder: Path, names: Sequence[str], manifest: Manifest
) -> tuple[tuple[Step, ...], list[dict[str, Path]]]:
    """All edits of a folder, newest first, and for each the files of the state before it.

    Raises VerificationError when files that a manifest declares are missing, or when `amnesia-base/` holds others.
    """
    files = {name: folder / name for name in names}
    steps, origins = [], []
    for step in manifest.history():
        steps.append(Step(step, files))
        files = _files_before(step, files)
        origins.append(files)
        earlier = files.get(MANIFEST_NAME)
        if earlier is None or step.previous is None:
            agree = earlier is None and step.previous is None
        else:
            agree = read_small(earlier, MAX_MANIFEST) == manifest_bytes(step.previous)
        if not agree:
            raise VerificationError(
                f"{folder / MANIFEST_NAME} and the kept manifest of the earlier edit disagree: the output is damaged"
            )
    return tuple(steps), origins


def _files_before(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Path]:
    replaced = {name: f"{BASE_FOLDER}/{name}" for name in manifest.replaced}
    declared = [MANIFEST_NAME, *manifest.added, *replaced.values(), *(row.file for row in manifest.base.files)]
    missing = sorted({*declared, *([manifest.undo] if manifest.undo else [])} - files.keys())
    if missing:
        raise VerificationError(f"{missing[0]} is missing, but {MANIFEST_NAME} declares it: the output is damaged")
    before = {
        name: path
        for name, path in files.items()
        if name != MANIFEST_NAME and name not in manifest.added and not name.startswith(f"{BASE_FOLDER}/")
    }
    surplus = sorted(name for name in files if name.startswith(f"{BASE_FOLDER}/") and name not in replaced.values())
    if surplus:
        raise VerificationError(f"{surplus[0]} is not declared in {MANIFEST_NAME}: remove it, or make the output again")
    return before | {name: files[path] for name, path in replaced.items()}


def check_untouched(steps: Sequence[Step], origins: Sequence[Mapping[str, Path]]) -> None:
    """Raises VerificationError when a file that the edits left as it was is missing now, or has another size."""
    for step, origin in zip(steps, origins, strict=True):
        for row in step.manifest.untouched:
            if row.file not in origin:
                raise VerificationError(
                    f"{row.file} is missing, but {MANIFEST_NAME} declares it: the output is damaged, make it again"
                )
            size = origin[row.file].stat().st_size
            if size != row.size:
                raise VerificationError(
                    f"{origin[row.file]} has {size} bytes, {MANIFEST_NAME} declares {row.size}: the output is damaged, "
                    "make it again"
                )


def columns_before(steps: Sequence[Step], *, proven: bool = False) -> dict[str, list[Replacement]]:
    """For each touched file the columns as they were before the oldest of `steps` (newest first).

    Raises VerificationError when a column can neither be computed back nor was saved, and, where it is to be `proven`,
    when the declared edit does not make of it what is there.
    """
    state = _Columns(steps[0].files)
    for step in steps:
        saved = step.saved_columns()
        for edit in step.manifest.tensors:
            tensor, vectors = state.read(edit)
            originals = _originals(edit, tensor, vectors, saved)
            if proven:
                _check_made(edit, tensor, originals, vectors)
            vectors.update(originals)
    return state.replacements()


def _check_made(edit: TensorEdit, tensor: TensorInfo, before: Mapping[int, bytes], after: Mapping[int, bytes]) -> None:
    try:
        made = edited_vectors(before, tensor, edit.multipliers, edit.directions)
    except NumericalError as error:
        raise VerificationError(str(error)) from error
    for index, vector in made.items():
        if vector != after[index]:
            raise VerificationError(
                f"tensor {tensor.name}, neuron {index} is not what the declared edit makes of its original: the output "
                "is damaged, make it again"
            )


def columns_after(base: Mapping[str, Path], steps: Sequence[Step]) -> dict[str, list[Replacement]]:
    """For each touched file the columns that `steps` (newest first) must have made of those in the files `base`.

    Raises VerificationError when the edited folder could not give a column back.
    """
    state = _Columns(base)
    for step in reversed(steps):
        saved = step.saved_columns()
        for edit in step.manifest.tensors:
            tensor, vectors = state.read(edit)
            before = {index: vectors[index] for index in edit.indices}
            vectors.update(edited_vectors(before, tensor, edit.multipliers, edit.directions))
            # The way back is proven too, so that `undo` does not depend on the base.
            for index, original in _originals(edit, tensor, vectors, saved).items():
                if original != before[index]:
                    raise VerificationError(
                        f"taking the edit of tensor {tensor.name}, neuron {index} back would not give the original: "
                        "the output is damaged, make it again"
                    )
    return state.replacements()


class _Columns:
    """Columns that were read once and are then carried from edit to edit."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._headers: dict[str, SafetensorsHeader] = {}
        self._columns: dict[tuple[str, str, int], dict[int, bytes]] = {}

    def read(self, edit: TensorEdit) -> tuple[TensorInfo, dict[int, bytes]]:
        """The tensor of an edit, and its columns in their present state; the caller replaces them there."""
        if edit.file not in self._headers:
            if edit.file not in self._files:
                raise VerificationError(f"{edit.file} is missing, but {MANIFEST_NAME} declares it: fetch it again")
            self._headers[edit.file] = read_header(self._files[edit.file])
        tensor = self._headers[edit.file].find(edit.name)
        if tensor is None:
            raise VerificationError(f"{edit.file} lacks tensor {edit.name}, which {MANIFEST_NAME} declares as edited")
        check_dtype(tensor.dtype, tensor.name)
        check_matrix(tensor, edit.axis, edit.indices)
        vectors = self._columns.setdefault((edit.file, edit.name, edit.axis), {})
        unread = tuple(index for index in edit.indices if index not in vectors)
        with self._files[edit.file].open("rb", buffering=0) as file:
            vectors.update(read_vectors(file.fileno(), tensor, edit.axis, unread))
        return tensor, vectors

    def replacements(self) -> dict[str, list[Replacement]]:
        rows: dict[str, list[Replacement]] = {}
        for (file, name, axis), vectors in self._columns.items():
            tensor = self._headers[file].find(name)
            assert tensor is not None, "it was read before"
            rows.setdefault(file, []).append(Replacement(tensor, axis, vectors))
        return rows


def _originals(
    edit: TensorEdit, tensor: TensorInfo, vectors: Mapping[int, bytes], saved: SafetensorsHeader | None
) -> dict[int, bytes]:
    """The columns of one edit before it, saved or computed from those after it."""
    found: dict[int, bytes] = {}
    if edit.directions:
        bits = _saved(saved, residue_key(tensor.name))
        if bits is None:
            raise VerificationError(
                f"directions were added to tensor {tensor.name}, and what takes them back was not saved: "
                "fetch the base model again"
            )
        found = restored(tensor, edit.multipliers, edit.directions, vectors, bits)
    for index in edit.indices:
        if index not in found:
            original = _saved(saved, undo_key(tensor.name, index))
            found[index] = _inverted(vectors[index], tensor, edit.multipliers[index]) if original is None else original
    return found


def _saved(saved: SafetensorsHeader | None, key: str) -> bytes | None:
    if saved is None or (info := saved.tensors.get(key)) is None:
        return None
    return read_range(saved.path, info.size, info.offset)


def _inverted(vector: bytes, tensor: TensorInfo, multiplier: float) -> bytes:
    inverse = inverse_multiplier(multiplier)
    if inverse is None:
        raise VerificationError(
            f"tensor {tensor.name} was multiplied by {multiplier:g}, which does not invert exactly, and its original "
            "columns were not saved: fetch the base model again"
        )
    return scale_bytes(vector, tensor.dtype, inverse).raw


def replacement_patches(replacements: Sequence[Replacement]) -> list[Strided]:
    """Columns as bytes of their file; raises VerificationError when one has another length than in the tensor."""
    for row in replacements:
        length = row.tensor.shape[1 - row.axis] * row.tensor.item_size
        for index, vector in row.vectors.items():
            if len(vector) != length:
                raise VerificationError(
                    f"the saved column {index} of {row.tensor.name} has {len(vector)} bytes, expected {length}"
                )
    return [patch for row in replacements for patch in patches_of(row.tensor, row.axis, row.vectors)]


def blocks_with(path: Path, replacements: Sequence[Replacement]) -> Iterator[bytes]:
    """The bytes of a file with columns replaced, in blocks of bounded size.

    Raises VerificationError when a replacement has another length than its column.
    """
    return patched_blocks(path, replacement_patches(replacements))


def hash_with(path: Path, row: Replacement) -> str:
    """sha256 of a tensor's data with columns replaced."""
    restored = RangeHash(row.tensor.offset, row.tensor.size, patched=True)
    return hash_ranges(path, [restored], replacement_patches([row]))[0]


def compare(expected: Iterator[bytes], path: Path) -> int:
    """Compare a file with the bytes it should have; returns their number.

    Raises VerificationError that names the first different byte and, in safetensors files, its tensor and position.
    """
    position = 0
    with os_errors_as(VerificationError, f"{path} cannot be read", "the output is damaged"):
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for block in expected:
                found = read_exactly(file.fileno(), min(len(block), max(0, size - position)), position, str(path))
                if found != block:
                    place = next(
                        (at for at, (a, b) in enumerate(zip(found, block, strict=False)) if a != b), len(found)
                    )
                    raise VerificationError(_describe(path, position + place))
                position += len(block)
    if size != position:
        raise VerificationError(f"{path} has {size} bytes, expected {position}: the output is damaged")
    return position


def _describe(path: Path, offset: int) -> str:
    place = f"byte {offset}"
    if path.suffix == ".safetensors":
        try:
            tensors = read_header(path).tensors.values()
        except AmnesiaError:
            tensors = ()  # The header itself is what differs; the offset has to do.
        for tensor in tensors:
            if tensor.offset <= offset < tensor.offset + tensor.size:
                place = f"tensor {tensor.name}"
                if len(tensor.shape) == 2 and tensor.item_size:
                    row, column = divmod((offset - tensor.offset) // tensor.item_size, tensor.shape[1])
                    place += f", row {row}, column {column}"
    return f"{path} differs from what its manifest and the base say at {place}: the output is damaged, make it again"
