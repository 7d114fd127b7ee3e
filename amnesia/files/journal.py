"""Changes of a folder that happen completely or not at all, although they overwrite bytes of large files.

Before the first write, a journal with the bytes that are about to be lost is forced to the disk. While it exists the
folder is in between, and `recover` puts everything back; removing the journal is what makes a change final. So an
interrupted change never happened, whenever the process was killed. Only what writes in the folder takes a change back.

A journal may come with a folder from elsewhere. So it is believed only where it overwrites bytes of weights that have
the size it says, and moves or removes files that this package writes.

Small files that make room are moved to a hidden folder beside the journal and back, so that each step can be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from amnesia.errors import AmnesiaError, OutputError, VerificationError
from amnesia.files.cache import MARK_NAME, hidden_folder, hidden_folders, is_hidden_name, remove_hidden
from amnesia.files.companions import is_written
from amnesia.files.disk import (
    JOURNAL_NAME,
    NO_JOURNAL,
    copy_file,
    locked,
    open_regular,
    read_exactly,
    read_small,
    sync,
    write_new,
)
from amnesia.files.streams import Strided, overwrite
from amnesia.files.strict_json import StrictJson, shown

_FORMAT_VERSION = 2
_WEIGHTS = (".safetensors", ".gguf")
# In the hidden folder: the files that made room.
_OLD = "files"
# A journal is held in memory; no edit in place has come near these bytes, of which its header takes a thousandth.
_MAX_JOURNAL = 2**32
_MAX_HEADER = 2**26
# A patch takes no more in the header, beyond its bytes.
_MAX_ROW = 2**11


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

    Raises OutputError when a file cannot be written, as far as that can be asked before anything is.
    """
    for name in change.added:
        if name not in change.removed and os.path.lexists(folder / name):
            raise OutputError(f"{folder / name} is in the way: move it to another place")
    _check_names(change, OutputError)
    _check_writable(folder, change)
    journal = folder / JOURNAL_NAME
    try:
        aside, lock = hidden_folder(journal)
        try:
            write_new(aside / JOURNAL_NAME, [_to_bytes(folder, aside.name, change)])
            (aside / JOURNAL_NAME).rename(journal)
            sync(folder)
            _make(folder, aside, change)
            journal.unlink()
            sync(folder)
        finally:
            os.close(lock)
    except BaseException as error:
        _settle(folder)
        if isinstance(error, OSError) and not isinstance(error, AmnesiaError):
            raise OutputError(
                f"{error.filename or folder} cannot be written ({error.strerror}): check space and permissions; "
                "nothing was changed"
            ) from error
        raise
    _sweep(folder)


def _make(folder: Path, aside: Path, change: Change) -> None:
    for name in change.removed:
        target = aside / _OLD / name
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
            copy_file(aside / _OLD / content, target)
            sync(target)
        sync(target.parent)
    sync(folder)


def _check_names(change: Change, error: type[AmnesiaError]) -> None:
    """Raises `error` for a change of anything but weights and files that this package writes."""
    for name in {patch.file: None for patch in change.patches}:
        if not name.lower().endswith(_WEIGHTS) or is_written(name):
            raise error(f"{name} holds no weights that an edit in place changes: remove {JOURNAL_NAME}")
    for name in (*change.removed, *change.added):
        if not is_written(name):
            raise error(f"{name} is no file that an edit in place writes or moves: leave it where it is")


def _check_writable(folder: Path, change: Change) -> None:
    """Raises OutputError for what would stop a change half-way, and stop taking it back as well."""
    size = len(_to_bytes(folder, "", replace(change, patches=()))) + sum(
        len(patch.before) + len(patch.after.content) + _MAX_ROW for patch in change.patches
    )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    ends = [size, *(patch.after.end for patch in change.patches)]
    ends += [len(content) for content in change.added.values() if isinstance(content, bytes)]
    if size > _MAX_JOURNAL:
        raise OutputError(f"the edit of {folder} needs a journal of {size} bytes: edit into a new folder with -o")
    if limit != resource.RLIM_INFINITY and max(ends) > limit:
        raise OutputError(
            f"the edit of {folder} writes up to byte {max(ends)} of a file, the limit is {limit} (ulimit -f): raise it"
        )
    for path in {folder / patch.file: None for patch in change.patches}:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}): make it writable first") from error
        mode = os.fstat(descriptor).st_mode
        os.close(descriptor)
        # The superuser may write to files that their owner has protected; that is no reason to do it.
        if not stat.S_ISREG(mode) or not mode & 0o222:
            raise OutputError(f"{path} is write-protected: make it writable first")


def recover(folder: Path) -> bool:
    """Take back a change that was interrupted; returns whether there was one.

    Raises OutputError while another process works on the folder, and VerificationError when files were changed since
    by something else.
    """
    if not os.path.lexists(folder / JOURNAL_NAME) and not any(hidden_folders(folder / JOURNAL_NAME)):
        return False
    with locked(folder):
        return _settle(folder)


