"""Changes of a folder that happen completely or not at all, although they overwrite bytes of large files.

Before the first write, a journal with the bytes that are about to be lost is forced to the disk. While it exists the
folder is in between, and `recover` puts everything back; removing the journal is what makes a change final. So an
interrupted change never happened, whenever the process was killed.

Small files that make room are moved to a folder beside the journal and back, so that each step can be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amnesia.errors import AmnesiaError, OutputError, VerificationError
from amnesia.files.disk import JOURNAL_NAME, copy_file, locked, read_exactly, sync, write_new
from amnesia.files.streams import Strided, overwrite
from amnesia.files.strict_json import StrictJson

_PARTIAL_NAME = f"{JOURNAL_NAME}-partial"
_OLD_NAME = f"{JOURNAL_NAME}-old"
OWN_NAMES = (JOURNAL_NAME, _PARTIAL_NAME, _OLD_NAME)


@dataclass(frozen=True)
class Patch:
    """Bytes of a file to overwrite: the items `before`, one after the other, become those of `after`."""

    file: str
    before: bytes
    after: Strided

    def original(self) -> Strided:
        """What takes the patch back."""
        return replace(self.after, content=self.before)


@dataclass(frozen=True)
class Change:
    """What happens to a folder: bytes of files that stay, names that go, and files that come.

    `added` maps the name of a new file to its content, or to the name that the file had before (one of `removed`).
    Its last entry is written last.
    """

    patches: tuple[Patch, ...]
    removed: tuple[str, ...]
    added: Mapping[str, bytes | str]


def apply(folder: Path, change: Change) -> None:
    """Make the change, or leave the folder as it was; the caller holds the folder's lock.

    Raises OutputError when a file cannot be written.
    """
    for name in change.added:
        if name not in change.removed and os.path.lexists(folder / name):
            raise OutputError(f"{folder / name} is in the way: move it to another place")
    journal = folder / JOURNAL_NAME
    partial = folder / _PARTIAL_NAME
    try:
        write_new(partial, [_to_bytes(change)])
        partial.rename(journal)
        sync(folder)
        for name in change.removed:
            target = folder / _OLD_NAME / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(target)
        for name in {patch.file: None for patch in change.patches}:
            overwrite(folder / name, [patch.after for patch in change.patches if patch.file == name])
        _remove_empty(folder, change.removed)
        for name, content in change.added.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                write_new(target, [content])
            else:
                copy_file(folder / _OLD_NAME / content, target)
                sync(target)
            sync(target.parent)
        sync(folder)
        journal.unlink()
        sync(folder)
    except BaseException as error:
        _settle(folder)
        if isinstance(error, OSError) and not isinstance(error, AmnesiaError):
            raise OutputError(
                f"{error.filename or folder} cannot be written ({error.strerror}): check space and permissions; "
                "nothing was changed"
            ) from error
        raise
    _sweep(folder)


def recover(folder: Path) -> bool:
    """Take back a change that was interrupted; returns whether there was one.

    Raises OutputError while another process works on the folder, and VerificationError when files were changed since
    by something else.
    """
    if not any((folder / name).exists() for name in OWN_NAMES):
        return False
    with locked(folder):
        return _settle(folder)


def settle(folder: Path) -> None:
    """Like `recover`, for a caller who holds the folder's lock."""
    _settle(folder)


def _settle(folder: Path) -> bool:
    journal = folder / JOURNAL_NAME
    found = journal.exists()
    try:
        if found:
            _take_back(folder, _from_bytes(journal, journal.read_bytes()))
            journal.unlink()
            sync(folder)
        _sweep(folder)
    except OSError as error:
        if isinstance(error, AmnesiaError):
            raise
        raise OutputError(
            f"the interrupted change of {folder} cannot be taken back ({error.filename}: {error.strerror}): make the "
            "folder writable and repeat"
        ) from error
    return found


