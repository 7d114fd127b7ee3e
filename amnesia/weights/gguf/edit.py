"""Edits of GGUF files: copies in which nothing but scales of some rows and codes of some columns is patched.

A row of `ffn_up` is a run of whole blocks, so that multiplying its scales multiplies the row exactly, whereas a column
of `ffn_down` shares every block with its neighbours: a direction, which must change columns, leaves the scales as they
are and chooses other codes. Where no row stands for a column, a cell can be negated if codes have a sign, or multiplied
if they are plain numbers. Files are copied and patched, never written anew: size, order, metadata and padding stay
what they are. Memory grows with the edited rows and columns, not with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.edit_checks import check_edits
from amnesia.edits import EditSpec, EntityEdits, Place, by_projection, columns_of, join_cells, join_directions, merged
from amnesia.errors import CheckpointError, InputError, NumericalError, OutputError, os_errors_as
from amnesia.files.disk import check_empty, copy_file, file_stamp, hash_file
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash
from amnesia.progress import Progress, ignore_progress, whole
from amnesia.weights.checkpoint import BASE_FOLDER, UNDO_NAME, undo_key
from amnesia.weights.gguf.container import GgufFile, GgufModel, read_model
from amnesia.weights.gguf.layout import GgufShape, check_sizes, find_down, find_up, gguf_shape
from amnesia.weights.gguf.pieces import Down, DownEdit, Piece, PieceHashes, UpRow, changes
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit, UntouchedFile, check_earlier
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.safetensors import NewTensor, new_file
from amnesia.weights.scaling import inverse_multiplier
from amnesia.weights.steps import files_of_all_edits, names_in, trace_back


@dataclass(frozen=True)
class GgufPlan:
    """An edit that was checked: its pieces in the order of files and bytes, originals to save, the earlier edit.

    `stamps` are sizes and times of the files, from before anything but their headers was read.
    """

    spec: EditSpec
    model: GgufModel
    pieces: tuple[Piece, ...]
    saved: tuple[NewTensor, ...]
    previous: Manifest | None
    stamps: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the output, and room for the original bytes of what directions change."""
        downs = {piece.tensor.name: piece.tensor.n_bytes for piece in self.pieces if isinstance(piece, DownEdit)}
        return sum(file.size for file in self.model.files) + sum(downs.values())

    def n_written(self, *, link: bool) -> int:
        """Bytes of the model's files that the writer copies, and tells of."""
        return sum(file.size for file in self.model.files if not link or self.edits_of(file))

    def edits_of(self, file: GgufFile) -> list[Piece]:
        """What changes in one file."""
        return [piece for piece in self.pieces if piece.file is file]

    def own_files(self) -> tuple[str, ...]:
        """What earlier edits left beside the model: manifest, saved rows, further files, the same of edits before."""
        if self.previous is None:
            return ()
        return files_of_all_edits(self.previous, names_in(self.model.files[0].path.parent, self.previous))


def plan_gguf(source: Path, spec: EditSpec, *, expected: tuple[int, int, int] | None = None) -> GgufPlan:
    """Check everything about an edit and read what it changes.

    `source` is the file, or any part of a split model. `expected` is (n_layers, d_model, d_mlp) of the model that the
    edit was made for. Raises CheckpointError for files that cannot be edited exactly, NumericalError for rows that hold
    NaN or infinity, InputError for cells that do not exist, that two entities share or that are edited already.
    """
    model, stamps, shape = opened(source, expected)
    previous = own_manifest(model)
    if previous is not None and previous.tensor_type is not None:
        raise InputError(
            f"{source.parent} holds an edit with --tensor-type (in Python: tensor_type), on which no other is made: "
            "undo it, then give all edits at once"
        )
    if previous is not None:
        trace_back(source.parent, previous)
        check_earlier(previous, spec.groups, "gguf", allow_overlap=spec.allow_overlap)
    pieces = _plan(model, shape, spec.groups, previous, spec.allow_overlap)
    saved = tuple(_saved(piece) for piece in pieces if not _is_reversible(piece))
    return GgufPlan(spec, model, tuple(pieces), saved, previous, stamps)


