"""The proof that an edited GGUF differs from its base as declared, and the way back."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from amnesia.errors import CheckpointError, InputError, NumericalError, VerificationError
from amnesia.files.disk import copy_file, hash_file, patched_blocks
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash, Strided
from amnesia.progress import Progress, Watch, counted, ignore_progress, unwatched, whole
from amnesia.weights.gguf.codes import codes_of
from amnesia.weights.gguf.container import GgufModel, read_model
from amnesia.weights.gguf.declared import declared_pieces
from amnesia.weights.gguf.edit import manifest_of
from amnesia.weights.gguf.pieces import DownEdit, Piece, RowEdit, TensorBytes, originals
from amnesia.weights.gguf.widen import undo_widened, verify_widened
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.steps import (
    Step,
    check_sizes,
    check_written,
    files_of_all_edits,
    hashes_before,
    touched_by,
    trace_back,
)


def prove_gguf(
    folder: Path, base: Path | None = None, *, watch: Watch = unwatched
) -> tuple[Manifest, GgufModel, frozenset[tuple[str, int]], frozenset[tuple[str, int]]]:
    """Prove that the GGUF output in `folder` differs from its base in the declared rows and columns, as declared.

    Rows: multiplying the original rows gives the present ones. Columns: adding the directions to the original matrix
    chooses the present codes. All else: each edited file with its original bytes put back has the sha256 of the source.
    With `base` (any part of the source, or its folder; after several edits the model before any of them) every byte of
    every part is compared, too; without it, parts that the edit did not touch are compared with the sha256 with which
    they were copied, or where that is not known with their size.

    `watch` gets the bytes that will be read. Returns the manifest, the headers that were read, and tensor and index of
    each edited row or column that is as before all edits since the base: a later edit took it back, or no code of it
    changed; then the same of those that are as before all edits that there are. Raises VerificationError that names the
    first difference.
    """
    with as_verification_error():
        manifest, model = read_output(folder)
        if manifest.tensor_type is not None:
            trace_back(folder, manifest)
            with watch(sum(row.size for row in (*manifest.base.files, *manifest.untouched))) as progress:
                verify_widened(folder, manifest, base, progress=progress)
            check_written(folder, manifest)
            return manifest, model, frozenset(), frozenset()
        origin = {} if base is None else _base_files(base, model)
        states = go_back(folder, model, manifest)
        known = {name for state in states for name in state.hashes} | origin.keys()
        size = sum(file.size for file in model.files if file.path.name in known)
        count = steps_since(base, manifest)
        with watch(size) as progress, whole(progress, size) as advance:
            check_files(states, model, origin, count, advance)
        check_written(folder, manifest)
        unchanged, restored = (frozenset(_unchanged(found)) for found in (states[:count], states))
    return manifest, model, unchanged, restored


def undo_gguf(
    folder: Path, target: Path, *, every_step: bool = False, progress: Progress = ignore_progress
) -> Manifest:
    """Write the files from before the edit into the existing empty folder `target`, bit for bit.

    If they were the output of an earlier edit, its manifest comes back too, last, with all files that it declares; with
    `every_step` the files from before all edits are written. Returns the manifest of the oldest edit that was taken
    back. Raises VerificationError when the output in `folder` is damaged, so that the result would not be the source.
    """
    with as_verification_error():
        manifest, model = read_output(folder)
        check_written(folder, manifest, kept_only=True)
        if manifest.tensor_type is not None:
            trace_back(folder, manifest)
            undo_widened(folder, manifest, target, progress=progress)
            return manifest
        states = go_back(folder, model, manifest, None if every_step else 1)
        check_files(states[:-1], model)
    before = states[-1]
    for part in model.files:
        name = part.path.name
        restored = RangeHash(0, part.size, patched=True)
        hashed = copy_file(part.path, target / name, patches=originals(before.edits, name), hashes=[restored])
        progress(part.size)
        expected = before.hashes.get(name)
        if expected not in (None, restored.hexdigest() if hashed else hash_file(target / name)):
            raise VerificationError(
                f"{part.path} with its rows put back is not the file that was edited: "
                "the output was changed since; use the base model"
            )
    if (earlier := before.manifest.previous) is not None:
        for name in files_of_all_edits(earlier, before.step.before):
            copy_file(before.step.before[name], target / name)
    return before.manifest


@dataclass(frozen=True)
class GgufState:
    """A model as one of its edits found it.

    `edits` are the pieces that this and all newer edits changed, with their bytes then; `hashes` holds the sha256 of
    files then, as far as manifests say.
    """

    step: Step
    edits: tuple[Piece, ...]
    hashes: Mapping[str, str]

    @property
    def manifest(self) -> Manifest:
        """Of the edit that found the model so."""
        return self.step.manifest


def go_back(folder: Path, model: GgufModel, manifest: Manifest, count: int | None = None) -> tuple[GgufState, ...]:
    """The states before the newest `count` edits (all by default), newest first.

    All but the hashes of whole files is proven. Raises VerificationError when files are missing, when the edits are not
    what made the present bytes of those that were kept, and when tensors have other hashes than declared.
    """
    rows: dict[tuple[str, int], RowEdit] = {}
    downs: dict[str, DownEdit] = {}
    hashes: dict[str, str] = {}
    states: list[GgufState] = []
    for step in trace_back(folder, manifest)[:count]:
        check_sizes(step)
        _check_scopes(step.manifest)
        if step.manifest.tensor_type is not None:
            raise VerificationError(f"{MANIFEST_NAME} builds on an edit with a tensor type: the output is damaged")
        _check_tensors(model, step.manifest, "after", [*rows.values(), *downs.values()])
        present = {place: edit.before for place, edit in rows.items()}
        for piece in declared_pieces(model, step, present, {name: edit.before for name, edit in downs.items()}):
            if isinstance(piece, RowEdit):
                _check_row(folder, piece)
                rows[piece.file.path.name, piece.row.offset] = piece
            else:
                name = piece.tensor.name
                later = downs[name].before if name in downs else None
                _check_columns(folder, piece, later)
                downs[name] = replace(piece, before=piece.before.under(later))
        hashes = hashes_before(step.manifest, hashes)
        edits = (*rows.values(), *downs.values())
        _check_tensors(model, step.manifest, "before", edits)
        states.append(GgufState(step, edits, hashes))
    return tuple(states)


def check_files(
    states: Sequence[GgufState],
    model: GgufModel,
    base: Mapping[str, Path] | None = None,
    count: int = 0,
    progress: Progress = ignore_progress,
) -> None:
    """Prove every file by its hash in each of the states, and of state number `count` by comparison with `base`.

    `progress` is told of the bytes of each file, as they are read for the first time. Raises VerificationError that
    names the file, and where it differs from the base the first byte.
    """
    proven: set[tuple[str, str]] = set()
    told: set[str] = set()
    for number, state in enumerate(states, start=1):
        touched = touched_by(state.manifest)
        for file in model.files:
            name = file.path.name
            source = (base or {}).get(name) if number == count else None
            sha256 = state.hashes.get(name)
            is_known = sha256 is None or (name not in touched and (name, sha256) in proven)
            if not is_known or source is not None:
                advance = ignore_progress if name in told else progress
                _check_file(file.path, originals(state.edits, name), sha256, source, advance)
                told.add(name)
            if sha256 is not None:
                proven.add((name, sha256))


def _unchanged(states: Sequence[GgufState]) -> Iterator[tuple[str, int]]:
    """Tensor and index of each row or column that is now as the oldest of the edits found it."""
    columns: dict[str, set[int]] = {}
    for entry in (entry for state in states for entry in state.manifest.tensors):
        columns.setdefault(entry.name, set()).update(entry.indices)
    for piece in states[-1].edits:
        name = piece.tensor.name
        if isinstance(piece, RowEdit):
            if piece.row.read() == piece.before:
                yield name, piece.row.index
            continue
        layout, indices = codes_of(piece.tensor.tensor_type, name), np.array(sorted(columns[name]))
        same = np.ones(len(indices), bool)
        for (_, now), (_, then) in zip(piece.down.rows(), piece.down.rows([piece.before]), strict=True):
            same &= (layout.values(now, indices) == layout.values(then, indices)).all(axis=0)
        yield from ((name, index) for index in indices[same].tolist())


def _check_scopes(manifest: Manifest) -> None:
    if {row.scope for row in manifest.base.files} | {row.scope for row in manifest.tensors} != {"file", "tensor"}:
        raise VerificationError(
            f"{MANIFEST_NAME} has hashes of another scope than edits of a GGUF have: the output is damaged, write it "
            "again"
        )


def _check_row(folder: Path, edit: RowEdit) -> None:
    if edit.row.scale(edit.before, edit.multiplier) != edit.after:
        raise VerificationError(
            f"row {edit.row.index} of {edit.tensor.name} in {folder} is not {edit.multiplier:g} times its original: "
            "the output is damaged, write it again"
        )


def _check_columns(folder: Path, edit: DownEdit, later: TensorBytes | None) -> None:
    """`later` are bytes that edits on top of this one changed, as they were before these."""
    made = edit.down.edit([edit.before.under(later)])
    if not np.array_equal(made.after.content, edit.after.content):
        raise VerificationError(
            f"the columns of {edit.tensor.name} in {folder} are not their originals with the declared directions: the "
            "output is damaged, write it again"
        )


def read_output(folder: Path) -> tuple[Manifest, GgufModel]:
    """The manifest and the model that it describes, after checking that the model has the files that it lists."""
    manifest = read_manifest(folder)
    if manifest.format != "gguf":
        raise VerificationError(f"{folder} holds an output of format {manifest.format}: expected gguf")
    model = read_model(folder / manifest.base.files[0].file)
    _check_scopes(manifest)
    sizes = {file.path.name: file.size for file in model.files}
    declared = {file.file: file.size for file in (*manifest.base.files, *manifest.untouched)}
    different = sorted(sizes.keys() ^ declared.keys())
    if manifest.tensor_type is None:
        different = sorted(dict(declared.items() ^ sizes.items()))
    if different:
        name = different[0]
        raise VerificationError(
            f"{MANIFEST_NAME} lists {name} with {declared.get(name, 0)} bytes, {folder} has {sizes.get(name, 0)}: "
            "the output is damaged, write it again"
        )
    return manifest, model


def steps_since(base: Path | None, manifest: Manifest) -> int:
    """How many edits lie between `base` and the output; without a base, all that the manifest knows."""
    if base is None:
        return len([*manifest.history()])
    names = {row.file for row in (*manifest.base.files, *manifest.untouched)}
    earlier = manifest_of(base if base.is_dir() else base.parent, names)
    for count, step in enumerate(manifest.history(), start=1):
        if step.previous == earlier:
            return count
    return 1  # The base has another edit; comparing the bytes will tell.


def _base_files(base: Path, model: GgufModel) -> dict[str, Path]:
    """The files of the base model by name, which must be those of the output."""
    names = [file.path.name for file in model.files]
    path = base / names[0] if base.is_dir() else base
    found = {file.path.name: file.path for file in read_model(path).files}
    if sorted(found) != sorted(names):
        raise VerificationError(f"{base} holds {min(found)}, the output {names[0]}: give the model that was edited")
    return found


def _check_tensors(
    model: GgufModel, manifest: Manifest, when: Literal["before", "after"], edits: Sequence[Piece]
) -> None:
    """The edited tensors must have the declared sha256, with the original bytes of `edits` put back."""
    for entry in manifest.tensors:
        found = model.find(entry.name)
        if found is None:
            raise VerificationError(f"{MANIFEST_NAME} lists tensor {entry.name}, which is missing: write it again")
        file, tensor = found
        digest = hashlib.sha256()
        for block in patched_blocks(file.path, originals(edits, entry.file), tensor.offset, tensor.n_bytes):
            digest.update(block)
        if digest.hexdigest() != getattr(entry, when):
            raise VerificationError(
                f"{file.path}: tensor {entry.name} does not have the sha256 {when} the edit that {MANIFEST_NAME} "
                "declares: the file was changed, write it again"
            )


def _check_file(
    path: Path, patches: Sequence[Strided], sha256: str | None, base: Path | None, progress: Progress
) -> None:
    """Check a file with its original rows put back against the hash of the source and against the source itself."""
    size = path.stat().st_size
    if base is not None and base.stat().st_size != size:
        raise VerificationError(
            f"{path} has {size} bytes, {base} {base.stat().st_size}: give the model that was edited"
        )
    digest = hashlib.sha256()
    sources = None if base is None else patched_blocks(base, [], 0, size)
    position = 0
    for restored in counted(patched_blocks(path, patches, 0, size), progress):
        digest.update(restored)
        source = restored if sources is None else next(sources)
        if restored != source:
            place = next(place for place, pair in enumerate(zip(restored, source, strict=True)) if pair[0] != pair[1])
            raise VerificationError(
                f"{path} differs from {base} at byte {position + place}, which the edit does not explain: "
                "the output is damaged, or this is not its base"
            )
        position += len(restored)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise VerificationError(
            f"{path} differs from its source outside of what was declared: the output is damaged, write it again"
        )


@contextmanager
def as_verification_error() -> Generator[None]:
    """What makes a source unfit makes an output invalid."""
    try:
        yield
    except (CheckpointError, InputError, NumericalError) as error:
        raise VerificationError(str(error)) from error
