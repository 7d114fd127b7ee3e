"""Editing a safetensors checkpoint on disk, without ever building the model.

Only the edited columns change. Every other byte of every tensor and of every other file stays as it is, because files
are copied with these bytes replaced, never parsed and saved again. Memory does not depend on the size of the model: a
few pieces of a file, and the edited columns.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from amnesia.architectures import Configured, MlpShape, configured, find_shape
from amnesia.edits import Place
from amnesia.errors import CheckpointError, InputError, os_errors_as
from amnesia.files.companions import BASE_FOLDER, UNDO_NAME, is_copied, is_written, may_hold_weights
from amnesia.files.disk import check_empty, check_settled, copy_file, file_stamp
from amnesia.files.listing import list_files
from amnesia.files.staging import MANIFEST_NAME
from amnesia.files.streams import RangeHash, Strided
from amnesia.guessing import guess
from amnesia.progress import Progress, ignore_progress, whole
from amnesia.weights.configuration import read_config
from amnesia.weights.consistency import check_layers, check_numbers
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit, UntouchedFile, declared_files
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.parts import part_names
from amnesia.weights.plan import Plan, TensorPlan, Weights, edited_vectors
from amnesia.weights.residue import added_to, residue, residue_key
from amnesia.weights.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    NewTensor,
    TensorInfo,
    WeightFiles,
    new_file,
    no_weights,
    patches_of,
    read_vectors,
    read_weight_files,
)
from amnesia.weights.scaling import inverts_exactly


@dataclass(frozen=True)
class CheckpointSource:
    """A model folder that has been looked over: sizes, weights, files to copy, and the manifest of an earlier edit.

    `left_out` is everything else in the folder, which is not copied: it may hold weights in other formats. `stamps` are
    sizes and times of the files of which something was read, from before that. `part` are the names of the tensors that
    the first layers need where only these were asked for.
    """

    folder: Path
    shape: MlpShape
    weights: WeightFiles
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    manifest: Manifest | None
    stamps: Mapping[str, tuple[int, int]]
    part: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return str(self.folder)

    def read_columns(self, plan: TensorPlan) -> dict[int, bytes]:
        with (self.folder / plan.file).open("rb", buffering=0) as file:
            return read_vectors(file.fileno(), plan.tensor, plan.axis, tuple(plan.multipliers))

    def check_unchanged(self) -> None:
        for name in self.files:
            found = None
            with contextlib.suppress(OSError):
                found = file_stamp(self.folder / name)
            if found is None or found != self.stamps.get(name, found):
                raise CheckpointError(
                    f"{self.folder / name} {'is gone' if found is None else 'changed'} since it was read: wait until "
                    "nothing writes to the folder, then repeat (in Python: resolve the model again first)"
                )


def open_source(folder: Path, n_layers: int | None = None) -> CheckpointSource:
    """Read `config.json`, the headers of all shards and the names of all files; no weights.

    With `n_layers`, of the shards only those that the first layers need, and no more has to be there.

    Raises LayoutError for an unsupported architecture, CheckpointError for damaged, missing or pickled weights, and
    VerificationError when the folder holds a malformed manifest.
    """
    check_settled(folder)
    files = list_files(folder)
    stamps = {name: file_stamp(folder / name) for name in files}
    if not {"config.json", SINGLE_FILE, INDEX_FILE} & {*files}:
        raise CheckpointError(no_weights(str(folder), files))
    config = read_config(folder)
    guess(config, lambda: read_weight_files(folder).shapes, str(folder))
    expected = configured(config, n_layers)  # Refuses what it must before a header is read.
    weights = read_weight_files(folder, frozenset if n_layers is None else partial(part_names, expected))
    check_headers(str(folder), expected, weights)
    shape = find_shape(config, weights.sizes, str(folder), n_layers)
    manifest = read_manifest(folder) if MANIFEST_NAME in files else None
    ours = declared_files(manifest)
    with os_errors_as(CheckpointError, f"{folder} cannot be read", "check its permissions"):
        copied = tuple(
            name
            for name in files
            if name in weights.headers or name in ours or name == INDEX_FILE or is_copied(folder, name)
        )
    read = {*weights.headers, "config.json", INDEX_FILE, MANIFEST_NAME}
    return CheckpointSource(
        folder,
        shape,
        weights,
        copied,
        tuple(sorted({*files} - {*copied})),
        manifest,
        {name: stamp for name, stamp in stamps.items() if name in read},
        None if n_layers is None else part_names(expected, weights.location.keys()),
    )


def check_headers(name: str, config: Configured, weights: WeightFiles) -> None:
    """Raise LayoutError when the headers of the model `name` lack a layer of its configuration, or show packed
    weights."""
    check_numbers(name, weights)
    check_layers(name, config.layout.layers, config.n_layers, weights)


def other_weights(source: CheckpointSource) -> tuple[str, ...]:
    """Files that are not copied and may hold what an edit changes, or change it when the model is loaded.

    All that is neither text nor a picture, and adapters, which transformers would put on the edited model.
    """
    return tuple(name for name in source.left_out if may_hold_weights(source.folder, name))


def needed_bytes(plan: Plan[CheckpointSource], *, link: bool = False) -> int:
    """Bytes that an edited copy takes on the disk; with `link` only the touched shards and our own files are copied.

    Raises CheckpointError when a file changed since the plan was made.
    """
    source, touched = plan.source, {row.file for row in plan.tensors}
    source.check_unchanged()
    names = [name for name in source.files if not (link and _is_linked(source, name, touched))]
    return sum((source.folder / name).stat().st_size for name in names)


def _is_linked(source: CheckpointSource, name: str, touched: Collection[str]) -> bool:
    """Whether a copy may share a file with its source: not what this package may have to write or remove there."""
    return name not in touched and not is_reserved(name) and name not in declared_files(source.manifest)


def write_edited(
    plan: Plan[CheckpointSource],
    folder: Path,
    *,
    link: bool = False,
    progress: Progress = ignore_progress,
) -> Manifest:
    """Write the edited model into the empty `folder`, everything but the manifest, and return the manifest.

    `link` hard-links untouched files instead of copying them, but those that an earlier edit may have brought, which an
    undo in place writes or removes. `progress` is called with numbers of bytes as they are written. Files are hashed,
    and touched shards edited, while they are copied; where the filesystem shares blocks, the hash of the touched shards
    (1 to 2 GB/s) is most of the time that is spent.

    The caller writes the manifest last, inside `staging.staged_output`. Raises CheckpointError when a file changed
    since the plan was made, OutputError when `folder` is not empty or the disk is full, and NumericalError when a
    column holds or would get NaN or infinity.
    """
    source, spec = plan.source, plan.spec
    check_empty(folder)
    source.check_unchanged()
    columns = tuple(edited_columns(source, plan.tensors))
    check_no_twins(source, columns)
    tensor_hashes = {row.tensor.name: tensor_range(row.tensor) for row in plan.tensors}
    base_files, untouched = _copy_edited(source, folder, columns, tensor_hashes, link=link, progress=progress)
    saved = [tensor for row in columns for tensor in row.saved()]
    if saved:
        with (folder / UNDO_NAME).open("xb") as file:
            file.writelines(new_file(saved))
    tensors = tuple(row.entry(*(part.hexdigest() for part in tensor_hashes[row.plan.tensor.name])) for row in columns)
    return Manifest(
        format="safetensors",
        base=Base(spec.base, tuple(base_files)),
        edits=spec.groups,
        tensors=tensors,
        untouched=tuple(untouched),
        undo=UNDO_NAME if saved else None,
        added=(UNDO_NAME,) if saved else (),
        replaced=tuple(name for name in source.files if is_reserved(name)),
        left_out=source.left_out,
        recipe=spec.recipe_text,
        previous=source.manifest,
    )


def _copy_edited(
    source: CheckpointSource,
    folder: Path,
    columns: Sequence[EditedColumns],
    tensor_hashes: Mapping[str, Sequence[RangeHash]],
    *,
    link: bool,
    progress: Progress,
) -> tuple[list[BaseFile], list[UntouchedFile]]:
    """Copy or link all files, those with edited columns first, and say what the manifest says of both kinds.

    `tensor_hashes` of each edited tensor are fed on the way. A file of the source that is named like one of ours goes
    into `amnesia-base/`. Raises CheckpointError when a file changed meanwhile.
    """
    stamps = {name: file_stamp(source.folder / name) for name in source.files}
    touched = {row.plan.file for row in columns}
    base_files, untouched = [], []
    for name in sorted(source.files, key=lambda name: name not in touched):
        edited = [row for row in columns if row.plan.file == name]
        file_hash = RangeHash(0, stamps[name][0])
        linked = link and _is_linked(source, name, touched)
        with whole(ignore_progress if linked else progress, file_hash.size) as advance:
            hashed = copy_file(
                source.folder / name,
                folder / BASE_FOLDER / name if is_reserved(name) else folder / name,
                link=linked,
                patches=[patch for row in edited for patch in row.patches()],
                hashes=[file_hash, *(part for row in edited for part in tensor_hashes[row.plan.tensor.name])],
                advance=advance,
            )
        if edited:
            base_files.append(BaseFile(name, file_hash.size, file_hash.hexdigest()))
        elif not is_reserved(name):
            untouched.append(UntouchedFile(name, file_hash.size, file_hash.hexdigest() if hashed else None))
    for name, stamp in stamps.items():
        if stamp != file_stamp(source.folder / name):
            raise CheckpointError(
                f"{source.folder / name} changed while it was copied: wait until nothing writes to it, then repeat"
            )
    return base_files, untouched


def add_file(manifest: Manifest, folder: Path, name: str, content: bytes) -> Manifest:
    """Write a file that goes with the edit (a report, a model card), and return the manifest that declares it.

    A file of the base with this name is kept in `amnesia-base/`, so that `undo` can put it back. Raises InputError for
    names that are not those of such files.
    """
    weights = {row.file for row in manifest.base.files}
    if not is_written(name) or is_reserved(name) or name in weights:
        raise InputError(f"{name!r} cannot be added to {folder}: only reports, cards and licences go with an edit")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if name in manifest.added or name in manifest.replaced:
        target.unlink(missing_ok=True)  # It may share its bytes with a hard link; a new file never does.
    elif target.exists():
        original = folder / BASE_FOLDER / name
        original.parent.mkdir(parents=True, exist_ok=True)
        target.rename(original)
        manifest = replace(manifest, replaced=(*manifest.replaced, name))
    else:
        manifest = replace(manifest, added=(*manifest.added, name))
    target.write_bytes(content)
    return manifest


@dataclass(frozen=True)
class EditedColumns:
    """The columns of one tensor that an edit changes, by index, before and after."""

    plan: TensorPlan
    before: Mapping[int, bytes]
    after: Mapping[int, bytes]

    def patches(self) -> list[Strided]:
        """What the edit writes."""
        return patches_of(self.plan.tensor, self.plan.axis, self.after)

    def saved(self) -> list[NewTensor]:
        """What is needed beside the edit to give the originals back."""
        plan = self.plan
        shape = (plan.tensor.shape[1 - plan.axis],)
        added = {*added_to(plan.directions)}
        saved = [
            NewTensor(undo_key(plan.tensor.name, index), plan.tensor.dtype, shape, (raw,))
            for index, raw in self.before.items()
            if index not in added
            and not inverts_exactly(raw, self.after[index], plan.tensor.dtype, plan.multipliers[index])
        ]
        if added:
            bits = residue(plan.tensor, plan.multipliers, plan.directions, self.before, self.after)
            saved.append(NewTensor(residue_key(plan.tensor.name), "U8", (len(bits),), (bits,)))
        return saved

    def entry(self, before: str, after: str) -> TensorEdit:
        """What the manifest says, with the sha256 of the tensor's data before and after."""
        plan = self.plan
        return TensorEdit(
            name=plan.tensor.name,
            file=plan.file,
            axis=plan.axis,
            place=Place(plan.layer, plan.expert),
            multipliers=plan.multipliers,
            before=before,
            after=after,
            directions=plan.directions,
        )