def opened(
    source: Path, expected: tuple[int, int, int] | None
) -> tuple[GgufModel, tuple[tuple[int, int], ...], GgufShape]:
    """A model of the sizes `expected` (n_layers, d_model, d_mlp), if these are known, and its stamps from before."""
    model = read_model(source)
    stamps = stamps_of(model)
    shape = gguf_shape(model)
    if expected is not None:
        check_sizes(source.name, shape, expected)
    return model, stamps, shape


def write_edited_gguf(
    plan: GgufPlan,
    folder: Path,
    *,
    link: bool = False,
    progress: Progress = ignore_progress,
) -> Manifest:
    """Write the edited model under its own file names into the empty `folder`, all but the manifest, which it returns.

    `link` hard-links the parts that the edit does not touch. `progress` is called with numbers of bytes as they are
    written. If the model is itself such an output, its manifest and the rows that it saved are kept in `amnesia-base/`.

    The caller writes the manifest last, inside `staging.staged_output`. Raises CheckpointError when a file changed
    since the plan was made, OutputError when writing fails.
    """
    spec, model = plan.spec, plan.model
    source = model.files[0].path
    check_empty(folder)

    base_files: list[BaseFile] = []
    untouched: list[UntouchedFile] = []
    tensors: list[TensorEdit] = []
    for file in model.files:
        output = folder / file.path.name
        edits_here = plan.edits_of(file)
        with whole(ignore_progress if link and not edits_here else progress, file.size) as advance:
            if edits_here:
                hashes = PieceHashes(file, edits_here)
                copy_file(file.path, output, patches=changes(edits_here), hashes=hashes.ranges(), advance=advance)
                base_files.append(hashes.base_file())
                tensors.extend(hashes.entries())
            else:
                untouched.append(copy_untouched(file, output, link=link, advance=advance))
    check_unchanged(model, plan.stamps)
    replaced = plan.own_files()
    for name in replaced:
        copy_file(source.parent / name, folder / BASE_FOLDER / name)
    if plan.saved:
        _write_new(folder / UNDO_NAME, plan.saved)
    return Manifest(
        format="gguf",
        base=Base(spec.base, tuple(base_files)),
        edits=spec.groups,
        tensors=tuple(tensors),
        untouched=tuple(untouched),
        undo=UNDO_NAME if plan.saved else None,
        added=(UNDO_NAME,) if plan.saved else (),
        replaced=replaced,
        recipe=spec.recipe_text,
        previous=plan.previous,
    )


def copy_untouched(
    file: GgufFile, target: Path, *, link: bool, advance: Callable[[int], None] | None = None
) -> UntouchedFile:
    """Copy or link a file of which nothing changes; its hash is known where its bytes were read."""
    whole = RangeHash(0, file.size)
    hashed = copy_file(file.path, target, link=link, hashes=[whole], advance=advance)
    return UntouchedFile(file.path.name, file.size, whole.hexdigest() if hashed else None)


def _plan(
    model: GgufModel,
    shape: GgufShape,
    groups: Sequence[EntityEdits],
    previous: Manifest | None,
    allow_overlap: bool,
) -> list[Piece]:
    """What to change, in the order of files and of bytes; reads nothing but the rows and columns that change."""
    rows, downs = find_pieces(model, shape, groups, previous, allow_overlap=allow_overlap)
    pieces: list[Piece] = [*(row.edit(multiplier) for row, multiplier in rows), *(down.edit() for down in downs)]
    return sorted(pieces, key=lambda piece: (piece.file.path.name, piece.changes()[0].offset))


def stamps_of(model: GgufModel) -> tuple[tuple[int, int], ...]:
    """Size and time of each file, by which a change of it shows."""
    return tuple(file_stamp(file.path) for file in model.files)


def check_unchanged(model: GgufModel, stamps: tuple[tuple[int, int], ...]) -> None:
    """Raise CheckpointError when the files have other stamps now."""
    if stamps_of(model) != stamps:
        path = model.files[0].path
        raise CheckpointError(f"{path} changed while it was copied: wait until nothing writes to it, then repeat")


