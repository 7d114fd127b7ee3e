"""Hidden folders for work that takes long, which do not outlive the process for good, even if it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from amnesia.files.locks import lock_folder


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Generator[Path]:
    """A new hidden folder next to `beside`, removed at the end unless it was renamed.

    What processes that were killed left there is removed too. Raises OSError.
    """
    prefix = f".{beside.name}-"
    for path in beside.parent.glob(f"{prefix}*"):
        _remove_abandoned(path)
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=beside.parent))
        # Until it is locked, another process may take the folder for an abandoned one and remove it.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            if (lock := lock_folder(made)) is not None:
                break
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder that no process holds locked."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        # None: whoever held the lock has given the folder its final name meanwhile.
        if (lock := lock_folder(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def cache_folder() -> Path:
    """`AMNESIA_CACHE`, else `amnesia` in the platform's cache folder."""
    if chosen := os.environ.get("AMNESIA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "amnesia"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amnesia"
