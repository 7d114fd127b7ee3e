"""A model before each of its edits, from the bytes of the edited folder alone.

`verify` and `undo` share this, so that what the one accepts the other takes back: the one compares the states with
what the manifests and the base say, the other writes one of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.edits import Place
from amnesia.errors import AmnesiaError, NumericalError, VerificationError, os_errors_as
from amnesia.files.disk import patched_blocks, read_exactly, read_range
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash, Strided, hash_ranges
from amnesia.progress import Progress, counted, ignore_progress
from amnesia.weights.checkpoint import CheckpointSource, open_source, undo_key
from amnesia.weights.manifest import Manifest, TensorEdit
from amnesia.weights.plan import edited_vectors, plan_edits
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
from amnesia.weights.steps import Step, check_sizes, hashes_before, touched_by, trace_back


@dataclass(frozen=True)
class Replacement:
    """Columns (axis 1) or rows (axis 0) of one tensor, by index."""

    tensor: TensorInfo
    axis: int
    vectors: Mapping[int, bytes]


@dataclass(frozen=True)
class EditedTensor:
    """What one edit did to a tensor: all columns that it or a newer edit changed, as they were after it and before."""

    edit: TensorEdit
    after: Replacement
    before: Replacement


@dataclass(frozen=True)
class State:
    """A model as one of its edits found it.

    `tensors` are those that this edit changed, `columns` what that and all newer edits changed, by file, as it was;
    `hashes` holds the sha256 of files then, as far as manifests say.
    """

    step: Step
    tensors: tuple[EditedTensor, ...]
    columns: Mapping[str, Sequence[Replacement]]
    hashes: Mapping[str, str]

    @property
    def manifest(self) -> Manifest:
        """Of the edit that found the model so."""
        return self.step.manifest

    @property
    def files(self) -> Mapping[str, Path]:
        """Name of a file then → its path now."""
        return self.step.before

    @property
    def declared(self) -> frozenset[str]:
        """Names of the files that were of the model then; what else lies in the folder came to it later."""
        rows = (*self.manifest.base.files, *self.manifest.untouched)
        return frozenset({row.file for row in rows} | {*self.manifest.replaced})

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file then, in blocks of bounded size.

        Raises VerificationError when a column that was saved has another length than in the tensor.
        """
        patches = [patch for row in self.columns.get(name, ()) for patch in _patches(row)]
        return patched_blocks(self.files[name], patches)


def go_back(folder: Path, manifest: Manifest, count: int | None = None) -> tuple[State, ...]:
    """The states before the newest `count` edits of a folder (all by default), newest first; `check` proves them.

    Raises VerificationError when files are missing or have another size than declared, when the tensors of a manifest
    do not follow from its edits, and when a column can neither be computed back nor was saved.
    """
    steps = trace_back(folder, manifest)[:count]
    source = open_source(folder)
    columns = _Columns(steps[0].after)
    hashes: dict[str, str] = {}
    states = []
    for step in steps:
        check_sizes(step)
        _check_declared(source, step.manifest)
        saved = step.saved_columns()
        tensors = []
        for edit in step.manifest.tensors:
            tensor, vectors = columns.read(edit)
            after = Replacement(tensor, edit.axis, dict(vectors))
            vectors.update(_originals(edit, tensor, vectors, saved))
            tensors.append(EditedTensor(edit, after, Replacement(tensor, edit.axis, dict(vectors))))
        hashes = hashes_before(step.manifest, hashes)
        states.append(State(step, tuple(tensors), columns.replacements(), hashes))
    return tuple(states)


def check(states: Sequence[State]) -> None:
    """Prove that each edit made of its columns what was there, and that tensors and headers have the declared hashes.

    Raises VerificationError for the first that is not so. Files of which the whole hash is declared are left to
    `check_files`.
    """
    for state in states:
        for row in state.tensors:
            path = state.files[row.edit.file]
            if _hash_with(path, row.after) != row.edit.after:
                raise VerificationError(
                    f"{path} has a tensor {row.edit.name} whose sha256 is not the one in {MANIFEST_NAME}"
                )
            _check_made(row)
            if _hash_with(path, row.before) != row.edit.before:
                raise _not_original(path, row.edit.name)
        for entry in state.manifest.base.files:
            path = state.files[entry.file]
            if entry.scope == "header" and hashlib.sha256(read_header(path).content).hexdigest() != entry.sha256:
                raise _not_original(path, "its header")


def check_files(
    states: Sequence[State],
    base: Mapping[str, Path] | None = None,
    count: int = 0,
    progress: Progress = ignore_progress,
) -> None:
    """Prove every file by its hash in each of the states, and of state number `count` by comparison with `base`.

    `progress` is told of the bytes of each file, as they are read for the first time. Raises VerificationError that
    names the file and, where that is known, the first difference.
    """
    proven: set[tuple[Path, str]] = set()
    told: set[Path] = set()
    for number, state in enumerate(states, start=1):
        touched = touched_by(state.manifest)
        for name, path in sorted(state.files.items()):
            source = base[name] if base is not None and number == count and name in base else None
            sha256 = state.hashes.get(name)
            is_known = sha256 is None or (name not in touched and (path, sha256) in proven)
            is_same = source is None or (name not in state.columns and path.samefile(source))
            if is_known and is_same:
                continue  # A hard link to the base is the same bytes.
            digest = hashlib.sha256()
            blocks = state.blocks(name) if path in told else counted(state.blocks(name), progress)
            told.add(path)
            for block in blocks if source is None else compared(blocks, source, path, str(source)):
                digest.update(block)
            if sha256 not in (None, digest.hexdigest()):
                raise _not_original(path, "bytes outside of the declared columns" if name in state.columns else "bytes")
            proven.add((path, digest.hexdigest()))


