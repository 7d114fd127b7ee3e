"""The folder of a queue: what was asked for, what is finished, and who works on what.

    queue.json         what was asked for; who goes on must ask for the same
    entities/001-NAME  what came of an entity; empty until that is whole
    joint              the edited model; empty until that is whole
    measured.sqlite    answers of the original model, which no process asks for twice

Work on one of these folders is claimed by a lock on it, while it is empty. The lock ends with the process, however it
ends, and the finished folder takes the place of the empty one at once: nothing is lost, nothing is done twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia.errors import InputError, OutputError, os_errors_as
from amnesia.files.disk import read_small
from amnesia.files.locks import lock_folder
from amnesia.files.staging import staged_output
from amnesia.files.strict_json import StrictJson, json_bytes, shown

SETTINGS_NAME = "queue.json"
_MAX_SETTINGS = 2**26
_PATIENCE = 30.0  # Seconds in which another process must have made the folder, which takes it less than one.


@dataclass(frozen=True)
class QueueFolder:
    """The folder of a queue of `names`."""

    path: Path
    names: tuple[str, ...]

    def entity(self, place: int) -> Path:
        """The folder of the entity at a place of the list."""
        return self.path / "entities" / _folder_name(place, self.names[place])

    @property
    def joint(self) -> Path:
        """The folder of the model with all edits."""
        return self.path / "joint"

    @property
    def measured(self) -> Path:
        """The file of what the original model has answered."""
        return self.path / "measured.sqlite"

    @property
    def pending(self) -> tuple[int, ...]:
        """Places of the list of which nothing came yet."""
        return tuple(place for place in range(len(self.names)) if not is_finished(self.entity(place)))


def _folder_name(place: int, name: str) -> str:
    words = re.sub(r"[^\w]+", "-", name.lower()).strip("-")
    return f"{place + 1:03d}-{words[:40]}".strip("-")


def begin(path: Path, names: Sequence[str], settings: Mapping[str, Any], source: Path) -> QueueFolder:
    """The queue in the folder `path`, which is made, or goes on if it was asked for with the same settings and names.

    Raises InputError when it was asked for otherwise, OutputError when the folder holds something else, or overlaps the
    model that is read from `source`.
    """
    queue = QueueFolder(path, tuple(names))
    wanted = {"entities": list(names), **settings}
    end = time.monotonic() + _PATIENCE
    while not (path / SETTINGS_NAME).exists():
        try:
            with staged_output(path, source=source) as staging:
                inside = QueueFolder(staging, queue.names)
                for folder in (*map(inside.entity, range(len(names))), inside.joint):
                    folder.mkdir(parents=True)
                (staging / SETTINGS_NAME).write_bytes(json_bytes(wanted))
        except OutputError:
            # Another process may be about to make the same.
            vacant = not path.exists() or (path.is_dir() and not any(path.iterdir()))
            if not (path / SETTINGS_NAME).exists() and (not vacant or time.monotonic() > end):
                raise
            time.sleep(0.1)
    _check_same(path, wanted)
    for folder in (*map(queue.entity, range(len(names))), queue.joint):
        folder.mkdir(exist_ok=True, parents=True)  # One that somebody took away is done again.
    return queue


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    check = StrictJson(str(path / SETTINGS_NAME), InputError, "choose another output")
    with os_errors_as(InputError, f"{path / SETTINGS_NAME} cannot be read", "choose another output"):
        found = check.mapping(check.parse(read_small(path / SETTINGS_NAME, _MAX_SETTINGS)), "the file")
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            raise InputError(
                f"{path} holds a queue that was begun with other {key} ({_in_words(found.get(key), wanted.get(key))}): "
                f"{_REMEDIES.get(key, 'go on with the same command')}, or choose another output"
            )


_REMEDIES = {"files": "put back the files of the model as they were"}


def _in_words(was: Any, now: Any) -> str:
    """How two values of a setting differ; of files and recipes, the first that does."""
    if isinstance(was, dict) and isinstance(now, dict):
        name = next(name for name in sorted({**was, **now}) if was.get(name) != now.get(name))
        what = "is gone" if name not in now else "is new" if name not in was else "is not as it was"
        return f"{name} {what}"
    one, other = (f"{len(value)} of them" if isinstance(value, list | dict) else shown(value) for value in (was, now))
    if one == other:
        return "in another order, or others of the same number"
    return f"{one}; now {other}"


def is_finished(folder: Path) -> bool:
    """Whether all that belongs into a folder of the queue is there. Raises OutputError when the folder is not.

    Hidden files are no part of it: systems put such files into folders that somebody looks at.
    """
    with os_errors_as(OutputError, f"{folder} cannot be read", "choose another output, and begin again"):
        return any(not path.name.startswith(".") for path in folder.iterdir())


@contextlib.contextmanager
def claimed(folder: Path) -> Generator[bool]:
    """Whether the work on an unfinished folder is this process's own while the block runs."""
    lock = None
    with os_errors_as(OutputError, f"{folder} cannot be read", "choose another output, and begin again"):
        with contextlib.suppress(BlockingIOError):
            lock = lock_folder(folder)
    try:
        # It may have been finished by another process before the lock was there to be had.
        own = lock is not None and not is_finished(folder)
        if own and (hidden := sorted(path.name for path in folder.iterdir())):
            # What is written takes the place of an empty folder only: better to say so before the work than after it.
            raise OutputError(f"{folder} holds the hidden file {hidden[0]!r}: remove it, then give the same command")
        yield own
    finally:
        if lock is not None:
            os.close(lock)