def settle(folder: Path) -> None:
    """Like `recover`, for a caller who holds the folder's lock."""
    _settle(folder)


def _settle(folder: Path) -> bool:
    journal = folder / JOURNAL_NAME
    found = os.path.lexists(journal)
    if found and not stat.S_ISREG(journal.lstat().st_mode):
        raise VerificationError(f"{journal} {NO_JOURNAL}")
    try:
        if found:
            aside, change = _read(folder, journal)
            _take_back(folder, aside, change)
            journal.unlink()
            sync(folder)
            _remove_emptied(folder / aside)
        _sweep(folder)
    except OSError as error:
        if isinstance(error, AmnesiaError):
            raise
        raise OutputError(
            f"the interrupted change of {folder} cannot be taken back ({error.filename or JOURNAL_NAME}: "
            f"{error.strerror}): make the folder writable and repeat"
        ) from error
    return found


def _take_back(folder: Path, aside: str, change: Change) -> None:
    for name in {patch.file: None for patch in change.patches}:
        path = _own_file(folder, name)
        if not path.is_file():
            raise _foreign(folder, name)
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
        old, target = _own_file(folder, f"{aside}/{_OLD}/{name}"), _own_file(folder, name)
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
    """Without a journal, what was made for one is of no use to anyone."""
    for path in hidden_folders(folder / JOURNAL_NAME):
        with contextlib.suppress(OSError):
            remove_hidden(path)


def _remove_emptied(aside: Path) -> None:
    """Remove what is left of the hidden folder of a journal also where the model was copied with it."""
    mark = aside / MARK_NAME
    with contextlib.suppress(OSError):
        if read_small(mark, _MAX_ROW, follow=False).endswith(f" {JOURNAL_NAME}".encode()):
            mark.unlink()
        for path in sorted(aside.rglob("*"), reverse=True):
            path.rmdir()
        aside.rmdir()


def _to_bytes(folder: Path, aside: str, change: Change) -> bytes:
    payload = b"".join(patch.before + patch.after.content for patch in change.patches)
    header = {
        "format_version": _FORMAT_VERSION,
        "aside": aside,
        "sizes": {row.file: (folder / row.file).stat().st_size for row in change.patches},
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


def _read(folder: Path, path: Path) -> tuple[str, Change]:
    """The hidden folder of the files that made room, and the change that a journal describes.

    Raises VerificationError when it is damaged, or not about this folder.
    """
    check = StrictJson(str(path), VerificationError, "the journal is damaged, fetch the model again or remove it")
    with open_regular(path, follow=False) as file:
        size = os.fstat(file.fileno()).st_size
        digest, line = file.readline(2 * hashlib.sha256().digest_size + 1), file.readline(_MAX_HEADER)
        header = check.object(check.parse(line), "journal", "format_version aside sizes patches removed added")
        if header["format_version"] != _FORMAT_VERSION:
            raise check.fail("has another version than expected")
        if not is_hidden_name(check.text(header["aside"], "aside")):
            raise check.fail(f"has {shown(header['aside'])} as aside")
        for name, expected in check.mapping(header["sizes"], "sizes").items():
            target = _own_file(folder, check.file_name(name, "sizes"))
            if not target.is_file() or target.stat().st_size != check.integer(expected, "sizes"):
                raise check.fail(f"is about another {name} than the one beside it")
        places = [_place(check, row, header["sizes"]) for row in check.list(header["patches"], "patches")]
        # All that is read has room in the files that are there, whatever the journal says.
        if len(digest) + len(line) + 2 * sum(length for *_, length in places) != size or size > _MAX_JOURNAL:
            raise check.fail("has a patch that does not fit")
        payload = file.read(size)
    if digest != _digest(line, payload) + b"\n":
        raise check.fail("has another sha256 than expected")
    patches, position = [], 0
    for name, numbers, length in places:
        before, after = payload[position : position + length], payload[position + length : position + 2 * length]
        patches.append(Patch(name, before, Strided(**numbers, content=after)))
        position += 2 * length
    change = Change(
        tuple(patches),
        check.file_names(header["removed"], "removed"),
        dict.fromkeys(check.file_names(header["added"], "added"), b""),
    )
    _check_names(change, VerificationError)
    return header["aside"], change


def _place(check: StrictJson, value: object, sizes: Mapping[str, int]) -> tuple[str, dict[str, int], int]:
    """File, offset, stride and item of a patch, and the number of its bytes, which lie within the file."""
    row = check.object(value, "patches", "file offset stride item size")
    name = check.file_name(row["file"], "file")
    numbers = {key: check.integer(row[key], key) for key in ("offset", "stride", "item")}
    item, length = numbers["item"], check.integer(row["size"], "size")
    if not 0 < item <= min(length, numbers["stride"]) or length % item or name not in sizes:
        raise check.fail("has a patch that does not fit")
    if numbers["offset"] + (length // item - 1) * numbers["stride"] + item > sizes[name]:
        raise check.fail("has a patch that does not fit")
    return name, numbers, length
