"""Editing a model where it lies: only the touched columns are written, under a journal.

A whole shard is not hashed, which would take a hundred times as long as the edit. The manifest holds the hash of the
shard's header and the hashes of the edited tensors; bytes of other tensors are proven by `verify` with the base only.
A `.gguf` file is hashed whole.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from amnesia.domain import ADAPTERS, Format, is_gguf_name
from amnesia.edits import EditSpec
from amnesia.errors import InputError, OutputError, os_errors_as
from amnesia.files.disk import locked
from amnesia.files.journal import Change, Patch, apply, settle
from amnesia.files.listing import list_files, unlisted_files
from amnesia.files.staging import MANIFEST_NAME, check_outside_caches
from amnesia.files.streams import hash_ranges, stream
from amnesia.guessing import as_declared
from amnesia.outputs.history import check, check_files, go_back
from amnesia.outputs.proofs import check_unaltered
from amnesia.weights.checkpoint import (
    BASE_FOLDER,
    UNDO_NAME,
    check_no_twins,
    edited_columns,
    is_reserved,
    open_source,
    other_weights,
    tensor_range,
)
from amnesia.weights.gguf import proof
from amnesia.weights.gguf.edit import plan_gguf
from amnesia.weights.gguf.pieces import PieceHashes, changes
from amnesia.weights.gguf.proof import as_verification_error, read_output
from amnesia.weights.manifest import Base, BaseFile, Manifest, TensorEdit, UntouchedFile
from amnesia.weights.manifest_file import manifest_bytes, read_manifest, written_file
from amnesia.weights.plan import plan_edits
from amnesia.weights.safetensors import NewTensor, TensorInfo, new_file, patches_of
from amnesia.weights.steps import check_whole, check_written, names_in, own_files


def edit_in_place(path: Path, spec: EditSpec) -> Manifest:
    """Edit the model folder or `.gguf` file `path` itself, and return the manifest, which is written beside it.

    If the process is killed, the next call of anything in `journal` takes the edit back. Raises OutputError for files
    in a cache, of Hugging Face or of this package, and files that other folders share by links, InputError for folders
    that hold copies of the weights that would stay as they are, and what `plan_edits` and `plan_gguf` raise.
    """
    is_gguf = is_gguf_name(path.name) and not path.is_dir()
    folder = path.parent if is_gguf else path
    check_outside_caches(folder)
    with locked(folder):
        settle(folder)
        check_unaltered(path)
        change, manifest = (_change_gguf if is_gguf else _change_folder)(path, spec)
        _check_unshared(folder, [*(patch.file for patch in change.patches), *change.removed], "edit")
        _check_not_kept(folder, manifest)
        apply(folder, change)
    return manifest


@as_declared()
def undo_in_place(folder: Path) -> Manifest:
    """Take the newest edit of a folder back where it lies, bit for bit, and return its manifest.

    Raises VerificationError when the folder is not what its manifest says, InputError for adapters, and OutputError as
    `edit_in_place` does.
    """
    check_outside_caches(folder)
    with locked(folder):
        settle(folder)
        manifest = read_manifest(folder)
        if manifest.format in ADAPTERS:
            raise InputError(f"{folder} is an adapter, the base model was never changed: to undo it, do not load it")
        if manifest.tensor_type is not None:
            raise InputError(
                f"{folder} holds tensors of another size than before, which make room only in a new file: "
                f"`amnesia undo {shlex.quote(str(folder))} -o NEW` writes the original"
            )
        check_written(folder, manifest, card=True, remedy="it would be lost: undo into a new folder with -o")
        patches = _original_rows(folder) if manifest.format == "gguf" else _original_columns(folder, manifest)
        replaced = {name: f"{BASE_FOLDER}/{name}" for name in manifest.replaced}
        removed = own_files(manifest, names_in(folder, manifest))
        # The manifest of the edit before comes last.
        added = {name: replaced[name] for name in sorted(replaced, key=lambda name: name == MANIFEST_NAME)}
        _check_unshared(folder, [*(patch.file for patch in patches), *removed], "undo")
        apply(folder, Change(patches, removed, added))
    return manifest


def _check_unshared(folder: Path, names: Iterable[str], work: str) -> None:
    """Raises OutputError where the `work`, "edit" or "undo", would change one of the files `names` elsewhere, too."""
    for name in dict.fromkeys(names):
        path = folder / name
        if path.is_symlink() or path.stat().st_nlink > 1:
            raise OutputError(
                f"{path} is shared with other folders by a link, they would change too: {work} into a new folder "
                "with -o"
            )


def _check_not_kept(folder: Path, manifest: Manifest) -> None:
    """Raises InputError where `.git` or `.cache` of a folder may hold a file that is edited once more, by its size.

    There git keeps what it stores elsewhere than in its history (git-lfs, git-annex), and clients of the Hub what they
    have begun to fetch. So may what lies beside a GGUF, of which nothing else is asked.
    """
    sizes = {row.size: row.file for row in manifest.base.files}
    for path in (*unlisted_files(folder), *(_beside(folder, manifest) if manifest.format == "gguf" else ())):
        name = sizes.get(path.stat().st_size)
        if name is not None:
            raise InputError(
                f"{path} has the size of {name}, and may be a copy of it, which would still know the entity: edit into "
                "a new folder with -o, or move it away"
            )


def _beside(folder: Path, manifest: Manifest) -> list[Path]:
    """The regular files in the folder of a GGUF, or links to such, that are none of the model's."""
    own = {row.file for row in (*manifest.base.files, *manifest.untouched)}
    with os_errors_as(OutputError, f"{folder} cannot be read", "check its permissions"):
        return sorted(path for path in folder.iterdir() if path.name not in own and path.is_file())