def _not_original(path: Path, what: str) -> VerificationError:
    return VerificationError(
        f"{path} does not become the original when the edit is taken back: {what} differ from what {MANIFEST_NAME} "
        "declares; make the output again, or fetch the base model"
    )


def _check_declared(source: CheckpointSource, manifest: Manifest) -> None:
    """The tensors of a manifest must be those that its edits mean for this architecture."""
    plans = plan_edits(source, manifest.edits, allow_overlap=True)
    expected = [(plan.tensor.name, plan.file, plan.axis, Place(plan.layer, plan.expert), "tensor") for plan in plans]
    found = [(row.name, row.file, row.axis, row.place, row.scope) for row in manifest.tensors]
    if found != expected:
        raise VerificationError(
            f"{MANIFEST_NAME} lists tensors that do not follow from its edits for {manifest.entity!r}: "
            "the manifest is damaged, make the output again"
        )


def _check_made(row: EditedTensor) -> None:
    edit, tensor = row.edit, row.before.tensor
    before = {index: row.before.vectors[index] for index in edit.indices}
    _patches(Replacement(tensor, edit.axis, before))  # What was saved may have any length.
    try:
        made = edited_vectors(before, tensor, edit.multipliers, edit.directions)
    except NumericalError as error:
        raise VerificationError(str(error)) from error
    for index, vector in made.items():
        if vector != row.after.vectors[index]:
            raise VerificationError(
                f"tensor {tensor.name}, neuron {index} is not what the declared edit makes of its original: the output "
                "is damaged, make it again"
            )


class _Columns:
    """Columns that were read once and are then carried from edit to edit."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._headers: dict[str, SafetensorsHeader] = {}
        self._columns: dict[tuple[str, str, int], dict[int, bytes]] = {}

    def read(self, edit: TensorEdit) -> tuple[TensorInfo, dict[int, bytes]]:
        """The tensor of an edit, and its columns in their present state; the caller replaces them there."""
        if edit.file not in self._headers:
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
        """All columns as they are at this moment, by file."""
        rows: dict[str, list[Replacement]] = {}
        for (file, name, axis), vectors in self._columns.items():
            tensor = self._headers[file].find(name)
            assert tensor is not None, "it was read before"
            rows.setdefault(file, []).append(Replacement(tensor, axis, dict(vectors)))
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


def _patches(row: Replacement) -> list[Strided]:
    """Columns as bytes of their file; raises VerificationError when one has another length than in the tensor."""
    length = row.tensor.shape[1 - row.axis] * row.tensor.item_size
    for index, vector in row.vectors.items():
        if len(vector) != length:
            raise VerificationError(
                f"the saved column {index} of {row.tensor.name} has {len(vector)} bytes, expected {length}"
            )
    return patches_of(row.tensor, row.axis, row.vectors)


def _hash_with(path: Path, row: Replacement) -> str:
    """sha256 of a tensor's data with columns replaced."""
    whole = RangeHash(row.tensor.offset, row.tensor.size, patched=True)
    return hash_ranges(path, [whole], _patches(row))[0]


def compared(blocks: Iterator[bytes], source: Path, path: Path, other: str) -> Iterator[bytes]:
    """`blocks`, after each has been found equal to what stands in the file `source`.

    Raises VerificationError that says where `path` differs from the `other`: by the first different byte, or in
    safetensors files by tensor and position.
    """
    position = 0
    with os_errors_as(VerificationError, f"{source} cannot be read", "fetch it again"):
        with source.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for block in blocks:
                found = read_exactly(file.fileno(), min(len(block), max(0, size - position)), position, str(source))
                if found != block:
                    pairs = enumerate(zip(found, block, strict=False))
                    place = _place(path, position + next((at for at, (a, b) in pairs if a != b), len(found)))
                    raise VerificationError(
                        f"{path} differs from {other} at {place}: the output is damaged, or this is not its base"
                    )
                position += len(block)
                yield block
    if size != position:
        raise VerificationError(
            f"{path} differs from {other} in size, by {size - position:+d} bytes: the output is damaged, or this is "
            "not its base"
        )


def _place(path: Path, offset: int) -> str:
    if path.suffix == ".safetensors":
        try:
            tensors = read_header(path).tensors.values()
        except AmnesiaError:
            tensors = ()  # The header itself is what differs; the offset has to do.
        for tensor in tensors:
            if tensor.offset <= offset < tensor.offset + tensor.size:
                if len(tensor.shape) != 2 or not tensor.item_size:
                    return f"tensor {tensor.name}"
                row, column = divmod((offset - tensor.offset) // tensor.item_size, tensor.shape[1])
                return f"tensor {tensor.name}, row {row}, column {column}"
    return f"byte {offset}"


def recorder(tensors: list[TensorEdit], manifest: Manifest, base: str) -> Callable[[TensorEdit], None]:
    """Takes the entry of each tensor as an adapter for the model `base` is made again, and adds it to `tensors`.

    It raises VerificationError for a tensor whose original is not the one that the adapter was made of. What an adapter
    adds along a direction does not depend on the base, so that only this tells a wrong base from a damaged adapter.
    """
    originals = {row.name: row.before for row in manifest.tensors}

    def record(entry: TensorEdit) -> None:
        if originals.get(entry.name, entry.before) != entry.before:
            raise VerificationError(
                f"{base} is not the model that the adapter was made for, which has another {entry.name}: give "
                f"{manifest.base} as it was then"
            )
        tensors.append(entry)

    return record


def check_blocks(expected: Iterator[bytes], path: Path) -> None:
    """Raises VerificationError when a file of an adapter has other bytes than expected."""
    for _ in compared(expected, path, path, "what its manifest and the base say"):
        pass
