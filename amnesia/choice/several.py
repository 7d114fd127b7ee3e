"""Choose one edit for several entities: each alone, then all joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from amnesia.choice.extraction import Task, asked, choose, verdict
from amnesia.choice.forms import Forms
from amnesia.choice.joint import Part, combined, join
from amnesia.choice.known import Scores, reserved_names
from amnesia.choice.neighbors import facts_about, neighbor_results
from amnesia.choice.results import Extraction, FormResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.domain import name_key
from amnesia.edits import Edit
from amnesia.errors import InputError
from amnesia.live.model import LiveModel
from amnesia.progress import SILENT
from amnesia.recipe import Recipe


def extract_all(
    live: LiveModel,
    recipes: Sequence[Recipe],
    task: Task = SILENT.task,
    cache: Path | None = None,
    avoided: Sequence[str] = (),
) -> tuple[Extraction, ...]:
    """One edit for each recipe, all of them joined as `joint.join` does. Scores are those of the whole edit.

    No choice sees anybody whom any of the recipes holds out; `avoided` as in `choose`. Raises InputError when two
    recipes are about one entity.
    """
    named: set[str] = set()
    for name in (recipe.target.entity for recipe in recipes):
        if name_key(name) in named:
            raise InputError(f"two recipes are about {name!r}: give each entity once")
        named.add(name_key(name))
    parts, alone = [], []
    for recipe in (sparing(recipe, recipes) for recipe in recipes):
        known = asked(live, recipe, task)
        others = (*taken_beside(recipe, recipes), *avoided)
        found = choose(live, recipe, *known, task, cache, others)
        with task("asking about neighbors") as progress:
            near = facts_about(live, recipe, others, progress)
        parts.append(Part(recipe, found.edits, *known, near))
        alone.append(found)
    with_edits = [part for part in parts if part.edits.edits]
    joined = {group.entity: group for group in join(live, with_edits, task, cache).groups} if with_edits else {}
    together, scores = combined(edit for group in joined.values() for edit in group.edits), Scores(live)
    return tuple(
        replace(_judged(scores, part, found, together), edits=joined.get(found.edits.entity, found.edits))
        for part, found in zip(parts, alone, strict=True)
    )


def sparing(recipe: Recipe, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe without search controls about anybody whom another recipe holds out or makes forget."""
    taken = {name_key(name) for name in taken_beside(recipe, recipes)}
    controls = tuple(fact for fact in recipe.controls if fact.split == "held_out" or name_key(fact.entity) not in taken)
    if not any(fact.split == "search" for fact in controls):
        raise InputError(
            f"the recipe for {recipe.target.entity!r} has no search controls that the other recipes do not hold out: "
            "add facts about further entities"
        )
    return replace(recipe, controls=controls)


def taken_beside(recipe: Recipe, recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """Names that the other recipes make forget, aliases too, and those that any of the recipes holds out."""
    named = [name for other in recipes if other.target.entity != recipe.target.entity for name in other.target.names]
    return tuple(sorted({*named, *(name for other in recipes for name in reserved_names(other))}))


def _judged(scores: Scores, part: Part, found: Extraction, edits: tuple[Edit, ...]) -> Extraction:
    """What was found for one entity, with what the edits of all do to it, its forms and its neighbors."""
    target, control = (scores.mean(facts, edits) for facts in (part.targets, part.controls))
    forms: tuple[FormResult, ...] = ()
    if found.forms:
        known = Forms.of(scores, part.recipe, part.targets, part.controls, part.apart, ChoiceSettings())
        after = {(row.name, row.kind): row.after for row in known.results((), edits)}
        forms = tuple(replace(row, after=after[row.name, row.kind]) for row in found.forms)
    return replace(
        found,
        verdict=verdict(target, control, part.recipe.accept) if found.edits.edits else "none",
        target=target,
        control=control,
        forms=forms,
        neighbors=neighbor_results(scores, part.neighbors, edits),
    )
