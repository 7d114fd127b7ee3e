"""What becomes of the facts that earlier edits of a model made it forget, when it is edited again.

The manifest of the edited model says what its edits were, and holds the recipes with their facts. With the edits taken
back in memory, the model is the original again, up to the rounding of its weights, so that nothing else is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from amnesia.domain import Cell
from amnesia.edits import (
    ColumnEdit,
    DirectionEdit,
    Edit,
    EntityEdits,
    columns_of,
    directions_of,
    join_cells,
    merged,
)
from amnesia.errors import RecipeError
from amnesia.evaluation.measurement import KnownFact, known_facts, scores_of
from amnesia.evaluation.results import Finding
from amnesia.facts.questions import questions_of
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import LiveModel, edited
from amnesia.numbers import signed
from amnesia.progress import Progress
from amnesia.recipe import Recipe
from amnesia.recipe_file import parse_recipe
from amnesia.vector import Vector
from amnesia.weights.manifest import Manifest

RETURNED = 0.1
"""By how much the mean score of what was forgotten may rise: less is within what wordings differ by."""


@dataclass(frozen=True)
class Earlier:
    """An entity that an earlier edit made a model forget: facts that the original knew, and their mean knowledge score
    in the model as it was found."""

    entity: str
    facts: tuple[KnownFact, ...]
    score: float


def earlier_edits(live: LiveModel, manifest: Manifest | None, progress: Progress | None = None) -> tuple[Earlier, ...]:
    """The entities that the model was edited for, as far as its manifests hold their facts, newest first."""
    if manifest is None:
        return ()
    steps = list(manifest.history())
    back = inverse(in_one([step.edits for step in reversed(steps)]))
    if back is None:
        return ()
    found = []
    for recipe in (recipe for step in steps for recipe in recipes_of(step)):
        questions = [row for row in questions_of(recipe) if row.role == "target"]
        with edited(live, back):
            facts = known_facts(live, questions, recipe.scoring, progress)
        known = tuple(fact for fact in facts if not fact.excluded)
        if known:
            found.append(Earlier(recipe.target.entity, known, _mean(live, known, progress)))
    return tuple(found)


def recipes_of(manifest: Manifest) -> tuple[Recipe, ...]:
    """The recipe of each entity of an edit, as far as the manifest holds them."""
    found = []
    for group in manifest.edits if manifest.recipe is not None else ():
        try:
            found.append(parse_recipe(manifest.recipe or "", group.entity, "the recipe in the manifest"))
        except RecipeError:
            continue  # A published manifest may have other names.
    return tuple(found)


def findings_after(
    live: LiveModel, earlier: Sequence[Earlier], progress: Progress | None = None
) -> tuple[Finding, ...]:
    """How what was forgotten earlier fares in a model that was edited again."""
    found = []
    for row in earlier:
        now = _mean(live, row.facts, progress)
        returned = now > row.score + RETURNED
        how = "comes back" if returned else "stays so"
        found.append(
            Finding(
                "warning" if returned else "info",
                f"{row.entity}, forgotten by an earlier edit, {how}: mean knowledge score "
                f"{signed(row.score)} before this edit, {signed(now)} with it, over {len(row.facts)} facts",
            )
        )
    return tuple(found)


def _mean(live: LiveModel, facts: Sequence[KnownFact], progress: Progress | None) -> float:
    answers = answer_logprobs(live, [fact.pair for fact in facts], progress)
    return fmean(scores_of(facts, (answer.logprob for answer in answers)))


def inverse(edits: Sequence[Edit]) -> tuple[Edit, ...] | None:
    """The edit that takes back what `edits`, of which no cell is scaled twice, made of a model; None where there is
    none, because a cell was multiplied by 0, or belongs to an expert, whose activations nothing can be put on.

    W(1 + D) + B·A becomes W when columns are divided by what they were multiplied by and B·A, of these columns, is
    subtracted.
    """
    cells = {edit.cell: edit.multiplier for edit in columns_of(edits)}
    if any(cell.expert is not None or not multiplier for cell, multiplier in cells.items()):
        return None
    factors = {cell: 1.0 / multiplier for cell, multiplier in cells.items()}
    back = (replace(_scaled(edit, factors), multiplier=2.0 - edit.multiplier) for edit in directions_of(edits))
    return (*(ColumnEdit(cell, factor) for cell, factor in factors.items()), *back)


def in_one(steps: Sequence[Sequence[EntityEdits]]) -> tuple[Edit, ...]:
    """Edits made on top of each other, oldest first, as one edit of the same effect; what cancels out is no part of it.

    Within an edit columns are scaled before directions are added, so a cell that a later one scales also scales what
    earlier directions have added there.
    """
    total: dict[Cell, float] = {}
    directions: list[DirectionEdit] = []
    for groups in steps:
        cells = join_cells(groups, allow_overlap=True)
        for cell, multiplier in cells.items():
            total[cell] = total.get(cell, 1.0) * multiplier
        directions = [_scaled(edit, cells) for edit in directions]
        directions += directions_of(merged(groups, allow_overlap=True))
    columns = (ColumnEdit(cell, multiplier) for cell, multiplier in sorted(total.items()) if multiplier != 1.0)
    return (*columns, *directions)


def _scaled(edit: DirectionEdit, cells: Mapping[Cell, float]) -> DirectionEdit:
    factors = [cells.get(Cell(edit.layer, column), 1.0) for column in edit.columns]
    return replace(edit, read=Vector.of([u * factor for u, factor in zip(edit.read.array, factors, strict=True)]))