def _take_back(folder: Path, change: Change) -> None:
    for name in {patch.file: None for patch in change.patches}:
        path = _own_file(folder, name)
        patches = [patch for patch in change.patches if patch.file == name]
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for patch in patches:
                if patch.after.end > size:
                    raise _foreign(folder, name)
                places = patch.after.places()
                now = b"".join(read_exactly(file.fileno(), patch.after.item, offset, str(path)) for offset, _ in places)
                found, before, after = (
                    np.frombuffer(part, np.uint8) for part in (now, patch.before, patch.after.content)
                )
                if not np.all((found == before) | (found == after)):
                    raise _foreign(folder, name)
        overwrite(path, [patch.original() for patch in patches])
    for name in change.added:
        # A name that was there before is overwritten below by the file that made room, if it already did.
        if name not in change.removed:
            _own_file(folder, name).unlink(missing_ok=True)
    _remove_empty(folder, tuple(change.added))
    for name in change.removed:
        old, target = _own_file(folder, f"{_OLD_NAME}/{name}"), _own_file(folder, name)
        if old.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            old.replace(target)
            sync(target.parent)
    sync(folder)


def _own_file(folder: Path, name: str) -> Path:
    """A path of the folder; a journal that came with a download must not reach beyond through links."""
    path = folder / name
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise VerificationError(f"{path} is a link: an edit in place never writes through links, remove {JOURNAL_NAME}")
    return path


def _foreign(folder: Path, name: str) -> VerificationError:
    return VerificationError(
        f"{folder / name} was changed by something else after the edit of it was interrupted: fetch this file again, "
        f"and remove {folder / JOURNAL_NAME}"
    )


def _remove_empty(folder: Path, names: Sequence[str]) -> None:
    """Remove the folders that held `names`, if nothing is left in them."""
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(parents, key=lambda parent: len(parent.parts), reverse=True):
        with contextlib.suppress(OSError):
            (folder / parent).rmdir()


def _sweep(folder: Path) -> None:
    """Without a journal, what lies beside it is of no use to anyone."""
    (folder / _PARTIAL_NAME).unlink(missing_ok=True)
    old = folder / _OLD_NAME
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)


def _to_bytes(change: Change) -> bytes:
    payload = b"".join(patch.before + patch.after.content for patch in change.patches)
    header = {
        "format_version": 1,
        "patches": [
            {
                "file": row.file,
                "offset": row.after.offset,
                "stride": row.after.stride,
                "item": row.after.item,
                "size": len(row.before),
            }
            for row in change.patches
        ],
        "removed": list(change.removed),
        "added": list(change.added),
    }
    line = json.dumps(header, ensure_ascii=True).encode() + b"\n"
    return _digest(line, payload) + b"\n" + line + payload


def _digest(*parts: bytes) -> bytes:
    """sha256 of everything that follows: names that were damaged would remove or overwrite the wrong files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _from_bytes(path: Path, content: bytes) -> Change:
    check = StrictJson(str(path), VerificationError, "the journal is damaged, fetch the model again")
    digest, _, rest = content.partition(b"\n")
    if digest != _digest(rest):
        raise check.fail("has another sha256 than expected")
    line, _, payload = rest.partition(b"\n")
    header = check.object(check.parse(line), "journal", "format_version patches removed added")
    if header["format_version"] != 1:
        raise check.fail("has another version than expected")
    patches = []
    position = 0
    for item in check.list(header["patches"], "patches"):
        row = check.object(item, "patches", "file offset stride item size")
        numbers = {key: check.integer(row[key], key) for key in ("offset", "stride", "item", "size")}
        size = numbers.pop("size")
        item_size = numbers["item"]
        if not 0 < item_size <= min(size, numbers["stride"]) or size % item_size or position + 2 * size > len(payload):
            raise check.fail("has a patch that does not fit")
        before, after = payload[position : position + size], payload[position + size : position + 2 * size]
        patches.append(Patch(check.file_name(row["file"], "file"), before, Strided(**numbers, content=after)))
        position += 2 * size
    return Change(
        tuple(patches),
        check.file_names(header["removed"], "removed"),
        dict.fromkeys(check.file_names(header["added"], "added"), b""),
    )
