"""SQLite files for work that takes long: what is written is committed at once, and survives the death of a process."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from amnesia.errors import OutputError


@contextlib.contextmanager
def database(path: Path, tables: str, purpose: str) -> Generator[sqlite3.Connection]:
    """The database, with its tables; several processes may write it, each waiting for the others.

    Raises OutputError, which says that it cannot be used as `purpose`, for a file that is not a database or cannot be
    written.
    """
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=120)
        connection.executescript(tables)
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise OutputError(f"{path} cannot be used as {purpose} ({error}): choose another file") from error
    try:
        yield connection
    finally:
        connection.close()
