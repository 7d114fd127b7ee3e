"""SQLite files for work that takes long: what is written is committed at once, and survives the death of a process."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from amnesia.errors import OutputError, os_errors_as
from amnesia.files.disk import check_replaceable, open_regular

# The number in a file's header by which SQLite tells what program a file is of: "amne".
_APPLICATION_ID = 0x616D6E65


@contextlib.contextmanager
def database(
    path: Path, tables: str, purpose: str, version: int = 0, remedy: str = "choose another file"
) -> Generator[sqlite3.Connection]:
    """The database, with its tables; several processes may write it, each waiting for the others.

    `version` is that of the tables. Raises OutputError, which says that it cannot be used as `purpose`, for a file that
    is not a database, is one of another program or version, or cannot be written, be that in the block, with `remedy`.
    """
    with os_errors_as(OutputError, f"{path} cannot be used as {purpose}", remedy):
        for name in (path.name, f"{path.name}-journal"):
            check_replaceable(path.with_name(name))
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=120)
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            owner = connection.execute("PRAGMA application_id").fetchone()[0]
            if owner != _APPLICATION_ID:
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise sqlite3.DatabaseError("it is a database of another program")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version}")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found != version:
                raise sqlite3.DatabaseError(f"its tables are of version {found}, expected {version}")
        connection.executescript(tables)
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise OutputError(f"{path} cannot be used as {purpose} ({error}): {remedy}") from error
    try:
        yield connection
    except sqlite3.Error as error:
        message = f"{path} cannot be used as {purpose} ({error}): free space, or {remedy}"
        raise OutputError(message) from error
    finally:
        connection.close()


def remove_database(path: Path) -> None:
    """Remove a database of this package, with the journal that SQLite left beside it; anything else stays."""
    with contextlib.suppress(OSError):
        check_replaceable(path)
        with open_regular(path, follow=False) as file:
            header = file.read(72)
        # By the format of SQLite's files, the number of the program ends 72 bytes after their start.
        if header.startswith(b"SQLite format 3\0") and header[68:] == _APPLICATION_ID.to_bytes(4, "big"):
            path.unlink()
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
