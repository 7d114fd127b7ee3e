"""What is to be edited: columns by entity, and what the manifest says beside them, whatever the format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar

from amnesia.domain import Cell, ModelRef, tidy
from amnesia.errors import InputError
from amnesia.numbers import short
from amnesia.vector import Vector

Part = Literal["all", "cells", "directions"]


@dataclass(frozen=True)
class EntityEdits:
    """The edits that make the model forget one entity: any sequence of them, held as a tuple.

    Raises InputError for an empty name, and for what is no edit.
    """

    entity: str
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entity", tidy(self.entity))
        if not self.entity:
            raise InputError("an edit is for an entity without a name: name what the model should forget")
        object.__setattr__(self, "edits", _checked(self.edits, ColumnEdit | DirectionEdit))


@dataclass(frozen=True)
class EditSpec:
    """An edit of a model as every writer takes it; raises InputError without any, and when an entity comes twice.

    `base` is what the user called the model. With `allow_overlap`, cells may be edited that an earlier edit or another
    entity of this one has.
    """

    groups: tuple[EntityEdits, ...]
    base: ModelRef
    recipe_text: str | None = None
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if not self.groups:
            raise nothing_to_edit()
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
            if owners.get(edit.cell) == group.entity and not allow_overlap:
                raise InputError(f"cell {edit.cell} is listed twice: give each cell once")
            if edit.cell in owners and not allow_overlap:
                raise InputError(
                    f"cell {edit.cell} is edited for both {owners[edit.cell]!r} and {group.entity!r}: the second edit "
                    "would undo or distort the first; drop one, or allow the overlap "
                    "(`amnesia edit --allow-overlap`; in Python: allow_overlap=True)"
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


def merged(groups: Sequence[EntityEdits], *, allow_overlap: bool = False) -> tuple[Edit, ...]:
    """The edits of all groups, in which no cell is scaled twice; raises InputError as `join_cells`."""
    cells = join_cells(groups, allow_overlap=allow_overlap).items()
    directions = join_directions(groups).values()
    return (*(ColumnEdit(*item) for item in cells), *(edit for found in directions for edit in found))


@dataclass(frozen=True, kw_only=True)
class MatrixEdit:
    """What an edit does to one stored matrix: `multipliers` by index, ascending, then `directions` are added.

    Every index that changes has a multiplier; it is 1 where only a direction changes it.
    """

    multipliers: Mapping[int, float]
    directions: tuple[DirectionEdit, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        """All that change, ascending."""
        return tuple(self.multipliers)

    @property
    def scaled(self) -> dict[int, float]:
        """Multipliers of the scaled cells alone."""
        return {index: multiplier for index, multiplier in self.multipliers.items() if multiplier != 1.0}

    @property
    def rank(self) -> int:
        """How many matrices of rank one the edit adds: one for each scaled cell and each direction."""
        return len(self.scaled) + len(self.directions)


Projections = Mapping[tuple[int, int | None], MatrixEdit]
"""Edits of output projections by layer and expert."""


def by_projection(groups: Sequence[EntityEdits], *, allow_overlap: bool = False) -> Projections:
    """The edit of each output projection, which is a layer's or one of its experts', by layer and expert.

    Raises InputError as `join_cells`.
    """
    multipliers: dict[tuple[int, int | None], dict[int, float]] = {}
    directions: dict[tuple[int, int | None], list[DirectionEdit]] = {}
    for edit in merged(groups, allow_overlap=allow_overlap):
        place = edit.layer, edit.expert
        row = multipliers.setdefault(place, {})
        if isinstance(edit, DirectionEdit):
            directions.setdefault(place, []).append(edit)
        for column in edit.columns:
            row.setdefault(column, edit.multiplier if isinstance(edit, ColumnEdit) else 1.0)
    return {
        place: MatrixEdit(
            multipliers=dict(sorted(multipliers[place].items())), directions=tuple(directions.get(place, ()))
        )
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


def edit_at(place: Place, projections: Projections) -> MatrixEdit:
    """What the edits `by_projection` change in the tensor at `place`, by its own indices."""
    whole = projections.get((place.layer, place.expert), MatrixEdit(multipliers={}))
    multipliers, directions = whole.multipliers, whole.directions
    if place.part == "cells":
        multipliers, directions = whole.scaled, ()
    elif place.part == "directions":
        multipliers = dict.fromkeys(sorted({column for edit in directions for column in edit.columns}), 1.0)
    moved = {place.first + index: multiplier for index, multiplier in multipliers.items()}
    return MatrixEdit(multipliers=moved, directions=directions)


@dataclass(frozen=True, order=True)
class ColumnEdit:
    """Multiply the column of the output projection that belongs to `cell` by `multiplier` (1 changes nothing)."""

    cell: Cell
    multiplier: float = -1.0

    def __str__(self) -> str:
        return f"{self.cell}×{short(self.multiplier)}"

    @property
    def layer(self) -> int:
        """The layer of the cell."""
        return self.cell.layer

    @property
    def expert(self) -> int | None:
        """The expert of the cell, if it has one."""
        return self.cell.expert

    @property
    def columns(self) -> tuple[int, ...]:
        """The one column that changes."""
        return (self.cell.neuron,)

    @property
    def read(self) -> Vector:
        """The read-out on the column: the activation of the cell itself."""
        return Vector.of([1.0])


WriteOf = Literal["layer", "stream"]


@dataclass(frozen=True)
class DirectionEdit:
    """Turn what layer `layer` writes about an entity, its atom, by `multiplier` (1 changes nothing, 0 takes it away).

    The output projection W (d_model, d_mlp) becomes W − (1 − multiplier)·v·uᵀ, in which only `columns` change. `read`
    is u on these n columns (uᵀk = 1 at the entity's key k, near 0 at everything else). `write` is v (d_model,): of the
    "layer", W(k − n), what it writes about the entity beyond what it writes about any name; of the "stream", all that
    the residual stream behind it carries of the entity beyond what it carries of any name. `key` is k on the columns,
    and `spread` the root mean square of the activations there over everything that must stay: with them a writer of
    few bits chooses what to round up and what down. `token` counts from the name's last token (0) backwards.
    """

    expert: ClassVar[None] = None  # Experts have no directions.
    layer: int
    token: int
    multiplier: float
    columns: tuple[int, ...]
    read: Vector
    write: Vector
    key: Vector
    spread: Vector
    of: WriteOf = "layer"

    def __str__(self) -> str:
        what = "the stream behind layer" if self.of == "stream" else "layer"
        place = f"{what} {self.layer} at the {token_name(self.token)}"
        return f"{place} × {short(self.multiplier)} on {len(self.columns)} columns"


def token_name(token: int) -> str:
    """A token of a name, counted from its last one backwards."""
    return "last token" if token == 0 else f"token {token} before the last"


Edit = ColumnEdit | DirectionEdit
AnEdit = TypeVar("AnEdit", bound=Edit)
Edits = EntityEdits | Sequence[EntityEdits] | Sequence[Edit]
"""What Python users may give as an edit: that of an entity, those of several, or edits without their entity."""


def edits_in(given: Edits) -> tuple[Edit, ...]:
    """The edits of all entities together; raises InputError for anything else than edits."""
    items: tuple[EntityEdits | Edit, ...] = _checked(given, EntityEdits | ColumnEdit | DirectionEdit)
    return tuple(edit for item in items for edit in (item.edits if isinstance(item, EntityEdits) else (item,)))


def groups_in(given: Edits) -> tuple[EntityEdits, ...]:
    """The edits by entity; edits without one are those of an entity that is named after its cells.

    Raises InputError when there are none, for anything else than edits, and for directions without their entity.
    """
    items: tuple[EntityEdits | Edit, ...] = _checked(given, EntityEdits | ColumnEdit | DirectionEdit)
    if not items:
        raise nothing_to_edit()
    groups = tuple(item for item in items if isinstance(item, EntityEdits))
    loose = tuple(item for item in items if not isinstance(item, EntityEdits))
    return (*groups, named_after_cells(loose)) if loose else groups


def named_after_cells(edits: Sequence[Edit]) -> EntityEdits:
    """Edits of an entity that nobody named; raises InputError for directions, which have no short name."""
    if directions_of(edits):
        raise InputError("a direction is given without its entity: give EntityEdits with the entity's name")
    return EntityEdits("cells " + ", ".join(str(edit.cell) for edit in columns_of(edits)), tuple(edits))


def nothing_to_edit() -> InputError:
    """The error for an edit that is empty."""
    return InputError("nothing to edit: give at least one LAYER:NEURON")


def _checked(given: object, kinds: UnionType) -> tuple[Any, ...]:
    """What is of these kinds, alone or in a sequence; raises InputError for anything else."""
    items = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for item in items:
        if not isinstance(item, kinds):
            raise InputError(
                f"{type(item).__name__} is no edit: give EntityEdits (of an Extraction, its `edits`), or a sequence of "
                "them or of ColumnEdit and DirectionEdit"
            )
    return items


def columns_of(edits: Sequence[Edit]) -> tuple[ColumnEdit, ...]:
    """The scaled columns among edits of either form."""
    return tuple(edit for edit in edits if isinstance(edit, ColumnEdit))


def directions_of(edits: Sequence[Edit]) -> tuple[DirectionEdit, ...]:
    """The directions among edits of either form."""
    return tuple(edit for edit in edits if isinstance(edit, DirectionEdit))


def weakened(edit: AnEdit, strength: float) -> AnEdit:
    """The edit with `strength` times its change: 1 is the edit itself, 0 changes nothing, above 1 goes beyond it."""
    return replace(edit, multiplier=1.0 + strength * (edit.multiplier - 1.0))
