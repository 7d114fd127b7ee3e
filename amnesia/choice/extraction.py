"""Choose the edit for one entity and say how good a handle on it that is.

The held-out facts of a recipe are never read here, but for the names of their entities, which the choice avoids.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from amnesia.choice.atoms import Name
from amnesia.choice.direction import DirectionChoice, Watch
from amnesia.choice.forms import Forms, compared, first_in_lines, forms_of, is_other_first
from amnesia.choice.front import front_of, widen
from amnesia.choice.joint import Part, combined, join
from amnesia.choice.known import KnownFacts, Scores, mean_score, reserved_names, select_known
from amnesia.choice.neighbors import (
    begins_alike,
    facts_about,
    near_response,
    neighbor_results,
    neighbors_of,
    told_apart,
)
from amnesia.choice.results import Extraction, Verdict
from amnesia.choice.settings import ChoiceSettings
from amnesia.choice.shown import answers_of, screening_of
from amnesia.directions.moments import early_layers, moments_of
from amnesia.domain import n_columns, name_key
from amnesia.edits import ColumnEdit, Edit, EntityEdits
from amnesia.errors import InputError
from amnesia.evaluation.measurement import in_both_forms, known_facts
from amnesia.facts.names import share_words
from amnesia.facts.questions import questions_of
from amnesia.live.model import LiveModel
from amnesia.localization.cells import SETTINGS, CellMap, cell_maps, layer_range
from amnesia.progress import SILENT, Progress
from amnesia.recipe import Accept, Recipe

SINGLE_MULTIPLIERS = (-1.0, -2.0, -4.0, -8.0)
"""What method "single" multiplies a cell by; powers of two are exact in every type."""

WEAK_TARGET = 0.6
"""Mean knowledge score of the search facts up to which an edit that misses the recipe's bounds still counts as weak."""

Task = Callable[[str], contextlib.AbstractContextManager[Progress]]


def extract(
    live: LiveModel,
    recipe: Recipe,
    task: Task = SILENT.task,
    cache: Path | None = None,
    avoided: Sequence[str] = (),
) -> Extraction:
    """Choose the edit that makes the model forget the recipe's entity.

    `cache` is the folder in which the moments of models are kept, `avoided` as in `choose`. Raises InputError when the
    model knows none of the search facts, or none of the search controls.
    """
    return choose(live, recipe, *_asked(live, recipe, task), task, cache, avoided)


def _asked(live: LiveModel, recipe: Recipe, task: Task) -> tuple[KnownFacts, KnownFacts]:
    """Search facts and search controls that the model knows; nothing is asked of those that are held out."""
    search = [question for question in questions_of(recipe) if question.split == "search"]
    with task("asking about the facts") as progress:
        return select_known(known_facts(live, in_both_forms(live, search), recipe.scoring, progress, unlikely=True))


def choose(
    live: LiveModel,
    recipe: Recipe,
    targets: KnownFacts,
    controls: KnownFacts,
    task: Task = SILENT.task,
    cache: Path | None = None,
    avoided: Sequence[str] = (),
    *,
    watch: Watch | None = None,
    wide: bool = False,
) -> Extraction:
    """The edit for known search facts; names that are `avoided` count as never seen, beside those that are held out.

    `watch` is told of each candidate that is judged; with `wide`, more of them are once the choice is made, for a front
    of more edits.

    Fixed `[[cells]]` are only verified. Method "auto" turns a direction, on as few columns as keep within the bounds;
    "single" is the source's form, one cell whose column is negated.
    """
    scores = Scores(live)
    if recipe.edit.cells:
        found = _unjudged(recipe, recipe.edit.cells, 1)
        with task("asking with the cells changed") as progress:
            for facts in (targets, controls):
                scores.ask(facts, [recipe.edit.cells], progress)
    elif recipe.edit.method == "single":
        found = _single(scores, recipe, targets, controls, task)
    else:
        found = _direction(scores, recipe, targets, controls, task, cache, avoided, watch, wide)
    edits = found.edits.edits
    target, control = (scores.mean(facts, edits) for facts in (targets, controls))
    # The chosen edit by the same facts as the others, all of which were asked just now.
    same = scores.mean(compared(live, recipe, targets), edits) if found.front else target
    return replace(
        found,
        verdict=verdict(target, control, recipe.accept) if edits else "none",
        target=target,
        control=control,
        front=tuple(row.measured(same, control) if row.point.chosen else row for row in found.front),
    )


