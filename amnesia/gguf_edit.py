"""Edits of GGUF files: copies in which nothing but the scales of some rows is patched.

A row of `ffn_up` is a run of whole blocks, so that multiplying its scales multiplies the row exactly, whereas a column
of `ffn_down` shares every block with its neighbours. Files are copied and patched, never written anew: size, order,
metadata and padding stay what they are. Memory grows with the number of edited rows, not with the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia.arithmetic import inverse_multiplier
from amnesia.checkpoint import BASE_FOLDER, UNDO_NAME, undo_key
from amnesia.domain import ColumnEdit, check_edits
from amnesia.edits import EditSpec, EntityEdits, join_edits
from amnesia.errors import CheckpointError, NumericalError, OutputError
from amnesia.files import check_empty, copy_file, file_stamp, hash_file, list_files, read_exactly
from amnesia.gguf_blocks import scale_row, scales_of
from amnesia.gguf_file import GgufFile, GgufModel, GgufTensor, read_model
from amnesia.gguf_layout import GgufShape, check_sizes, find_up, gguf_shape
from amnesia.manifest import (
    MANIFEST_NAME,
    Base,
    BaseFile,
    Manifest,
    TensorEdit,
    UntouchedFile,
    check_earlier,
    read_manifest,
)
from amnesia.safetensors_file import NewTensor, new_file
from amnesia.streams import RangeHash, Strided


@dataclass(frozen=True)
class UpRow:
    """One row of `ffn_up`: its tensor and file, and its index there."""

    file: GgufFile
    tensor: GgufTensor
    index: int

    @property
    def offset(self) -> int:
        """Where the row starts, in bytes from the start of the file."""
        return self.tensor.offset + self.index * self.tensor.row_bytes

    def read(self) -> bytes:
        """The row's bytes as they are on disk."""
        with self.file.path.open("rb") as stream:
            return read_exactly(stream.fileno(), self.tensor.row_bytes, self.offset, str(self.file.path))

    def scale(self, content: bytes, multiplier: float) -> bytes:
        """`content`, bytes of this row, multiplied; raises as `scale_row` does."""
        what = f"row {self.index} of {self.tensor.name} in {self.file.path.name}"
        return scale_row(scales_of(self.tensor.tensor_type, self.tensor.name), content, multiplier, what)


@dataclass(frozen=True)
class RowEdit:
    """A row, what multiplies it, and its bytes before and after."""

    row: UpRow
    multiplier: float
    before: bytes
    after: bytes

    def patch(self, content: bytes) -> Strided:
        """`content` in the place of the row."""
        return Strided(self.row.offset, len(content), len(content), content)


class RowHashes:
    """What a manifest says about a file and the tensors of its edited rows, hashed while a stream reads it."""

    def __init__(self, file: GgufFile, edits: Sequence[RowEdit]) -> None:
        self._file = file
        self._edits = [list(group) for _, group in itertools.groupby(edits, key=lambda edit: edit.row.tensor)]
        self._whole = RangeHash(0, file.size)
        places = [(group[0].row.tensor.offset, group[0].row.tensor.n_bytes) for group in self._edits]
        self._before = [RangeHash(*place) for place in places]
        self._after = [RangeHash(*place, patched=True) for place in places]

    def ranges(self) -> list[RangeHash]:
        """What the stream has to fill in."""
        return [self._whole, *self._before, *self._after]

    def base_file(self) -> BaseFile:
        """The file before the edit."""
        return BaseFile(self._file.path.name, self._file.size, self._whole.hexdigest())

    def entries(self) -> list[TensorEdit]:
        """The tensors before and after it."""
        return [
            TensorEdit(
                name=group[0].row.tensor.name,
                file=self._file.path.name,
                axis=0,
                indices=tuple(edit.row.index for edit in group),
                multipliers=tuple(edit.multiplier for edit in group),
                before=before.hexdigest(),
                after=after.hexdigest(),
            )
            for group, before, after in zip(self._edits, self._before, self._after, strict=True)
        ]


@dataclass(frozen=True)
class GgufPlan:
    """An edit that was checked: the rows in the order of files and bytes, the originals to save, the earlier edit."""

    model: GgufModel
    rows: tuple[RowEdit, ...]
    saved: tuple[NewTensor, ...]
    previous: Manifest | None
    stamps: tuple[tuple[int, int], ...]

    def edits_of(self, file: GgufFile) -> list[RowEdit]:
        """The rows to change in one file."""
        return [edit for edit in self.rows if edit.row.file is file]

    def own_files(self) -> tuple[str, ...]:
        """What earlier edits left beside the model: manifest, saved rows, and the same of edits before."""
        return () if self.previous is None else _own_files(self.model.files[0].path.parent)


def plan_gguf(
    source: Path,
    groups: Sequence[EntityEdits],
    *,
    allow_overlap: bool = False,
    expected: tuple[int, int, int] | None = None,
) -> GgufPlan:
    """Check everything about an edit and read the rows that it changes; see `write_edited_gguf`."""
    model = read_model(source)
    stamps = tuple(file_stamp(file.path) for file in model.files)
    shape = gguf_shape(model)
    if expected is not None:
        check_sizes(source.name, shape, expected)
    previous = _previous(model)
    if previous is not None and not allow_overlap:
        check_earlier(previous, groups)
    rows = _plan(model, shape, groups, allow_overlap)
    saved = tuple(_saved(edit) for edit in rows if not _is_reversible(edit))
    return GgufPlan(model, tuple(rows), saved, previous, stamps)


