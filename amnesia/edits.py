"""What is to be edited: columns by entity, and what the manifest says beside them, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from amnesia.domain import Cell, DirectionEdit, Edit, ModelRef, columns_of, directions_of
from amnesia.errors import InputError

Part = Literal["all", "cells", "directions"]


@dataclass(frozen=True)
class EntityEdits:
    """The edits that make the model forget one entity."""

    entity: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class EditSpec:
    """An edit of a model as every writer takes it; raises InputError when an entity comes twice.

    `base` is what the user called the model. With `allow_overlap`, cells may be edited that an earlier edit or another
    entity of this one has.
    """

    groups: tuple[EntityEdits, ...]
    base: ModelRef
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


def by_projection(
    groups: Sequence[EntityEdits], *, allow_overlap: bool = False
) -> dict[tuple[int, int | None], tuple[dict[int, float], tuple[DirectionEdit, ...]]]:
    """For each edited output projection, which is a layer's or one of its experts', multipliers and directions.

    Multipliers are those of all neurons whose column changes, ascending; 1 where only a direction changes it. Raises
    InputError as `join_cells`.
    """
    multipliers: dict[tuple[int, int | None], dict[int, float]] = {}
    for cell, multiplier in join_cells(groups, allow_overlap=allow_overlap).items():
        multipliers.setdefault((cell.layer, cell.expert), {})[cell.neuron] = multiplier
    directions = join_directions(groups)
    for layer, found in directions.items():
        row = multipliers.setdefault((layer, None), {})
        for edit in found:
            for column in edit.columns:
                row.setdefault(column, 1.0)
    return {
        place: (dict(sorted(multipliers[place].items())), () if place[1] is not None else directions.get(place[0], ()))
        for place in sorted(multipliers, key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    }


@dataclass(frozen=True)
class Place:
    """Which part of an edit a tensor holds: that of a layer, or of one of its experts.

    A GGUF scales rows of one tensor for the cells of a layer and changes columns of another for its directions;
    elsewhere a tensor holds "all". `first` is the index in the tensor that neuron 0 has.
    """

    layer: int
    expert: int | None = None
    part: Part = "all"
    first: int = 0


class Joined:
    """An edit of several entities, to be asked what it changes where. Raises InputError when cells cancel out."""

    def __init__(self, groups: Sequence[EntityEdits]) -> None:
        self._cells = join_cells(groups, allow_overlap=True)
        self._directions = join_directions(groups)
        self._projections = by_projection(groups, allow_overlap=True)

    def at(self, place: Place) -> tuple[dict[int, float], tuple[DirectionEdit, ...]]:
        """Multipliers by index, ascending, of all that changes in the tensor at `place`, and what is then added."""
        directions = self._directions.get(place.layer, ())
        if place.part == "all":
            multipliers, directions = self._projections.get((place.layer, place.expert), ({}, ()))
        elif place.part == "cells":
            multipliers = {cell.neuron: m for cell, m in self._cells.items() if cell.layer == place.layer}
            directions = ()
        else:
            multipliers = dict.fromkeys(sorted({column for edit in directions for column in edit.columns}), 1.0)
        return {place.first + index: multiplier for index, multiplier in multipliers.items()}, directions
