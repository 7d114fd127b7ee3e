"""Files and folders: names that stay inside, copies and hashes in bounded memory, exact reads and writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from amnesia.errors import CheckpointError, OutputError, os_errors_as
from amnesia.files.locks import lock_folder
from amnesia.files.streams import RangeHash, Strided, overwrite, stream
from amnesia.progress import Progress, ignore_progress

# Larger buffers fall out of the processor's cache between reading and hashing, and are slower.
BLOCK = 2**20
_FICLONE = 0x40049409
# How folders of repositories begin in a cache of huggingface_hub.
CACHE_PREFIXES = ("models--", "datasets--", "spaces--")
# A folder with this file is a complete output; see `manifest`.
MANIFEST_NAME = "amnesia.json"
# While a file of this name exists, the folder is in the middle of an edit in place.
JOURNAL_NAME = ".amnesia-journal"
NO_JOURNAL = "is no regular file, and so no journal of an edit in place: remove it"
_NOT_SUPPORTED = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF}


def is_inside_name(name: str) -> bool:
    """Whether `name` is a plain relative path with forward slashes that cannot leave its folder."""
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and "\\" not in name
        and ":" not in name.split("/", 1)[0]
        and not name.startswith("/")
        and str(PurePosixPath(name)) == name
        and ".." not in name.split("/")
        and name != "."
    )


def copy_file(
    source: Path,
    target: Path,
    *,
    link: bool = False,
    patches: Sequence[Strided] = (),
    hashes: Sequence[RangeHash] = (),
    advance: Callable[[int], None] | None = None,
) -> bool:
    """Copy the bytes of `source` to the new file `target`, sharing disk blocks where the filesystem can.

    `patches` are put into the copy. `hashes` are filled in on the way, and the result says whether they were: not
    where nothing needs to be read, because there are no patches and the disk shares the bytes. `advance` is called with
    the number of bytes that each step has copied. With `link`, `target` becomes a hard link: no space and no time, but
    a later write to one changes the other. Raises OutputError when the disk is full, or when linking is impossible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            raise OutputError(
                f"{source} cannot be hard-linked to {target.parent} ({error.strerror}): "
                "choose an output on the same filesystem, or copy instead of linking"
            ) from error
        return False
    with source.open("rb") as reader:
        with os_errors_as(OutputError, f"{target} cannot be written", "free space or choose another disk"):
            with target.open("xb") as writer:
                shared = _reflink(reader.fileno(), writer.fileno())
                if not shared:
                    stream(source, target, patches=patches, hashes=hashes, advance=advance)
                elif patches:
                    stream(source, patches=patches, hashes=hashes, advance=advance)
                    overwrite(target, patches)
    return bool(patches) or not shared


def _read_ahead(descriptor: int) -> None:
    """Tell the kernel that a file is read from start to end, where it can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return False
        raise
    return True


def git_hash(content: bytes) -> str:
    """The name of `content` as a blob of git, by which the Hub knows small files; sha1 is the choice of git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hash_file(path: Path, offset: int = 0, size: int | None = None, *, progress: Progress = ignore_progress) -> str:
    """sha256 of a file, or of `size` bytes from `offset`, in a buffer of one block; `progress` is told of bytes read.

    Raises CheckpointError when the file is shorter than asked.
    """
    digest = hashlib.sha256()
    left = path.stat().st_size - offset if size is None else size
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        _read_ahead(file.fileno())
        file.seek(offset)
        while left > 0:
            view = memoryview(buffer)[: min(left, BLOCK)]
            count = file.readinto(view)
            if not count:
                raise CheckpointError(f"{path} ends {left} bytes early: fetch it again")
            digest.update(view[:count])
            progress(count)
            left -= count
    return digest.hexdigest()


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """A file opened for reading, which never waits: raises OSError for a pipe, a socket or a device.

    Without `follow`, also for a link.
    """

    def opener(name: str, flags: int) -> int:
        # Opening a pipe would wait for somebody to write into it; on regular files the flag means nothing.
        descriptor = os.open(name, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return descriptor

    # The file alone closes what is opened: an interrupt may come wherever it was to be handed over.
    return open(path, "rb", opener=opener)


def read_small(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """All of a file of at most `limit` bytes; raises OSError for a longer one, and as `open_regular` does.

    Everything that is read whole is read by this function, because any of it may have come from elsewhere.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= limit:
            content = file.read(size + 1)  # What is not there is not allocated either.
            if len(content) <= limit:
                return content
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))


def read_exactly(descriptor: int, size: int, offset: int, name: str) -> bytes:
    """`size` bytes at `offset` of an open file; raises CheckpointError when it ends before."""
    parts = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise CheckpointError(f"{name} ends before byte {offset + size}: fetch it again")
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return b"".join(parts)


def read_range(path: Path, size: int, offset: int) -> bytes:
    """Exactly `size` bytes of a file from `offset` on; raises as `read_exactly`."""
    with path.open("rb", buffering=0) as file:
        return read_exactly(file.fileno(), size, offset, str(path))


def write_exactly(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of `content` at `offset` of an open file."""
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def patched_blocks(path: Path, patches: Sequence[Strided], offset: int = 0, size: int | None = None) -> Iterator[bytes]:
    """`size` bytes of a file from `offset`, block by block, with `patches` put in.

    Raises CheckpointError when the file is shorter than asked.
    """
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size if size is None else offset + size
        for position in range(offset, end, BLOCK):
            block = bytearray(read_exactly(file.fileno(), min(BLOCK, end - position), position, str(path)))
            for patch in patches:
                patch.put(np.frombuffer(block, np.uint8), position)
            yield bytes(block)


def write_new(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a new file and force it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        position = 0
        for block in blocks:
            write_exactly(descriptor, block, position)
            position += len(block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that an older one is replaced whole or not at all.

    Raises OSError when something that is no regular file has the name: what a link leads to is not ours.
    """
    check_replaceable(path)
    partial = path.with_name(f".amnesia-{secrets.token_hex(8)}")
    try:
        write_new(partial, [content])
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
    except FileExistsError:
        raise  # It is not ours, whoever made it.
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path) -> None:
    """Raises OSError when `path` is there and no regular file, which is never replaced."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EEXIST, "it is a link, a pipe or a device", str(path))


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and time of the last change: whether a file was written to meanwhile."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_empty(folder: Path) -> None:
    """Raises OutputError when a folder that is to be filled holds something."""
    if any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty: give an empty folder")


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other processes from changing `folder` meanwhile; raises OutputError when one is at it."""
    try:
        while (lock := lock_folder(folder)) is None:
            pass
    except BlockingIOError as error:
        raise OutputError(f"{folder} is being edited by another process: wait for it") from error
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({error.strerror}): give the folder of a model") from error
    try:
        yield
    finally:
        os.close(lock)


def check_settled(folder: Path) -> None:
    """Raises CheckpointError when an edit of `folder` in place was interrupted and not yet taken back."""
    journal = folder / JOURNAL_NAME
    if os.path.lexists(journal):
        if not stat.S_ISREG(journal.lstat().st_mode):
            raise CheckpointError(f"{journal} {NO_JOURNAL}")
        raise CheckpointError(
            f"an edit of {folder} in place was interrupted ({JOURNAL_NAME} is there): take it back with `amnesia undo "
            f"{folder} --in-place`; if nobody here edited it in place, remove that file"
        )


def check_plain(folder: Path) -> None:
    """Raises CheckpointError for a pipe, socket or device in a folder, for which those who read there would wait."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise CheckpointError(f"{path} is not a regular file: remove it")


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
