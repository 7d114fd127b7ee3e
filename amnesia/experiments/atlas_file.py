"""The table of an atlas on disk: entities, their best cells and scores. Needs no model, and loads no torch."""

from __future__ import annotations

import contextlib
import difflib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from amnesia.domain import Cell, ModelRef, name_key
from amnesia.errors import InputError
from amnesia.files.sqlite import database
from amnesia.localization.results import CellScore

TABLE_NAME = "atlas.sqlite"
"""The table in the folder that `amnesia atlas` writes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entities (entity TEXT PRIMARY KEY, place INTEGER NOT NULL, popularity INTEGER);
CREATE TABLE IF NOT EXISTS cells (
    entity TEXT NOT NULL REFERENCES entities, rank INTEGER NOT NULL, layer INTEGER NOT NULL, neuron INTEGER NOT NULL,
    score REAL NOT NULL, mean_z REAL NOT NULL, std_z REAL NOT NULL, PRIMARY KEY (entity, rank)
);
"""


@dataclass(frozen=True)
class AtlasRow:
    """One entity: its popularity (page views a month) where it is known, and its cells, best first."""

    entity: str
    popularity: int | None
    cells: tuple[CellScore, ...]


def opened(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    """The atlas in a file, which several processes may write. Raises OutputError; see `sqlite.database`."""
    return database(path, _TABLES, "an atlas")


def read(path: Path) -> tuple[str, tuple[AtlasRow, ...]]:
    """The model's name and the entities that have cells, in the order in which they were given.

    `path` is the table, or the folder that it was written to.
    """
    if path.is_dir():
        path = path / TABLE_NAME
    if not path.is_file() or not path.stat().st_size:  # SQLite would make a table of an empty file.
        raise InputError(f"{path} is no table: give the atlas that `amnesia atlas` wrote")
    with opened(path) as atlas:
        settings = dict(atlas.execute("SELECT key, value FROM settings"))
        cells: dict[str, list[CellScore]] = {}
        for entity, layer, neuron, *values in atlas.execute(
            "SELECT entity, layer, neuron, score, mean_z, std_z FROM cells ORDER BY entity, rank"
        ):
            cells.setdefault(entity, []).append(CellScore(Cell(layer, neuron), *values))
        entities = atlas.execute("SELECT entity, popularity FROM entities ORDER BY place").fetchall()
    rows = tuple(AtlasRow(name, popularity, tuple(cells[name])) for name, popularity in entities if name in cells)
    return json.loads(settings.get("model", '""')), rows


def cells_of(path: Path, entity: str, model: str, n: int = 1) -> tuple[Cell, ...]:
    """The best `n` cells of an entity by the atlas of a model.

    Raises InputError for an atlas of another model, for an entity that is not in it, and for more cells than it has.
    """
    made_of, rows = read(path)
    by_name = {name_key(row.entity): row for row in rows}
    found = by_name.get(name_key(entity))
    if found is None:
        near = difflib.get_close_matches(entity, [row.entity for row in rows], 1)
        hint = f"did you mean {near[0]!r}?" if near else "add it with `amnesia atlas`"
        raise InputError(f"{path} has {len(rows)} entities, and {entity!r} is none of them: {hint}")
    cells = tuple(score.cell for score in found.cells[:n])
    if len(cells) < n:
        raise InputError(f"{path} has {len(cells)} cells of {entity!r}, wanted are {n}: make it with a higher --top")
    one, two = ModelRef.parse(made_of), ModelRef.parse(model)
    if Path(one.name).absolute().resolve() != Path(two.name).absolute().resolve() or (
        one.revision and two.revision and one.revision != two.revision
    ):
        raise InputError(
            f"{path} is an atlas of {made_of}, not of {model}: give that model, or, if the two are the same, "
            f"{' '.join(f'--cell {cell}' for cell in cells)}"
        )
    return cells
