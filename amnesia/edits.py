"""What is to be edited: columns by entity, and what the manifest says beside them, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import Cell, DirectionEdit, Edit, columns_of, directions_of
from amnesia.errors import InputError


@dataclass(frozen=True)
class EntityEdits:
    """The edits that make the model forget one entity."""

    entity: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class EditSpec:
    """An edit of a model as every writer takes it; raises InputError when an entity comes twice.

    `base_id` and `revision` are the names by which the user called the model. With `allow_overlap`, cells may be edited
    that an earlier edit or another entity of this one has.
    """

    groups: tuple[EntityEdits, ...]
    base_id: str
    revision: str | None = None
    recipe_text: str | None = None
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for index, group in enumerate(self.groups):
            if any(group.entity == other.entity for other in self.groups[:index]):
                raise InputError(f"two edits are for {group.entity!r}: give each entity once, with all of its cells")


def names_of(groups: Sequence[EntityEdits]) -> str:
    """The entities of an edit, in one line."""
    return ", ".join(group.entity for group in groups)


def join_cells(groups: Sequence[EntityEdits], *, allow_overlap: bool = False) -> dict[Cell, float]:
    """Scaled cells of all groups in ascending order, each with its total multiplier.

    Raises InputError naming both entities when they share a cell, unless `allow_overlap`; a shared cell is then
    multiplied by the product of its multipliers, which must not be 1.
    """
    owners: dict[Cell, str] = {}
    total: dict[Cell, float] = {}
    for group in groups:
        for edit in columns_of(group.edits):
            if edit.cell in owners and not allow_overlap:
                raise InputError(
                    f"cell {edit.cell} is edited for both {owners[edit.cell]!r} and {group.entity!r}: the second edit "
                    "would undo or distort the first; drop one, or allow the overlap"
                )
            owners[edit.cell] = group.entity
            total[edit.cell] = total.get(edit.cell, 1.0) * edit.multiplier
    for cell, multiplier in total.items():
        if multiplier == 1.0:
            raise InputError(f"the edits of cell {cell} cancel out (their product is 1): drop them")
    return dict(sorted(total.items()))


def join_directions(groups: Sequence[EntityEdits]) -> dict[int, tuple[DirectionEdit, ...]]:
    """Directions of all groups by layer, in ascending order of layers; within one, changes add up."""
    found: dict[int, list[DirectionEdit]] = {}
    for group in groups:
        for edit in directions_of(group.edits):
            found.setdefault(edit.layer, []).append(edit)
    return {layer: tuple(found[layer]) for layer in sorted(found)}
