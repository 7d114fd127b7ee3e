"""Measurements in a file, so that an evaluation that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from amnesia.domain import Loading
from amnesia.errors import AmnesiaError
from amnesia.files.sqlite import database, remove_database
from amnesia.weights.manifest import version_of

_TABLES = """
CREATE TABLE IF NOT EXISTS measured (
    model TEXT NOT NULL, kind TEXT NOT NULL, item TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (model, kind, item)
);
"""
_MOST_ASKED = 500  # Below the 999 variables of a statement that older builds of SQLite take.


@dataclass(frozen=True)
class MeasurementCache:
    """What one model has answered, in the file `path`; `model` tells its answers from those of all others."""

    path: Path
    model: str

    def known(self, kind: str, items: Iterable[str] | None = None) -> dict[str, Any]:
        """The values that are there, by item; of `items` alone where they are given."""
        question = "SELECT item, value FROM measured WHERE model = ? AND kind = ?"
        wanted = None if items is None else list(dict.fromkeys(items))
        found = {}
        with self._open() as file:
            for part in [None] if wanted is None else _parts(wanted):
                more = "" if part is None else f" AND item IN ({', '.join('?' * len(part))})"
                rows = file.execute(question + more, (self.model, kind, *(part or ())))
                found.update({item: json.loads(value) for item, value in rows})
        return found

    def add(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add values, all or none of them."""
        rows = [(self.model, kind, item, json.dumps(value, allow_nan=False)) for item, value in values.items()]
        with self._open() as file, file:
            file.executemany("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)", rows)

    def _open(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return database(self.path, _TABLES, "a file of measurements", remedy="remove it: all in it can be asked again")


def _parts(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """The items in parts that SQLite takes in one question."""
    return (items[start : start + _MOST_ASKED] for start in range(0, len(items), _MOST_ASKED))


T = TypeVar("T")


def once(cache: MeasurementCache | None, kind: str, key: tuple[Any, ...], find: Callable[[], T]) -> T:
    """What `find` gives, a value for JSON: from `cache` where it is there by `key`, and else put there."""
    if cache is None:
        return find()
    item = item_of(key)
    known = cache.known(kind, [item])
    if item not in known:
        known[item] = find()
        cache.add(kind, {item: known[item]})
    return known[item]


def item_of(key: tuple[Any, ...]) -> str:
    """The item under which `once` keeps what belongs to a key of values that are shown alike when they are equal."""
    return hashlib.sha256(repr(key).encode()).hexdigest()


@contextlib.contextmanager
def for_now() -> Generator[Path]:
    """A file for measurements that lasts as long as the block, in which nothing is asked twice."""
    with tempfile.TemporaryDirectory(prefix="amnesia-") as folder:
        yield Path(folder) / "measured"


@contextlib.contextmanager
def beside(output: Path) -> Generator[Path]:
    """A hidden file beside `output` for measurements, removed when the block ends.

    It stays where the block was broken off by something that may not happen again: an interrupt, a full disk. What
    this package itself refuses it would refuse again.
    """
    output = output.resolve()
    path = output.with_name(f".{output.name}.amnesia-measured")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    except KeyboardInterrupt as error:
        if path.exists():
            error.add_note(f"what was measured is in {path}: the same command goes on")
        raise
    except AmnesiaError as error:
        if not isinstance(error, OSError):
            remove_database(path)
        raise
    remove_database(path)


def fingerprint(folders: Sequence[Path], loading: Loading) -> str:
    """Tells the measurements of one model from those of all others, also of the same folder before it was changed.

    Of the model's files it looks at names, sizes and times of change, because hashing the weights takes as long as
    asking a small model.
    """
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for folder in folders for path in _files(folder)]
    versions = [version_of(name) for name in ("amnesia", "torch", "transformers")]
    whole = json.dumps([[str(folder.resolve()) for folder in folders], stats, loading.dtype, loading.device, versions])
    return hashlib.sha256(whole.encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
