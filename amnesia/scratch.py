"""Hidden folders for work that takes long, which do not outlive the process for good, even if it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Without locks nobody can tell which folders are abandoned, so they stay.
    fcntl = None


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A new hidden folder next to `beside`, removed at the end unless it was renamed.

    What processes that were killed left there is removed too. Raises OSError.
    """
    prefix = f".{beside.name}-"
    for path in beside.parent.glob(f"{prefix}*"):
        _remove_abandoned(path)
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=beside.parent))
        # Until it is locked, another process may take the folder for an abandoned one and remove it.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(made, os.O_RDONLY)
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if made.exists():
                break
            os.close(lock)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder that no process holds locked."""
    if fcntl is None or folder.is_symlink() or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held the lock may have given the folder its final name meanwhile.
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