def edited_columns(source: Weights, plans: Sequence[TensorPlan]) -> Iterator[EditedColumns]:
    """Read and edit the columns of each plan, while the caller works on the one before.

    Raises NumericalError when a column holds or would get NaN or infinity.
    """

    def read(plan: TensorPlan) -> EditedColumns:
        before = source.read_columns(plan)
        return EditedColumns(plan, before, edited_vectors(before, plan.tensor, plan.multipliers, plan.directions))

    with ThreadPoolExecutor(1) as worker:
        try:
            yield from worker.map(read, plans)
        finally:
            worker.shutdown(cancel_futures=True)


def check_no_twins(source: CheckpointSource, columns: Sequence[EditedColumns]) -> None:
    """Raises CheckpointError when the weights hold an edited column once more, in a tensor of another kind.

    Averages of training, and copies under an older name, keep what the edit takes away, and loaders ignore them.
    """

    def kind(name: str) -> str:
        return re.sub(r"\d+", "#", name)  # Layers differ by their number.

    for row in columns:
        edited, axis = row.plan.tensor, row.plan.axis
        saved = {index: vector for index, vector in row.before.items() if any(vector)}
        for file, header in source.weights.headers.items():
            for tensor in header.tensors.values():
                alike = (tensor.dtype, tensor.shape) == (edited.dtype, edited.shape)
                if not saved or not alike or kind(tensor.name) == kind(edited.name):
                    continue
                with (source.folder / file).open("rb", buffering=0) as stream:
                    found = read_vectors(stream.fileno(), tensor, axis, tuple(saved))
                if any(found[index] == vector for index, vector in saved.items()):
                    raise CheckpointError(
                        f"{source.folder / file} holds columns of {edited.name} once more in {tensor.name}, where they "
                        "would stay: save the model anew with transformers, without that tensor"
                    )


def tensor_range(tensor: TensorInfo) -> tuple[RangeHash, RangeHash]:
    """Hashes of a tensor's data before and after the patches of a stream."""
    return RangeHash(tensor.offset, tensor.size), RangeHash(tensor.offset, tensor.size, patched=True)


def undo_key(tensor: str, index: int) -> str:
    """Name under which the original of a column is kept in the undo file."""
    return f"{tensor}:{index}"


def is_reserved(name: str) -> bool:
    """Whether a file of an output is written by this package, for `verify` and `undo`."""
    return name in (MANIFEST_NAME, UNDO_NAME) or name.split("/")[0] == BASE_FOLDER