def write_edited_gguf(
    source: Path,
    spec: EditSpec,
    folder: Path,
    *,
    link: bool = False,
    expected: tuple[int, int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the edited model under its own file names into the empty `folder`, all but the manifest, which it returns.

    `source` is the file, or any part of a split model. `link` hard-links the parts that the edit does not touch.
    `expected` is (n_layers, d_model, d_mlp) of the model that the edit was made for. `progress` is called with the
    bytes written so far and in all. If `source` is itself such an output, its manifest and the rows that it saved are
    kept in `amnesia-base/`.

    The caller writes the manifest last, inside `files.staged_output`. Raises CheckpointError for files that cannot be
    edited exactly, NumericalError for rows that hold NaN or infinity, InputError for cells that do not exist, that two
    entities share or that are edited already, OutputError when writing fails. Everything is checked before anything is
    written.
    """
    plan = plan_gguf(source, spec.groups, allow_overlap=spec.allow_overlap, expected=expected)
    model = plan.model
    check_empty(folder)

    base_files: list[BaseFile] = []
    untouched: list[UntouchedFile] = []
    tensors: list[TensorEdit] = []
    total = sum(file.size for file in model.files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for file in model.files:
        output = folder / file.path.name
        before = done
        if edits_here := plan.edits_of(file):
            hashes = RowHashes(file, edits_here)
            patches = [edit.patch(edit.after) for edit in edits_here]
            copy_file(file.path, output, patches=patches, hashes=hashes.ranges(), advance=advance)
            base_files.append(hashes.base_file())
            tensors.extend(hashes.entries())
        else:
            whole = RangeHash(0, file.size)
            hashed = copy_file(file.path, output, link=link, hashes=[whole], advance=advance)
            untouched.append(UntouchedFile(file.path.name, file.size, whole.hexdigest() if hashed else None))
        advance(file.size - (done - before))  # Links and shared disk blocks arrive all at once.
    if plan.stamps != tuple(file_stamp(file.path) for file in model.files):
        raise CheckpointError(f"{source} changed while it was copied: wait until nothing writes to it, then repeat")
    replaced = plan.own_files()
    for name in replaced:
        copy_file(source.parent / name, folder / BASE_FOLDER / name)
    if plan.saved:
        _write_new(folder / UNDO_NAME, plan.saved)
    return Manifest(
        format="gguf",
        base=Base(spec.base_id, spec.revision, tuple(base_files)),
        edits=spec.groups,
        tensors=tuple(tensors),
        untouched=tuple(untouched),
        undo=UNDO_NAME if plan.saved else None,
        added=(UNDO_NAME,) if plan.saved else (),
        replaced=replaced,
        recipe=spec.recipe_text,
        previous=plan.previous,
    )


def _plan(model: GgufModel, shape: GgufShape, groups: Sequence[EntityEdits], allow_overlap: bool) -> list[RowEdit]:
    """The rows to change, in the order of files and of bytes; reads nothing but these rows."""
    total = join_edits(groups, allow_overlap=allow_overlap)
    name = model.files[0].path.name
    cells = check_edits([ColumnEdit(*item) for item in total.items()], shape.n_layers, shape.d_mlp, name)
    rows = []
    for cell_edit in cells:
        file, tensor = find_up(model, shape, cell_edit.cell.layer)
        row = UpRow(file, tensor, shape.first_row + cell_edit.cell.neuron)
        before = row.read()
        rows.append(RowEdit(row, cell_edit.multiplier, before, row.scale(before, cell_edit.multiplier)))
    return sorted(rows, key=lambda edit: (edit.row.file.path.name, edit.row.offset))


def _previous(model: GgufModel) -> Manifest | None:
    """The manifest beside a model that is itself an output, after checking that it describes these very bytes."""
    folder, names = model.files[0].path.parent, {file.path.name for file in model.files}
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(folder)
    if manifest.format != "gguf" or not names & {file.file for file in manifest.base.files}:
        return None  # It describes other files of this folder.
    for entry in manifest.tensors:
        found = model.find(entry.name)
        if found is None or hash_file(found[0].path, found[1].offset, found[1].n_bytes) != entry.after:
            raise CheckpointError(
                f"{folder / MANIFEST_NAME} declares an edit of {entry.name}, but the tensor has other bytes: "
                f"move {min(names)} to a folder of its own, or write the earlier edit again"
            )
    return manifest


def _own_files(folder: Path) -> tuple[str, ...]:
    """What earlier edits left in `folder` beside the model: manifest, saved rows, and the same of edits before."""
    return tuple(
        name for name in list_files(folder) if name in (MANIFEST_NAME, UNDO_NAME) or name.split("/")[0] == BASE_FOLDER
    )


def _is_reversible(edit: RowEdit) -> bool:
    """Whether the inverse multiplier gives back every bit of the original row."""
    inverse = inverse_multiplier(edit.multiplier)
    if inverse is None:
        return False
    try:
        return edit.row.scale(edit.after, inverse) == edit.before
    except NumericalError:
        return False  # A number that was rounded up can overflow on the way back.


def _saved(edit: RowEdit) -> NewTensor:
    """The original row as a tensor of bytes."""
    name = undo_key(edit.row.tensor.name, edit.row.index)
    return NewTensor(name, "U8", (edit.row.tensor.row_bytes,), (edit.before,))


def _write_new(path: Path, tensors: Sequence[NewTensor]) -> None:
    try:
        with path.open("xb") as file:
            file.writelines(new_file(tensors))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): free space or choose another disk") from error