def _unjudged(recipe: Recipe, edits: tuple[Edit, ...], tried: int) -> Extraction:
    """An edit whose verdict and scores are still to come."""
    return Extraction(EntityEdits(recipe.target.entity, edits), "none", math.nan, math.nan, tried)


def judge(
    live: LiveModel,
    edits: EntityEdits,
    targets: KnownFacts,
    controls: KnownFacts,
    accept: Accept,
    progress: Progress | None = None,
) -> Extraction:
    """What an edit does to known search facts, however it was found."""
    scores = Scores(live)
    for facts in (targets, controls):
        scores.ask(facts, [edits.edits], progress)
    target, control = (scores.mean(facts, edits.edits) for facts in (targets, controls))
    return Extraction(edits, verdict(target, control, accept), target, control, 1)


def verdict(target: float, control: float, accept: Accept) -> Verdict:
    """`strong` within the bounds; `weak` when much is forgotten, or a control bound is missed narrowly; else `none`."""
    if target <= accept.max_target and control >= accept.min_control:
        return "strong"
    if target <= WEAK_TARGET and control >= 2 * accept.min_control - 1:
        return "weak"
    return "none"


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
    alone = []
    for recipe in (sparing(recipe, recipes) for recipe in recipes):
        known = _asked(live, recipe, task)
        others = sorted(_taken(recipes) - {recipe.target.entity})
        alone.append((recipe, known, choose(live, recipe, *known, task, cache, (*others, *avoided))))
    parts = [Part(recipe, found.edits, *known) for recipe, known, found in alone if found.edits.edits]
    joined = {group.entity: group for group in join(live, parts, task, cache).groups} if parts else {}
    together = combined(edit for group in joined.values() for edit in group.edits)
    results = []
    for recipe, known, found in alone:
        target, control = (mean_score(live, facts, together) for facts in known)
        judged = verdict(target, control, recipe.accept) if found.edits.edits else "none"
        edits = joined.get(found.edits.entity, found.edits)
        results.append(replace(found, edits=edits, verdict=judged, target=target, control=control))
    return tuple(results)


