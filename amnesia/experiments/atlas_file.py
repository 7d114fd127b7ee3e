"""The table of an atlas on disk: entities, their best cells, their directions. Needs no model, and loads no torch."""

from __future__ import annotations

import contextlib
import difflib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia.domain import Cell, name_key, tidy
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
_VERSION = 3  # Of the tables.
_AGAIN = "make the atlas again, in another folder"


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

    `path` is the table, or the folder that it was written to. Raises InputError where what stands there is damaged.
    """
    settings, rows = _content(path)
    return settings["model"], rows


def _content(path: Path) -> tuple[dict[str, str], tuple[AtlasRow, ...]]:
    """Name and fingerprint of the model, and the rows."""
    check = StrictJson(f"the table {path}", InputError, _AGAIN)
    with opened(_table(path)) as atlas:
        try:
            return _read(atlas, check)
        except (TypeError, ValueError, KeyError) as error:
            raise check.fail(f"is damaged ({type(error).__name__})") from None


def _read(atlas: sqlite3.Connection, check: StrictJson) -> tuple[dict[str, str], tuple[AtlasRow, ...]]:
    stored = dict(atlas.execute("SELECT key, value FROM settings WHERE key IN ('model', 'weights')"))
    settings = {"model": check.text(json.loads(stored["model"]), "model")}
    if stored.get("weights", "null") != "null":
        settings["weights"] = check.text(json.loads(stored["weights"]), "weights")
    cells: dict[str, list[CellScore]] = {}
    for entity, layer, neuron, *values in atlas.execute(
        "SELECT entity, layer, neuron, score, mean_z, std_z FROM cells ORDER BY entity, rank"
    ):
        cell = Cell(check.integer(layer, "layer"), check.integer(neuron, "neuron"))
        cells.setdefault(entity, []).append(CellScore(cell, *(check.number(value, "score") for value in values)))
    found = {
        name: DirectionPlace(check.integer(layer, "layer"), check.integer(token, "token"), check.number(shift, "shift"))
        for name, layer, token, shift in atlas.execute("SELECT entity, layer, token, shift FROM directions")
    }
    entities = [
        (check.text(name, "entity"), None if views is None else check.integer(views, "popularity"))
        for name, views in atlas.execute("SELECT entity, popularity FROM entities ORDER BY place")
    ]
    rows = [AtlasRow(name, views, tuple(cells[name]), found.get(name)) for name, views in entities if name in cells]
    return settings, tuple(rows)


def edits_of(
    path: Path,
    entity: str,
    model: str,
    n_cells: int | None = None,
    multiplier: float = -1.0,
    weights: str | None = None,
) -> EntityEdits:
    """The edit of an entity by the atlas of a model: its direction, or its best `n_cells` cells.

    Without `n_cells` it is one cell where the atlas has no direction. `weights` is what `AtlasSettings` says
    of the model. Raises InputError for an atlas of another model, for an entity that is not in it or may be several,
    for more cells than it has, and for a direction that is damaged.
    """
    settings, rows = _content(path)
    found = _named(path, rows, entity)
    if settings.get("weights") != weights:
        made_of = settings["model"]
        raise InputError(f"{path} is an atlas of other weights ({made_of}), not of {model}: make one of {model}")
    if n_cells is None and found.direction is not None:
        return EntityEdits(found.entity, (replace(_direction(path, found.entity), multiplier=multiplier),))
    cells = [score.cell for score in found.cells[: n_cells or 1]]
    if len(cells) < (n_cells or 1):
        raise InputError(
            f"{path} has {len(cells)} cells of {entity!r}, wanted are {n_cells}: make it with a higher --top"
        )
    return EntityEdits(found.entity, tuple(ColumnEdit(cell, multiplier) for cell in cells))


def _named(path: Path, rows: Sequence[AtlasRow], entity: str) -> AtlasRow:
    """The row of an entity: as it is written, else the one whose name differs in case or kind of apostrophe only."""
    alike = [row for row in rows if name_key(row.entity) == name_key(entity)]
    found = [row for row in alike if row.entity == tidy(entity)] or alike
    if len(found) > 1:
        names = ", ".join(repr(row.entity) for row in found)
        raise InputError(f"{path} has {names}, and {entity!r} may be each of them: write one as it stands there")
    if not found:
        near = difflib.get_close_matches(entity, [row.entity for row in rows], 1)
        hint = f"did you mean {near[0]!r}?" if near else "add it with `amnesia atlas`"
        raise InputError(f"{path} has {len(rows)} entities, and {entity!r} is none of them: {hint}")
    return found[0]


def _table(path: Path) -> Path:
    """The table itself; raises InputError where there is none."""
    if path.is_dir():
        path = path / TABLE_NAME
    # SQLite would make a table of a file that is missing or empty.
    wrong = "does not exist" if not path.exists() else "is not a file" if not path.is_file() else "is empty"
    if wrong != "is empty" or not path.stat().st_size:
        raise InputError(f"{path} {wrong}: give the atlas that `amnesia atlas` wrote")
    return path


def _direction(path: Path, entity: str) -> DirectionEdit:
    """The direction of an entity that has one."""
    with opened(_table(path)) as atlas:
        (content,) = atlas.execute("SELECT edit FROM directions WHERE entity = ?", (entity,)).fetchone()
    check = StrictJson(f"the direction of {entity!r} in {path}", InputError, _AGAIN)
    edit = read_edit(check, check.parse(content)) if isinstance(content, bytes) else None
    if not isinstance(edit, DirectionEdit):
        raise check.fail("is none")
    return edit
