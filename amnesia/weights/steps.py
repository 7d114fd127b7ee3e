"""Edits that were made on top of each other, and in which files each of them found the model."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from amnesia.errors import VerificationError
from amnesia.files.companions import README_NAME
from amnesia.files.disk import hash_file, read_small
from amnesia.files.listing import check_inside, list_files
from amnesia.files.staging import MANIFEST_NAME
from amnesia.weights.checkpoint import BASE_FOLDER, CheckpointSource
from amnesia.weights.manifest import Manifest
from amnesia.weights.manifest_file import MAX_MANIFEST, manifest_bytes
from amnesia.weights.safetensors import SafetensorsHeader, read_header


@dataclass(frozen=True)
class Step:
    """One edit, the files as it left them, and the files as it found them.

    Both map the names that files had then to paths in the folder that is being read; `before` says nothing of the
    weights that the edit changed but where they are.
    """

    manifest: Manifest
    after: Mapping[str, Path]
    before: Mapping[str, Path]

    def saved_columns(self) -> SafetensorsHeader | None:
        """Header of the file with what is needed, beside the edit, to give columns back."""
        return None if self.manifest.undo is None else read_header(self.after[self.manifest.undo])


def trace_back(folder: Path, manifest: Manifest) -> tuple[Step, ...]:
    """All edits of a folder, newest first.

    Raises VerificationError when files that a manifest declares are missing or have another size, or when
    `amnesia-base/` holds others.
    """
    files = {name: folder / name for name in names_in(folder, manifest)}
    steps = []
    for current in manifest.history():
        before = _files_before(current, files)
        steps.append(Step(current, files, before))
        earlier = before.get(MANIFEST_NAME)
        if earlier is None or current.previous is None:
            agree = earlier is None and current.previous is None
        else:
            agree = read_small(earlier, MAX_MANIFEST) == manifest_bytes(current.previous)
        if not agree:
            raise VerificationError(
                f"{folder / MANIFEST_NAME} and the kept manifest of the earlier edit disagree: the output is damaged, "
                "make it again"
            )
        files = before
    return tuple(steps)


def names_in(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Names of the files of an output: all below its folder, but for a GGUF, beside which others may have theirs.

    Of a GGUF they are those that its manifests name, as far as they are there, and what earlier edits have kept.
    Raises what `list_files` and `check_inside` raise.
    """
    if manifest.format != "gguf":
        return list_files(folder)
    names = {MANIFEST_NAME}
    for step in manifest.history():
        names |= {row.file for row in (*step.base.files, *step.untouched)} | {*step.added, *step.replaced}
    found = [name for name in names if (folder / name).is_file()]
    for name in found:
        check_inside(folder / name, folder)
    kept = list_files(folder / BASE_FOLDER) if (folder / BASE_FOLDER).exists() else ()
    return tuple(sorted({*found, *(f"{BASE_FOLDER}/{name}" for name in kept)}))


def check_whole(source: CheckpointSource) -> None:
    """Raises VerificationError when an edited folder lacks what takes its edits back: nothing is built upon that."""
    if source.manifest is not None and source.manifest.format == "safetensors":
        trace_back(source.folder, source.manifest)


def own_files(manifest: Manifest, present: Container[str] = ()) -> tuple[str, ...]:
    """Names of the files that an edit must have left beside the model, and of those `present` that replaced others.

    Where a file was replaced, nothing need have come: not every edit has files of the same names.
    """
    kept = (f"{BASE_FOLDER}/{name}" for name in manifest.replaced)
    successors = (name for name in manifest.replaced if name in present)
    return tuple(sorted({MANIFEST_NAME, *manifest.added, *kept, *successors}))


def files_of_all_edits(manifest: Manifest, present: Iterable[str]) -> tuple[str, ...]:
    """Those of the files `present` that an edit or one before it has brought, the manifest last."""
    brought = {name for step in manifest.history() for name in (*step.added, *step.replaced)}
    own = (name for name in present if name in brought or name.startswith(f"{BASE_FOLDER}/") or name == MANIFEST_NAME)
    return tuple(sorted(own, key=lambda name: (name == MANIFEST_NAME, name)))


def _files_before(manifest: Manifest, files: Mapping[str, Path]) -> dict[str, Path]:
    replaced = {name: f"{BASE_FOLDER}/{name}" for name in manifest.replaced}
    missing = sorted({*own_files(manifest), *(row.file for row in manifest.base.files)} - files.keys())
    if missing:
        raise VerificationError(
            f"{missing[0]} is missing, but {MANIFEST_NAME} declares it: the output is damaged, make it again"
        )
    before = {
        name: path
        for name, path in files.items()
        if name != MANIFEST_NAME and name not in manifest.added and not name.startswith(f"{BASE_FOLDER}/")
    }
    surplus = sorted(name for name in files if name.startswith(f"{BASE_FOLDER}/") and name not in replaced.values())
    if surplus:
        raise VerificationError(f"{surplus[0]} is not declared in {MANIFEST_NAME}: remove it, or make the output again")
    return before | {name: files[path] for name, path in replaced.items()}


def touched_by(manifest: Manifest) -> frozenset[str]:
    """Names of the files in which an edit changed weights."""
    return frozenset(row.file for row in manifest.base.files)


def hashes_before(manifest: Manifest, after: Mapping[str, str]) -> dict[str, str]:
    """sha256 of files as an edit found them, as far as it says, from those `after` it; both by name."""
    changed = touched_by(manifest) | {*manifest.added, *manifest.replaced}
    return {
        **{name: sha256 for name, sha256 in after.items() if name not in changed},
        **{row.file: row.sha256 for row in manifest.untouched if row.sha256 is not None},
        **{row.file: row.sha256 for row in manifest.base.files if row.scope == "file"},
    }


_AGAIN = "put it back, or make the output again"


def check_written(
    folder: Path, manifest: Manifest, *, kept_only: bool = False, card: bool = False, remedy: str = _AGAIN
) -> None:
    """Raises VerificationError, which ends in the `remedy`, when a file beside the model is not as it was written.

    With `kept_only` it looks at those alone from which an undo takes something, with `card` also at the model card, on
    which people go on writing. Which must be there, `trace_back` says.
    """
    for row in manifest.written:
        path = folder / row.file
        is_kept = row.file == manifest.undo or row.file.startswith(f"{BASE_FOLDER}/")
        if not path.is_file() or (kept_only and not is_kept) or (row.file == README_NAME and not card):
            continue
        size = path.stat().st_size
        if size != row.size:
            found = f"has {size} bytes, {MANIFEST_NAME} declares {row.size}"
        elif row.sha256 is not None and hash_file(path) != row.sha256:
            found = f"has another sha256 than {MANIFEST_NAME} declares"
        else:
            continue
        raise VerificationError(f"{path} {found}, it was changed since it was written: {remedy}")


def check_sizes(step: Step) -> None:
    """Raises VerificationError when a file of the model is missing, or has another size than the manifest says."""
    for row in (*step.manifest.base.files, *step.manifest.untouched):
        if row.file not in step.before:
            raise VerificationError(
                f"{row.file} is missing, but {MANIFEST_NAME} declares it: the output is damaged, make it again"
            )
        size = step.before[row.file].stat().st_size
        if size != row.size:
            raise VerificationError(
                f"{step.before[row.file]} has {size} bytes, {MANIFEST_NAME} declares {row.size}: the output is "
                "damaged, make it again"
            )
