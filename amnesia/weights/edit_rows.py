"""Edits as rows of JSON: what manifests, reports and edit files say of a scaled column or a direction."""

from __future__ import annotations

from typing import Any, cast, get_args

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, DirectionEdit, Edit, WriteOf
from amnesia.files.strict_json import StrictJson
from amnesia.vector import Vector

_VECTORS = ("read", "write", "key", "spread")


def edit_json(edit: Edit) -> dict[str, Any]:
    """A scaled column or a direction as plain JSON values; vectors are float32 numbers in Base64."""
    if isinstance(edit, ColumnEdit):
        cell = edit.cell
        expert = {} if cell.expert is None else {"expert": cell.expert}
        return {"layer": cell.layer, **expert, "neuron": cell.neuron, "multiplier": float(edit.multiplier)}
    return {
        "layer": edit.layer,
        "token": edit.token,
        "multiplier": float(edit.multiplier),
        "columns": list(edit.columns),
        **({} if edit.of == "layer" else {"of": edit.of}),
        **{name: getattr(edit, name).text for name in _VECTORS},
    }


def read_edit(check: StrictJson, value: object) -> Edit:
    """The edit in a row of a manifest or an edit file, as `edit_json` writes it; one with `columns` is a direction."""
    row = check.mapping(value, "edits")
    if "columns" not in row:
        check.object(row, "edits", "layer neuron multiplier", optional="expert")
        expert = check.integer(row["expert"], "edits.expert") if "expert" in row else None
        cell = Cell(check.integer(row["layer"], "edits.layer"), check.integer(row["neuron"], "edits.neuron"), expert)
        return ColumnEdit(cell, check.number(row["multiplier"], "edits.multiplier"))
    check.object(row, "edits", " ".join(("layer token multiplier columns", *_VECTORS)), optional="of")
    of = check.text(row.get("of", "layer"), "edits.of")
    if of not in get_args(WriteOf):
        raise check.fail(f"has a direction of {of!r}, expected {' or '.join(get_args(WriteOf))}")
    vectors: dict[str, Vector] = {}
    for name in _VECTORS:
        try:
            vectors[name] = Vector.from_text(check.text(row[name], f"edits.{name}"))
        except ValueError as error:
            raise check.fail(f"has an edit whose `{name}` {error}") from None
    columns = tuple(check.integer(item, "edits.columns") for item in check.list(row["columns"], "edits.columns"))
    if not columns or list(columns) != sorted(set(columns)):
        raise check.fail(f"has a direction with {len(columns)} columns, expected ascending numbers, at least one")
    for name in ("read", "key", "spread"):
        if vectors[name].size != len(columns):
            raise check.fail(f"has a direction of {len(columns)} columns with {vectors[name].size} numbers as `{name}`")
    if not all(vector.is_finite for vector in vectors.values()):
        raise check.fail("has a direction that holds NaN or infinity")
    return DirectionEdit(
        layer=check.integer(row["layer"], "edits.layer"),
        token=check.integer(row["token"], "edits.token"),
        multiplier=check.number(row["multiplier"], "edits.multiplier"),
        columns=columns,
        of=cast(WriteOf, of),
        **vectors,
    )
