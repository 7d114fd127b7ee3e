"""Hidden folders for work that takes long, which do not outlive the process for good, even if it is killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

from amnesia.domain import user_path
from amnesia.errors import OutputError
from amnesia.files.disk import JOURNAL_NAME, MANIFEST_NAME, read_small
from amnesia.files.locks import lock_folder

_NAME = re.compile(r"\.amnesia-[0-9a-f]{16}")
# In a hidden folder: what it was made for, the new thing, and the older one that makes room for it.
MARK_NAME, _NEW, _OLD = "mark", "new", "old"
_MAX_MARK = 2**16


@contextlib.contextmanager
def scratch_folder(beside: Path, *, alone: bool = False) -> Generator[Path]:
    """A new empty folder, inside of a hidden one next to `beside`; removed at the end unless it was renamed.

    The hidden folder has a random name, and a mark in it that only whoever made it can have written: it holds the
    number that the system gave to the folder. By it the folders are known that a killed process left for `beside`; they
    are removed too, after what `aside` has put there is back in its place.

    Raises OSError and, if it must be `alone`, OutputError while another process makes the same thing.
    """
    made, lock = hidden_folder(beside)
    try:
        for other in hidden_folders(beside):
            if other != made and not _remove_abandoned(other, beside) and alone:
                raise OutputError(f"{beside} is in use by another process: wait for it, or choose another output")
        (made / _NEW).mkdir()
        yield made / _NEW
    finally:
        with contextlib.suppress(OSError):
            remove_hidden(made)
        os.close(lock)


def aside(new: Path) -> Path:
    """Where an older thing makes room for the folder `new` of `scratch_folder`."""
    return new.with_name(_OLD)


def hidden_folder(beside: Path) -> tuple[Path, int]:
    """A new hidden folder next to `beside`, marked as made for it, and the descriptor that keeps it locked.

    Raises OSError.
    """
    while True:
        made = beside.with_name(f".amnesia-{secrets.token_hex(8)}")
        made.mkdir(mode=0o700)
        try:
            # Until it is locked, another process may take the folder for an abandoned one and remove it.
            if (lock := lock_folder(made)) is None:
                continue
        except (FileNotFoundError, BlockingIOError):
            continue
        except BaseException:
            made.rmdir()
            raise
        try:
            (made / MARK_NAME).write_bytes(_mark(made, beside.name))
            break
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            os.close(lock)
            raise
    return made, lock


def is_hidden_name(name: str) -> bool:
    """Whether a folder of `hidden_folder` may be called so."""
    return _NAME.fullmatch(name) is not None


def _mark(folder: Path, name: str) -> bytes:
    return f"{folder.stat().st_ino} {name}".encode("utf-8", "surrogateescape")


def hidden_folders(beside: Path) -> Iterator[Path]:
    """The folders next to `beside` that a process of this user made for it, or died too early to say for what."""
    return (path for path, name in _hidden_in(beside.parent) if name in (beside.name, None))


def _hidden_in(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """The hidden folders in a folder that a process of this user made, and what for; None if it died too early."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_hidden_name(path.name):
            continue
        with contextlib.suppress(OSError):
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            inside = {item.name for item in path.iterdir()}
            mark = read_small(path / MARK_NAME, _MAX_MARK, follow=False) if MARK_NAME in inside else b""
            name = mark.partition(b" ")[2].decode("utf-8", "surrogateescape")
            if mark and mark == _mark(path, name) and Path(name).name == name:
                yield path, name
            elif not mark and inside <= {MARK_NAME}:
                yield path, None


def _remove_abandoned(folder: Path, beside: Path) -> bool:
    """Remove a folder that no process holds locked, and tell whether that is so."""
    try:
        lock = lock_folder(folder)
    except BlockingIOError:
        return False
    except OSError:
        return True
    if lock is not None:
        try:
            if (folder / _OLD).exists() and ((folder / _NEW).exists() or not os.path.lexists(beside)):
                try:
                    (folder / _OLD).rename(beside)  # Also over an empty folder.
                except OSError:
                    return True  # Something else took the place; this may be the only copy of the older thing.
            with contextlib.suppress(OSError):
                remove_hidden(folder)
        finally:
            os.close(lock)
    return True


def remove_abandoned(beside: Path) -> None:
    """Remove what killed processes have left next to `beside`, after what they had put aside is back in its place."""
    for folder in hidden_folders(beside):
        _remove_abandoned(folder, beside)


def remove_all_abandoned(folder: Path) -> None:
    """The same for all that was made in a folder of this package's own, but for what an edit in place has put aside."""
    for path, name in _hidden_in(folder):
        if name != JOURNAL_NAME:
            _remove_abandoned(path, folder / (name or path.name))


def remove_hidden(folder: Path) -> None:
    """Remove a hidden folder, manifests first, the mark last: what a kill leaves is neither complete nor foreign."""
    for path in folder.rglob(MANIFEST_NAME):
        path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK_NAME:
            path.unlink()
    (folder / MARK_NAME).unlink(missing_ok=True)
    folder.rmdir()


def cache_folder() -> Path:
    """`AMNESIA_CACHE`, else `amnesia` in the platform's cache folder."""
    if chosen := os.environ.get("AMNESIA_CACHE"):
        return user_path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "amnesia"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amnesia"
