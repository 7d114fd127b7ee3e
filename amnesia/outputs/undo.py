"""Taking an edit back: the files as they were, bit for bit, from the edited folder alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from amnesia.domain import ADAPTERS
from amnesia.errors import InputError, OutputError, VerificationError, os_errors_as
from amnesia.files.companions import REPOSITORY_FILE
from amnesia.files.disk import copy_file, hash_file
from amnesia.files.staging import MANIFEST_NAME, staged_output
from amnesia.files.streams import RangeHash
from amnesia.guessing import as_declared
from amnesia.outputs.history import check, check_files, go_back
from amnesia.progress import Watch, unwatched
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import read_manifest
from amnesia.weights.steps import check_written


@as_declared()
def undo(
    folder: Path,
    output: Path,
    *,
    force: bool = False,
    every_step: bool = False,
    watch: Watch = unwatched,
    notice: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Restore into `output` the model that was edited, and return the manifest of the edit that was taken back.

    Edits made on top of each other are taken back one at a time, newest first; `every_step` goes back to the base.
    What `verify` refuses is not taken back, but for reports and the like that were changed, which the original does not
    have. `watch` gets the bytes that will be written, `notice` a line about files
    that stay behind, because the manifest does not list them.

    Raises VerificationError when the folder is not what its manifest says, InputError for adapters and GGUF files, and
    OutputError as `staged_output` does.
    """
    manifest = read_manifest(folder)
    if manifest.format in ADAPTERS:
        raise InputError(f"{folder} is an adapter, the base model was never changed: to undo it, do not load it")
    if manifest.format != "safetensors":
        raise InputError(f"{folder} holds an edited {manifest.format} file: undo that file instead")
    states = go_back(folder, manifest, None if every_step else 1)
    check(states)
    check_files(states[:-1])
    check_written(folder, manifest, kept_only=True)
    state = states[-1]
    names = {name for each in states for name in each.declared}
    # What else came to lie in the folder is no part of the model.
    files = {name: path for name, path in state.files.items() if name in names}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    with watch(total) as progress, staged_output(output, force=force, needed_bytes=total, source=folder) as staging:
        for name, path in files.items():
            expected = state.hashes.get(name)
            if name in state.columns:
                found = _write(state.blocks(name), staging / name)
            else:
                whole = RangeHash(0, sizes[name])
                hashed = copy_file(path, staging / name, hashes=[whole])
                found = whole.hexdigest() if hashed else hash_file(path) if expected is not None else None
            if expected not in (None, found):
                raise VerificationError(
                    f"{path} does not become the original when the edit is taken back: it was changed after the "
                    "edit; fetch the base model again"
                )
            progress(sizes[name])
    if others := sorted(state.files.keys() - names - {REPOSITORY_FILE}):
        more = f" and {len(others) - 1} more files" if len(others) > 1 else ""
        notice(f"{others[0]}{more} of {folder} stayed there: {MANIFEST_NAME} does not list them as files of the model")
    return state.manifest


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
