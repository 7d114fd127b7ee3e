"""Taking an edit back: the files as they were, bit for bit, from the edited folder alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from amnesia.errors import InputError, OutputError, VerificationError, os_errors_as
from amnesia.files.disk import copy_file, hash_file, list_files
from amnesia.files.staging import staged_output
from amnesia.files.streams import RangeHash
from amnesia.outputs.history import blocks_with, check_untouched, columns_before, trace_back
from amnesia.progress import Watch, unwatched
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest


def undo(
    folder: Path,
    output: Path,
    *,
    force: bool = False,
    every_step: bool = False,
    watch: Watch = unwatched,
) -> Manifest:
    """Restore into `output` the model that was edited, and return the manifest of the edit that was taken back.

    Edits made on top of each other are taken back one at a time, newest first; `every_step` goes back to the base.
    Files are checked against the sha256 that they had before the edit, where the manifest knows it. `watch` gets the
    bytes that will be written.

    Raises VerificationError when the folder is not what its manifest says, InputError for adapters and GGUF files, and
    OutputError as `staged_output` does.
    """
    manifest = read_manifest(folder)
    if manifest.format == "adapter":
        raise InputError(f"{folder} is an adapter, the base model was never changed: to undo it, do not load it")
    if manifest.format != "safetensors":
        raise InputError(f"{folder} holds an edited {manifest.format} file: undo that file instead")
    steps, origins = trace_back(folder, list_files(folder), manifest)
    count = len(steps) if every_step else 1
    steps, origins = steps[:count], origins[:count]
    check_untouched(steps, origins)
    declared = {row.file for step in steps for row in (*step.manifest.base.files, *step.manifest.untouched)}
    declared.update(name for step in steps for name in step.manifest.replaced)
    # What else came to lie in the folder is no part of the model.
    files = {name: path for name, path in origins[-1].items() if name in declared}
    columns = columns_before(steps)
    # Going from the newest to the oldest edit, the last hash of a file is the one from before all of them.
    # Edits in place have no hash of a file, but those of its tensors.
    scopes = {row.file: row.scope for step in steps for row in step.manifest.base.files}
    tensors = {(row.file, row.name): row.before for step in steps for row in step.manifest.tensors}
    hashes = {row.file: row.sha256 for step in steps for row in step.manifest.base.files if row.scope == "file"}
    copied = {row.file: row.sha256 for row in steps[-1].manifest.untouched}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    with watch(total) as progress, staged_output(output, force=force, needed_bytes=total, source=folder) as staging:
        for name, path in files.items():
            if name in columns:
                restored = _write(blocks_with(path, columns[name]), staging / name)
                if scopes[name] == "header":
                    intact = all(
                        hash_file(staging / name, row.tensor.offset, row.tensor.size) == tensors[name, row.tensor.name]
                        for row in columns[name]
                    )
                else:
                    intact = hashes[name] == restored
            else:
                whole = RangeHash(0, sizes[name])
                hashed = copy_file(path, staging / name, hashes=[whole])
                intact = not hashed or copied.get(name) in (None, whole.hexdigest())
            if not intact:
                raise VerificationError(
                    f"{path} does not become the original when the edit is taken back: it was changed after the "
                    "edit; fetch the base model again"
                )
            progress(sizes[name])
    return steps[-1].manifest


def _write(blocks: Iterable[bytes], path: Path) -> str:
    """Write blocks to a new file and return the sha256 of its content."""
    digest = hashlib.sha256()
    with os_errors_as(OutputError, f"{path} cannot be written", "free space or choose another disk"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
    return digest.hexdigest()