def _check_nothing_kept(folder: Path) -> None:
    """Raises InputError where a model without a manifest has files in the place of what edits keep of it."""
    if kept := list_files(folder / BASE_FOLDER) if (folder / BASE_FOLDER).is_dir() else ():
        raise InputError(
            f"{folder / BASE_FOLDER / kept[0]} lies where edits keep files of the base, and no {MANIFEST_NAME} "
            "declares it, so that `verify` and `undo` would refuse the edited model: move it away"
        )


def _bookkeeping(
    folder: Path, manifest: Manifest, own: Sequence[str], saved: Sequence[NewTensor]
) -> tuple[Manifest, dict[str, bytes | str]]:
    """The manifest with what it says about other files, and the new files; those of earlier edits make room."""
    added: dict[str, bytes | str] = {f"{BASE_FOLDER}/{name}": name for name in own}
    if saved:
        added[UNDO_NAME] = b"".join(new_file(saved))
    names = (UNDO_NAME,) if saved else ()
    contents = {name: folder / content if isinstance(content, str) else content for name, content in added.items()}
    manifest = replace(
        manifest,
        undo=UNDO_NAME if saved else None,
        added=names,
        replaced=tuple(own),
        written=tuple(written_file(name, content) for name, content in contents.items()),
    )
    added[MANIFEST_NAME] = manifest_bytes(manifest)
    return manifest, added


def _patches(
    file: str, tensor: TensorInfo, axis: int, before: Mapping[int, bytes], after: Mapping[int, bytes]
) -> list[Patch]:
    changed = {index: vector for index, vector in after.items() if vector != before[index]}
    return [
        Patch(file, before[index], strided)
        for index, strided in zip(changed, patches_of(tensor, axis, changed), strict=True)
    ]


