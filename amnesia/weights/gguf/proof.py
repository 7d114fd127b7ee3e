"""The proof that an edited GGUF differs from its base as declared, and the way back."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amnesia.errors import CheckpointError, InputError, NumericalError, VerificationError
from amnesia.files.disk import copy_file, patched_blocks, read_range
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash, Strided
from amnesia.progress import Progress, Watch, counted, ignore_progress, unwatched
from amnesia.weights.checkpoint import BASE_FOLDER, undo_key
from amnesia.weights.gguf.container import GgufModel, read_model
from amnesia.weights.gguf.edit import find_pieces
from amnesia.weights.gguf.layout import gguf_shape
from amnesia.weights.gguf.pieces import Down, DownEdit, Piece, RowEdit, TensorBytes, UpRow, originals
from amnesia.weights.gguf.widen import undo_widened, verify_widened
from amnesia.weights.manifest import Manifest, TensorEdit
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.safetensors import SafetensorsHeader, read_header
from amnesia.weights.scaling import inverse_multiplier


def prove_gguf(folder: Path, base: Path | None = None, *, watch: Watch = unwatched) -> tuple[Manifest, GgufModel]:
    """Prove that the GGUF output in `folder` differs from its base in the declared rows and columns, as declared.

    Rows: multiplying the original rows gives the present ones. Columns: adding the directions to the original matrix
    chooses the present codes. Everything else: each edited file with its original
    bytes put back has the sha256 of the source. With `base` (any part of the source, or its folder; after several edits
    on top of each other, the model before any of them) every byte of every part is compared as well; without it, parts
    that the edit did not touch are compared with the sha256 with which they were copied, or where that is not known
    with their size.

    `watch` gets the bytes that will be read. Returns the manifest and the headers that were read. Raises
    VerificationError that names the first difference.
    """
    with as_verification_error():
        manifest, model = read_output(folder)
        if manifest.tensor_type is not None:
            with watch(sum(row.size for row in (*manifest.base.files, *manifest.untouched))) as progress:
                verify_widened(folder, manifest, base, progress=progress)
            return manifest, model
        edits = declared_edits(folder, model, manifest)
        origin = None if base is None else _base_files(base, model)
        before = trace_back_rows(folder, model, manifest, steps_since(base, manifest))
        for entry in manifest.tensors:
            _check_tensor(model, entry, edits)
        read = [file for file in model.files if file.path.name in before.hashes or origin is not None]
        with watch(sum(file.size for file in read)) as progress:
            for path in (file.path for file in read):
                source = None if origin is None else origin[path.name]
                patches, sha256 = originals(before.edits, path.name), before.hashes.get(path.name)
                _check_file(path, patches, sha256, source, progress)
    return manifest, model


def undo_gguf(
    folder: Path, target: Path, *, every_step: bool = False, progress: Progress = ignore_progress
) -> Manifest:
    """Write the files from before the edit into the existing empty folder `target`, bit for bit.

    If they were the output of an earlier edit, its manifest comes back too, last; with `every_step` the files from
    before all edits are written. Returns the manifest of the oldest edit that was taken back. Raises VerificationError
    when the output in `folder` is damaged, so that the result would not be the source.
    """
    with as_verification_error():
        manifest, model = read_output(folder)
        if manifest.tensor_type is not None:
            undo_widened(folder, manifest, target, progress=progress)
            return manifest
        before = trace_back_rows(folder, model, manifest, steps_since(None, manifest) if every_step else 1)
    for part in model.files:
        name = part.path.name
        restored = RangeHash(0, part.size, patched=True)
        hashed = copy_file(part.path, target / name, patches=originals(before.edits, name), hashes=[restored])
        progress(part.size)
        if hashed and before.hashes.get(name) not in (None, restored.hexdigest()):
            raise VerificationError(
                f"{part.path} with its rows put back is not the file that was edited: "
                "the output was changed since; use the base model"
            )
    for name in sorted(before.replaced, key=lambda name: name == MANIFEST_NAME):
        copy_file(before.replaced[name], target / name)
    return before.manifest


@dataclass(frozen=True)
class RowsBefore:
    """A model before its newest edits.

    `manifest` is that of the oldest of these edits, `edits` are the pieces with their bytes before all of them,
    `hashes` the sha256 of each touched file then, and `replaced` the further files that the model had then, by name.
    """

    manifest: Manifest
    edits: list[Piece]
    hashes: Mapping[str, str]
    replaced: Mapping[str, Path]


def trace_back_rows(folder: Path, model: GgufModel, manifest: Manifest, count: int) -> RowsBefore:
    """Go back by `count` edits; raises VerificationError when what they kept of the edits before is not as declared."""
    own = folder
    rows: dict[tuple[str, int], RowEdit] = {}
    downs: dict[str, DownEdit] = {}
    hashes: dict[str, str] = {}
    for step in itertools.islice(manifest.history(), count):
        replaced = {name: own / BASE_FOLDER / name for name in step.replaced}
        for path in replaced.values():
            if not path.is_file():
                raise VerificationError(f"{path} is missing, which {MANIFEST_NAME} lists: the output is damaged")
        if step.previous != (read_manifest(own / BASE_FOLDER) if MANIFEST_NAME in replaced else None):
            raise VerificationError(
                f"{own / MANIFEST_NAME} and the kept manifest of the earlier edit disagree: the output is damaged"
            )
        present = {place: edit.before for place, edit in rows.items()}
        for piece in declared_edits(own, model, step, present, {name: edit.before for name, edit in downs.items()}):
            if isinstance(piece, RowEdit):
                _check_row(folder, piece)
                rows[piece.file.path.name, piece.row.offset] = piece
            else:
                name = piece.tensor.name
                later = downs[name].before if name in downs else None
                _check_columns(folder, piece, later)
                downs[name] = replace(piece, before=piece.before.under(later))
        hashes |= {file.file: file.sha256 for file in step.untouched if file.sha256 is not None}
        hashes |= {file.file: file.sha256 for file in step.base.files}
        own = own / BASE_FOLDER
        oldest = RowsBefore(step, [*rows.values(), *downs.values()], hashes, replaced)
    return oldest


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
    sizes = {file.path.name: file.size for file in model.files}
    declared = {file.file: file.size for file in (*manifest.base.files, *manifest.untouched)}
    different = sorted(dict(declared.items() ^ sizes.items()))
    if different and manifest.tensor_type is None:
        name = different[0]
        raise VerificationError(
            f"{MANIFEST_NAME} lists {name} with {declared.get(name, 0)} bytes, {folder} has {sizes.get(name, 0)}: "
            "the output is damaged, write it again"
        )
    if any(file.scope != "file" for file in manifest.base.files):
        raise VerificationError(f"{MANIFEST_NAME} has no hash of a whole file: the output is damaged, write it again")
    return manifest, model


def declared_edits(
    folder: Path,
    model: GgufModel,
    manifest: Manifest,
    present_rows: Mapping[tuple[str, int], bytes] | None = None,
    present_columns: Mapping[str, TensorBytes] | None = None,
) -> list[Piece]:
    """What the manifest declares, present and original, after checking that its parts agree.

    `folder` holds the saved originals. What later edits have changed comes as it was before them: rows by file and
    offset, columns by tensor.
    """
    rows, downs = find_pieces(model, gguf_shape(model), manifest.edits, manifest.previous, allow_overlap=True)
    declared: dict[tuple[str, str, int, int], tuple[float, object]] = {
        (row.tensor.name, row.file.path.name, 0, row.index): (multiplier, ()) for row, multiplier in rows
    }
    for down in downs:
        for column in down.columns:
            declared[down.tensor.name, down.file.path.name, 1, column] = 1.0, down.directions
    listed = {
        (entry.name, entry.file, entry.axis, index): (multiplier, entry.directions)
        for entry in manifest.tensors
        for index, multiplier in entry.multipliers.items()
    }
    if declared != listed:
        raise VerificationError(
            f"{MANIFEST_NAME} in {folder} lists other rows or columns than its edits: the output is damaged"
        )
    saved = None if manifest.undo is None else read_header(folder / manifest.undo)
    edits: list[Piece] = []
    for row, multiplier in rows:
        after = (present_rows or {}).get((row.file.path.name, row.offset)) or row.read()
        before = None if saved is None else _saved_row(saved, row)
        edits.append(RowEdit(row, multiplier, _invert(row, after, multiplier) if before is None else before, after))
    for down in downs:
        later = (present_columns or {}).get(down.tensor.name)
        edits.append(DownEdit(down, _saved_columns(folder, saved, down), down.read([] if later is None else [later])))
    return edits


def _saved_columns(folder: Path, saved: SafetensorsHeader | None, down: Down) -> TensorBytes:
    name, places = down.tensor.name, down.places
    tensor = None if saved is None else saved.tensors.get(name)
    if saved is None or tensor is None:
        raise VerificationError(
            f"{folder} lacks the saved columns of {name}: the output is damaged, use the base model"
        )
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


def steps_since(base: Path | None, manifest: Manifest) -> int:
    """How many edits lie between `base` and the output; without a base, all that the manifest knows."""
    if base is None:
        return len([*manifest.history()])
    folder = base if base.is_dir() else base.parent
    earlier = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    for count, step in enumerate(manifest.history(), start=1):
        if step.previous == earlier:
            return count
    return 1  # A manifest of something else lies beside the base; comparing the bytes will tell.


def _base_files(base: Path, model: GgufModel) -> dict[str, Path]:
    """The files of the base model by name, which must be those of the output."""
    names = [file.path.name for file in model.files]
    path = base / names[0] if base.is_dir() else base
    found = {file.path.name: file.path for file in read_model(path).files}
    if sorted(found) != sorted(names):
        raise VerificationError(f"{base} holds {min(found)}, the output {names[0]}: give the model that was edited")
    return found


def _check_tensor(model: GgufModel, entry: TensorEdit, edits: list[Piece]) -> None:
    found = model.find(entry.name)
    assert found is not None, "the names were compared with those of the model"
    file, tensor = found
    for when, patches in (("after", []), ("before", originals(edits, entry.file))):
        digest = hashlib.sha256()
        for block in patched_blocks(file.path, patches, tensor.offset, tensor.n_bytes):
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
