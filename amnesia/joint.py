"""Choose one edit for several entities at once, so that what forgets one neither undoes nor adds to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from amnesia.domain import Cell, ColumnEdit, Extraction, Fact, JointExtraction
from amnesia.encoding import mention_span
from amnesia.errors import InputError
from amnesia.extraction import SEARCH_KINDS, Known, Task, choose, localized, pose, select_known, silent, verdict
from amnesia.measurement import measure, measure_unknown
from amnesia.model import LiveModel, edited
from amnesia.questions import questions_of
from amnesia.recipe import Recipe
from amnesia.search import pursue


def extract_jointly(
    live: LiveModel,
    recipes: Sequence[Recipe],
    task: Task = silent,
    alone: Sequence[Extraction] | None = None,
) -> JointExtraction:
    """The edit that forgets the entities of all recipes, a part of it for each; scores are those of the whole edit.

    It starts from the edits that are found for each entity `alone`, all together, and goes on from there in one pursuit
    whose targets are the facts of all entities, with as many cells as the recipes allow together. A cell belongs to the
    entity that it stands for most. Controls about one of the entities are left out, and so are search controls about
    someone whom another recipe holds out.

    Raises InputError when the recipes cannot be joined: an entity comes twice, cells are fixed, a method other than
    pursuit is asked for, layers and limits differ, or no search controls are left; and as `extract` does.
    """
    recipes = joinable(recipes)
    asked = [[row for row in questions_of(recipe) if row.kind in SEARCH_KINDS] for recipe in recipes]
    everything = [row for rows in asked for row in rows]
    with task("asking about the facts") as progress:
        # What several recipes ask is asked once.
        unknown = iter(measure_unknown(live, everything, progress))
        before = iter(measure(live, everything, generated=False, progress=progress).answers)
    targets, controls, maps = [], [], []
    for recipe, rows in zip(recipes, asked, strict=True):
        n = len(rows)
        target, control = select_known(rows, [*islice(before, n)], [*islice(unknown, n)], recipe.scoring)
        targets.append(target)
        controls.append(control)
        with task(f"localizing {recipe.entity}") as progress:
            maps.append(localized(live, recipe, progress))
    everyone = _union(controls)
    with task("recording what should stay") as progress:
        problem = pose(live, recipes, maps[0].layers, targets, everyone, progress)
    answering = torch.stack([found.mean_z.abs().flatten() for found in maps])  # (n_entities, n_cells)
    if alone is None:
        alone = [choose(live, *parts, task) for parts in zip(recipes, targets, controls, strict=True)]
    with task("choosing cells") as progress:
        edits = pursue(
            problem,
            answering.amax(0),
            max_cells=sum(recipe.max_cells for recipe in recipes),
            lowest=recipes[0].min_multiplier,
            start=united([row.edits for row in alone]),
            progress=progress,
        )
    d_mlp = live.shape.d_mlp
    owners = answering.argmax(0)
    parts: list[list[ColumnEdit]] = [[] for _ in recipes]
    for edit in edits:
        place = maps[0].layers.index(edit.cell.layer) * d_mlp + edit.cell.neuron
        parts[int(owners[place])].append(edit)
    with task("asking again") as progress, edited(live, edits):
        kept = everyone.mean_score(live)
        found = []
        for recipe, part, target in zip(recipes, parts, targets, strict=True):
            left = target.mean_score(live)
            judged = verdict(left, kept, recipe.accept)
            found.append(Extraction(recipe.entity, judged, tuple(part), left, kept, answering.shape[1]))
            progress(len(target.facts))
    return JointExtraction(tuple(alone), tuple(found))


def united(edits: Sequence[Sequence[ColumnEdit]]) -> list[ColumnEdit]:
    """All edits together; a cell of several takes the lowest multiplier."""
    found: dict[Cell, float] = {}
    for edit in (edit for part in edits for edit in part):
        found[edit.cell] = min(edit.multiplier, found.get(edit.cell, 1.0))
    return [ColumnEdit(cell, multiplier) for cell, multiplier in sorted(found.items())]


def joinable(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes as one search takes them: with search controls about no one whom any of them forgets or holds out.

    All of them hold out what one does, so that the search keeps away from the names. Raises InputError when their
    entities cannot be forgotten in one search.
    """
    first = recipes[0]
    for index, recipe in enumerate(recipes):
        if any(recipe.entity == other.entity for other in recipes[:index]):
            raise InputError(f"two recipes are for {recipe.entity!r}: give each entity once")
        if recipe.cells or recipe.method != "pursuit":
            fixed = "fixes its cells" if recipe.cells else f"asks for the method {recipe.method!r}"
            raise InputError(
                f"the recipe of {recipe.entity!r} {fixed}: several entities are searched together by pursuit alone, so "
                'drop [[cells]] and `method`, and set edit.multiplier = "auto"'
            )
        for key, own, other in (
            ("model.id", recipe.model, first.model),
            ("model.revision", recipe.revision, first.revision),
            ("localize.layers", recipe.layers, first.layers),
            ("edit.min_multiplier", recipe.min_multiplier, first.min_multiplier),
        ):
            if own != other:
                raise InputError(
                    f"{key} is {own} for {recipe.entity!r} and {other} for {first.entity!r}: make them the same to "
                    "search for both together"
                )
    names = [name for recipe in recipes for name in (recipe.entity, *recipe.aliases)]
    held_out = dict.fromkeys(fact for recipe in recipes for fact in recipe.controls if fact.split == "held_out")
    reserved = {fact.entity for fact in held_out}

    def may_stay(fact: Fact) -> bool:
        return fact.split == "search" and fact.entity not in reserved and not is_about(fact, names)

    found = []
    for recipe in recipes:
        staying = [fact for fact in recipe.controls if may_stay(fact)]
        if not staying:
            raise InputError(
                f"{recipe.entity!r} has no search control about someone whom no recipe here forgets or holds out: add "
                "one, or search for it alone"
            )
        found.append(replace(recipe, controls=(*staying, *held_out)))
    return found


def is_about(fact: Fact, names: Sequence[str]) -> bool:
    """Whether a fact or its answer mentions one of the names."""
    return any(mention_span(text, names) for text in (fact.text(), fact.answer))


def _union(groups: Sequence[Known]) -> Known:
    """Facts of all groups, each once."""
    found = {
        fact: (before, unknown)
        for group in groups
        for fact, before, unknown in zip(group.facts, group.before, group.unknown, strict=True)
    }
    return Known(tuple(found), *(tuple(column) for column in zip(*found.values(), strict=True)))