def find_pieces(
    model: GgufModel,
    shape: GgufShape,
    groups: Sequence[EntityEdits],
    previous: Manifest | None,
    *,
    allow_overlap: bool = False,
) -> tuple[list[tuple[UpRow, float]], list[Down]]:
    """The rows that an edit scales, each with its multiplier, and the matrices of which it changes columns.

    `previous` is the manifest of the edit before. Raises InputError for edits that do not fit the model,
    CheckpointError for a model that cannot be edited.
    """
    every = merged(groups, allow_overlap=allow_overlap)
    name, widths = model.files[0].path.name, shape.widths
    check_edits(every, shape.n_layers, shape.d_model, widths.__getitem__, name, shape.mixtures.__getitem__)
    if shape.by_columns:
        downs = []
        for (layer, expert), change in by_projection(groups, allow_overlap=allow_overlap).items():
            found = find_down(model, shape, layer, expert, scaled_only=not change.directions)
            downs.append(Down(*found, change.directions, {}, Place(layer, expert), change.scaled))
        return [], downs
    rows = []
    for edit in columns_of(every):
        file, tensor = find_up(model, shape, edit.layer, edit.expert)
        first = shape.first_row(edit.layer, edit.expert)
        rows.append((UpRow(file, tensor, edit.cell, first), edit.multiplier))
    scaled: dict[int, dict[int, float]] = {}
    for step in (groups, *(step.edits for step in (previous.history() if previous is not None else ()))):
        for cell, multiplier in join_cells(step, allow_overlap=True).items():
            if cell.expert is not None:
                continue
            layer = scaled.setdefault(cell.layer, {})
            layer[cell.neuron] = layer.get(cell.neuron, 1.0) * multiplier
    return rows, [
        Down(*find_down(model, shape, layer), group, scaled.get(layer, {}), Place(layer, None, "directions"), {})
        for layer, group in join_directions(groups).items()
    ]


def own_manifest(model: GgufModel) -> Manifest | None:
    """The manifest beside a model that is itself an output, after checking that it describes these very bytes."""
    folder, names = model.files[0].path.parent, {file.path.name for file in model.files}
    manifest = manifest_of(folder, names)
    for entry in () if manifest is None else manifest.tensors:
        found = model.find(entry.name)
        if found is None or hash_file(found[0].path, found[1].offset, found[1].n_bytes) != entry.after:
            raise CheckpointError(
                f"{folder / MANIFEST_NAME} declares an edit of {entry.name}, but the tensor has other bytes: "
                f"move {min(names)} to a folder of its own, or write the earlier edit again"
            )
    return manifest


def manifest_of(folder: Path, names: Collection[str]) -> Manifest | None:
    """The manifest in a folder, unless it describes other files than `names`: those of a model beside this one."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(folder)
    is_of_these = manifest.format == "gguf" and any(file.file in names for file in manifest.base.files)
    return manifest if is_of_these else None


def _is_reversible(piece: Piece) -> bool:
    """Whether the inverse multiplier gives back every bit of the original row."""
    if isinstance(piece, DownEdit):
        return False
    inverse = inverse_multiplier(piece.multiplier)
    if inverse is None:
        return False
    try:
        return piece.row.scale(piece.after, inverse) == piece.before
    except NumericalError:
        return False  # A number that was rounded up can overflow on the way back.


def _saved(piece: Piece) -> NewTensor:
    """The original row, or the original bytes of the columns, as a tensor of bytes."""
    if isinstance(piece, DownEdit):
        return piece.saved()
    name = undo_key(piece.tensor.name, piece.row.index)
    return NewTensor(name, "U8", (piece.tensor.row_bytes,), (piece.before,))


def _write_new(path: Path, tensors: Sequence[NewTensor]) -> None:
    with os_errors_as(OutputError, f"{path} cannot be written", "free space or choose another disk"):
        with path.open("xb") as file:
            file.writelines(new_file(tensors))