def _change_folder(folder: Path, spec: EditSpec) -> tuple[Change, Manifest]:
    source = open_source(folder)
    if others := other_weights(source):
        raise InputError(
            f"{folder} holds {others[0]}, which may be another copy of the weights, or an adapter that is put on them: "
            "it would still know the entity; move it away, or edit into a new folder with -o"
        )
    check_whole(source)
    if source.manifest is None:
        _check_nothing_kept(folder)
    patches: list[Patch] = []
    tensors: list[TensorEdit] = []
    saved: list[NewTensor] = []
    plans = plan_edits(source, spec.groups, allow_overlap=spec.allow_overlap)
    edited = tuple(edited_columns(source, plans))
    check_no_twins(source, edited)
    for columns in edited:
        plan = columns.plan
        hashes = hash_ranges(folder / plan.file, tensor_range(plan.tensor), columns.patches())
        tensors.append(columns.entry(*hashes))
        patches.extend(_patches(plan.file, plan.tensor, plan.axis, columns.before, columns.after))
        saved.extend(columns.saved())
    headers = source.weights.headers
    files = tuple(
        BaseFile(name, headers[name].file_size, hashlib.sha256(headers[name].content).hexdigest(), "header")
        for name in sorted({plan.file for plan in plans})
    )
    own = tuple(name for name in source.files if is_reserved(name))
    others = {*source.files} - {row.file for row in files} - {*own}
    untouched = [UntouchedFile(name, (folder / name).stat().st_size) for name in sorted(others)]
    manifest = _manifest("safetensors", spec, files, tensors, untouched, source.manifest)
    manifest, added = _bookkeeping(folder, manifest, own, saved)
    return Change(tuple(patches), own, added), manifest


def _manifest(
    format_name: Format,
    spec: EditSpec,
    files: Sequence[BaseFile],
    tensors: Sequence[TensorEdit],
    untouched: Sequence[UntouchedFile],
    previous: Manifest | None,
) -> Manifest:
    base = Base(spec.base, tuple(files))
    return Manifest(
        format_name,
        base,
        spec.groups,
        tuple(tensors),
        tuple(untouched),
        recipe=spec.recipe_text,
        previous=previous,
        in_place=True,
    )


def _change_gguf(path: Path, spec: EditSpec) -> tuple[Change, Manifest]:
    plan = plan_gguf(path, spec)
    if plan.previous is None and (path.parent / MANIFEST_NAME).exists():
        raise OutputError(
            f"{path.parent / MANIFEST_NAME} belongs to another model: move {path.name} to a folder of its own"
        )
    if plan.previous is None:
        _check_nothing_kept(path.parent)
    patches = tuple(
        Patch(piece.file.path.name, before.content, after)
        for piece in plan.pieces
        for before, after in zip(piece.originals(), piece.changes(), strict=True)
    )
    files: list[BaseFile] = []
    untouched: list[UntouchedFile] = []
    tensors: list[TensorEdit] = []
    for file in plan.model.files:
        if edits := plan.edits_of(file):
            hashes = PieceHashes(file, edits)
            stream(file.path, patches=changes(edits), hashes=hashes.ranges())
            files.append(hashes.base_file())
            tensors.extend(hashes.entries())
        else:
            untouched.append(UntouchedFile(file.path.name, file.size))
    manifest = _manifest("gguf", spec, files, tensors, untouched, plan.previous)
    own = tuple(name for name in plan.own_files() if is_reserved(name))
    manifest, added = _bookkeeping(path.parent, manifest, own, plan.saved)
    return Change(patches, own, added), manifest


def _original_columns(folder: Path, manifest: Manifest) -> tuple[Patch, ...]:
    states = go_back(folder, manifest, 1)
    check(states)
    check_files(states)
    return tuple(
        patch
        for row in states[0].tensors
        for patch in _patches(row.edit.file, row.after.tensor, row.after.axis, row.after.vectors, row.before.vectors)
    )


def _original_rows(folder: Path) -> tuple[Patch, ...]:
    with as_verification_error():
        manifest, model = read_output(folder)
        states = proof.go_back(folder, model, manifest, 1)
        proof.check_files(states, model)
    return tuple(
        Patch(piece.file.path.name, after.content, before)
        for piece in states[0].edits
        for before, after in zip(piece.originals(), piece.changes(), strict=True)
    )
