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
from amnesia.choice.forms import Forms, compared
from amnesia.choice.front import front_of, widen
from amnesia.choice.known import KnownFacts, Scores, reserved_names, select_known
from amnesia.choice.neighbors import (
    facts_about,
    near_response,
    neighbor_results,
    tellable,
    told_apart,
)
from amnesia.choice.results import Extraction, Verdict
from amnesia.choice.settings import ChoiceSettings
from amnesia.choice.shown import answers_of, screening_of
from amnesia.directions.moments import early_layers, moments_of
from amnesia.domain import n_columns
from amnesia.edits import ColumnEdit, Edit, EntityEdits
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
    return choose(live, recipe, *asked(live, recipe, task), task, cache, avoided)


def asked(live: LiveModel, recipe: Recipe, task: Task) -> tuple[KnownFacts, KnownFacts]:
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
        neighbors = facts_about(live, recipe, avoided, progress)
        apart = tellable(neighbors, recipe.target) if recipe.edit.neighbors else ()
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
        forms = Forms.of(scores, recipe, targets, controls, apart, settings)
        share = settings.margin if forms.known else 1.0
        own = replace(settings, max_harm=share * settings.max_harm)
        choice = DirectionChoice(scores, name, forms.targets, controls, apart, own, max_columns, progress, watch=watch)
        tried = [choice]
        choice, best = told_apart(choice, choice.choose(), settings)
        name, is_told = choice.name, choice is not tried[0]
        if is_told:
            tried.append(choice)
            forms.settings, forms.share = choice.settings, choice.settings.apart_harm
        edits = forms.add(best, name, max_columns, progress)
        if not is_told and forms.known and (len(edits) == len(best.edits) or n_columns(best.edits) > settings.few):
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