def sparing(recipe: Recipe, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe without search controls about anybody whom another recipe holds out or makes forget."""
    taken = _taken(recipes)
    controls = tuple(fact for fact in recipe.controls if fact.split == "held_out" or fact.entity not in taken)
    if not any(fact.split == "search" for fact in controls):
        raise InputError(
            f"the recipe for {recipe.target.entity!r} has no search controls that the other recipes do not hold out: "
            "add facts about further entities"
        )
    return replace(recipe, controls=controls)


def _taken(recipes: Sequence[Recipe]) -> set[str]:
    """Names that any of the recipes makes forget or holds out."""
    return {name for recipe in recipes for name in (recipe.target.entity, *reserved_names(recipe))}


def localized(live: LiveModel, recipe: Recipe, progress: Progress | None = None, first: int = 0) -> CellMap:
    """What the cells say of a recipe's entity: those of its layers, by default from `first` to the middle."""
    last = int(live.shape.n_layers * SETTINGS.early_part) - 1
    (cell_map,), _, _ = cell_maps(
        live,
        [recipe.target.entity],
        baseline=recipe.localization.baseline,
        n_prompts=recipe.localization.n_prompts,
        aliases=recipe.target.aliases,
        layers=recipe.localization.layers or (first, max(first, last)),
        progress=progress,
    )
    return cell_map


def _direction(
    scores: Scores,
    recipe: Recipe,
    targets: KnownFacts,
    controls: KnownFacts,
    task: Task,
    cache: Path | None,
    avoided: Sequence[str],
    watch: Watch | None,
    wide: bool,
) -> Extraction:
    """The edit for the name, and for those of its forms that need one of their own."""
    live = scores.live
    layers = live.watchable(early_layers(live.shape.n_layers))
    if recipe.localization.layers is not None:
        layers = layer_range(live, recipe.localization.layers)
    with task("reading what should stay") as progress:
        moments = moments_of(live, layers, cache, progress=progress)
    reserved = (*recipe.target.names, *reserved_names(recipe), *avoided)
    settings = ChoiceSettings()
    if recipe.edit.prefer == "mild":
        settings = replace(settings, columns=())
    with task("asking about neighbors") as progress:
        neighbors = _of_neighbors(live, recipe, avoided, progress)
        apart = tuple(fact for fact in neighbors if not begins_alike(fact.question.fact.entity, recipe.target.names))
        near = near_response(live, apart, layers, progress)
    name = Name(
        live,
        recipe.target.entity,
        moments,
        lambda other: share_words(other, reserved),
        near,
        settings.near_share,
    )
    max_columns = recipe.edit.max_cells
    with task("choosing the edit") as progress:
        others = forms_of(recipe.target) if recipe.edit.forms else ()
        inside = compared(live, recipe, targets)
        is_other = recipe.edit.forms and is_other_first(live, recipe.target.entity)
        first = first_in_lines(targets) if is_other else ()
        forms = Forms(scores, inside, first, controls, apart, settings, others)
        share = settings.margin if forms.known else 1.0
        own = replace(settings, max_harm=share * settings.max_harm)
        choice = DirectionChoice(scores, name, inside, controls, apart, own, max_columns, progress, watch=watch)
        tried = [choice]
        choice, best = told_apart(choice, choice.choose(), settings)
        tried += [] if choice is tried[0] else [choice]
        name = choice.name
        forms.settings = settings = replace(settings, few=choice.settings.few, few_harm=choice.settings.few_harm)
        edits = forms.add(best, name, max_columns, progress)
        if forms.known and (len(edits) == len(best.edits) or n_columns(best.edits) > settings.few):
            # The forms may not need all the harm that was left to them: with it, the edit for the name may be better.
            choice.settings = settings
            again = choice.on_few_columns(choice.dense)
            n_new, n_old = n_columns(again.edits), n_columns(best.edits)
            spares = again.spared >= min(settings.min_neighbor, best.spared)
            if spares and (n_new < n_old or (n_new == n_old and again.score < best.score)):
                best, edits = forms.exchanged(best, again, edits, name, max_columns, progress)
        found = replace(
            _unjudged(recipe, edits, sum(len(each.trials) for each in tried)),
            answers=answers_of(name, best.edits),
            screening=screening_of(choice, best),
            forms=forms.results(best.edits, edits),
            neighbors=neighbor_results(scores, neighbors, edits),
        )
    if wide:
        with task("measuring more edits for the front") as progress:
            choice.progress = progress
            widen(choice)
    spared = scores.mean(apart, edits) if apart else None
    judged = [trial for each in tried for trial in each.judged]
    return replace(found, front=front_of(judged, best, edits, forms.change or best.change, spared))


def _of_neighbors(live: LiveModel, recipe: Recipe, avoided: Sequence[str], progress: Progress) -> KnownFacts:
    """What the model says of the neighbors that the choice may see."""
    names = neighbors_of(recipe.target, reserved_names(recipe), avoided)
    return facts_about(live, names, recipe.target, recipe.scoring, progress)


def _single(scores: Scores, recipe: Recipe, targets: KnownFacts, controls: KnownFacts, task: Task) -> Extraction:
    """The source's two steps: candidates by stability, each verified by intervention with each allowed multiplier.

    The one that lowers the targets most of those that spare the controls; controls are asked only where targets fell.
    """
    with task(f"localizing {recipe.target.entity}") as progress:
        top = localized(scores.live, recipe, progress).top(SETTINGS.n_single)
    multipliers = SINGLE_MULTIPLIERS if recipe.edit.multiplier is None else (recipe.edit.multiplier,)
    alone = {}
    with task("verifying candidates") as progress:
        for edit in (ColumnEdit(row.cell, item) for row in top for item in multipliers):
            alone[edit] = scores.mean(targets, (edit,), progress)
        for edit in sorted(alone, key=lambda edit: (alone[edit], edit)):
            if alone[edit] >= 1.0:
                break
            if scores.mean(controls, (edit,), progress) >= recipe.accept.min_control:
                return _unjudged(recipe, (edit,), len(alone))
    return _unjudged(recipe, (), len(alone))
