"""Locks on folders: they end with the process that holds them, however it ends, and leave no file behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_folder(folder: Path) -> int | None:
    """Lock `folder` for this process until the returned descriptor is closed; does not wait.

    None when the folder was renamed or removed meanwhile, so that the lock would be on another one. Raises
    BlockingIOError when another process holds the lock, and OSError when the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
