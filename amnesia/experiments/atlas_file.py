"""The table of an atlas on disk: entities, their best cells, their directions. Needs no model, and loads no torch."""

from __future__ import annotations

import contextlib
import difflib
import json
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia.domain import Cell, ModelRef, name_key
from amnesia.edits import ColumnEdit, DirectionEdit, EntityEdits
from amnesia.errors import InputError
from amnesia.files.sqlite import database
from amnesia.files.strict_json import StrictJson
from amnesia.localization.results import CellScore
from amnesia.weights.edit_rows import edit_json, read_edit

TABLE_NAME = "atlas.sqlite"
"""The table in the folder that `amnesia atlas` writes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entities (entity TEXT PRIMARY KEY, place INTEGER NOT NULL, popularity INTEGER);
CREATE TABLE IF NOT EXISTS cells (
    entity TEXT NOT NULL REFERENCES entities, rank INTEGER NOT NULL, layer INTEGER NOT NULL, neuron INTEGER NOT NULL,
    score REAL NOT NULL, mean_z REAL NOT NULL, std_z REAL NOT NULL, PRIMARY KEY (entity, rank)
);
CREATE TABLE IF NOT EXISTS directions (
    entity TEXT PRIMARY KEY REFERENCES entities, layer INTEGER NOT NULL, token INTEGER NOT NULL, shift REAL NOT NULL,
    edit BLOB NOT NULL
);
"""
_VERSION = 2  # Of the tables.


@dataclass(frozen=True)
class DirectionPlace:
    """Where an entity's direction is: its layer, and the token of the name, counted from the last one (0) backwards.

    `shift` is how far the residual stream moves at the name when what the layer writes there is taken away (norm, in
    the stream's own units).
    """

    layer: int
    token: int
    shift: float


@dataclass(frozen=True)
class AtlasRow:
    """One entity: its popularity (page views a month) where it is known, its cells, best first, and its direction."""

    entity: str
    popularity: int | None
    cells: tuple[CellScore, ...]
    direction: DirectionPlace | None = None


def opened(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    """The atlas in a file, which several processes may write. Raises OutputError; see `sqlite.database`."""
    return database(path, _TABLES, "an atlas", _VERSION)


def store_direction(atlas: sqlite3.Connection, entity: str, edit: DirectionEdit, shift: float) -> None:
    """Keep an entity's direction, as the edit that turns it, in place of any that is there."""
    content = json.dumps(edit_json(edit)).encode()
    atlas.execute(
        "INSERT OR REPLACE INTO directions VALUES (?, ?, ?, ?, ?)", (entity, edit.layer, edit.token, shift, content)
    )


def read(path: Path) -> tuple[str, tuple[AtlasRow, ...]]:
    """The model's name and the entities that have cells, in the order in which they were given.

    `path` is the table, or the folder that it was written to.
    """
    with opened(_table(path)) as atlas:
        settings = dict(atlas.execute("SELECT key, value FROM settings"))
        cells: dict[str, list[CellScore]] = {}
        for entity, layer, neuron, *values in atlas.execute(
            "SELECT entity, layer, neuron, score, mean_z, std_z FROM cells ORDER BY entity, rank"
        ):
            cells.setdefault(entity, []).append(CellScore(Cell(layer, neuron), *values))
        found = {
            name: DirectionPlace(*place)
            for name, *place in atlas.execute("SELECT entity, layer, token, shift FROM directions")
        }
        entities = atlas.execute("SELECT entity, popularity FROM entities ORDER BY place").fetchall()
    rows = tuple(
        AtlasRow(name, popularity, tuple(cells[name]), found.get(name))
        for name, popularity in entities
        if name in cells
    )
    return json.loads(settings.get("model", '""')), rows


def edits_of(path: Path, entity: str, model: str, n_cells: int | None = None, multiplier: float = -1.0) -> EntityEdits:
    """The edit of an entity by the atlas of a model: its direction, or its best `n_cells` cells.

    Without `n_cells` it is one cell where the atlas has no direction. Raises InputError for an atlas of another model,
    for an entity that is not in it, for more cells than it has, and for a direction that is damaged.
    """
    made_of, rows = read(path)
    by_name = {name_key(row.entity): row for row in rows}
    found = by_name.get(name_key(entity))
    if found is None:
        near = difflib.get_close_matches(entity, [row.entity for row in rows], 1)
        hint = f"did you mean {near[0]!r}?" if near else "add it with `amnesia atlas`"
        raise InputError(f"{path} has {len(rows)} entities, and {entity!r} is none of them: {hint}")
    one, two = ModelRef.parse(made_of), ModelRef.parse(model)
    if Path(one.name).absolute().resolve() != Path(two.name).absolute().resolve() or (
        one.revision and two.revision and one.revision != two.revision
    ):
        raise InputError(
            f"{path} is an atlas of {made_of}, not of {model}: give that model, or make an atlas of {model}"
        )
    if n_cells is None and found.direction is not None:
        return EntityEdits(entity, (replace(_direction(path, found.entity), multiplier=multiplier),))
    cells = [score.cell for score in found.cells[: n_cells or 1]]
    if len(cells) < (n_cells or 1):
        raise InputError(
            f"{path} has {len(cells)} cells of {entity!r}, wanted are {n_cells}: make it with a higher --top"
        )
    return EntityEdits(entity, tuple(ColumnEdit(cell, multiplier) for cell in cells))


def _table(path: Path) -> Path:
    """The table itself; raises InputError where there is none."""
    if path.is_dir():
        path = path / TABLE_NAME
    if not path.is_file() or not path.stat().st_size:  # SQLite would make a table of an empty file.
        raise InputError(f"{path} is no table: give the atlas that `amnesia atlas` wrote")
    return path


def _direction(path: Path, entity: str) -> DirectionEdit:
    """The direction of an entity that has one."""
    with opened(_table(path)) as atlas:
        (content,) = atlas.execute("SELECT edit FROM directions WHERE entity = ?", (entity,)).fetchone()
    check = StrictJson(f"the direction of {entity!r} in {path}", InputError, "make the atlas again, in another folder")
    edit = read_edit(check, check.parse(content)) if isinstance(content, bytes) else None
    if not isinstance(edit, DirectionEdit):
        raise check.fail("is none")
    return edit
