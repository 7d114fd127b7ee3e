"""The work on a queue: each entity that nobody else has claimed, then all edits in one."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from amnesia.choice.extraction import choose
from amnesia.choice.joint import Joint, Part, join
from amnesia.choice.known import KnownFacts, select_known
from amnesia.choice.neighbors import facts_about
from amnesia.choice.several import taken_beside
from amnesia.domain import DEFAULT_LOADING, OF_GGUF, Fact, Loading, name_key
from amnesia.edits import EntityEdits
from amnesia.errors import AmnesiaError, InputError, OutputError
from amnesia.evaluation.ability import right_choices
from amnesia.evaluation.damage import Reading, impression
from amnesia.evaluation.earlier import Earlier, earlier_edits
from amnesia.evaluation.examination import Examination, answered, conclude, control_prompts, examine_after
from amnesia.evaluation.measurement import KnownFact, in_both_forms
from amnesia.evaluation.measurement_cache import MeasurementCache, fingerprint
from amnesia.facts.popqa import read_popqa
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder, remove_abandoned
from amnesia.files.disk import hash_file
from amnesia.files.seals import check_own, replace_own, sealed_json
from amnesia.files.staging import check_output, check_outside_caches
from amnesia.live.loading import load_source
from amnesia.live.model import LiveModel, edited
from amnesia.mining.entity import TASK, mine
from amnesia.mining.recipe_text import joint_text
from amnesia.numbers import signed
from amnesia.outputs.proofs import check_unaltered
from amnesia.outputs.write import spec_of
from amnesia.pipeline import save_and_ask
from amnesia.progress import SILENT, Progress, Tracker
from amnesia.queue.folder import SETTINGS_NAME, QueueFolder, begin, claimed, is_finished
from amnesia.queue.listed import Listed, model_of
from amnesia.queue.outcome import (
    Outcome,
    read_edits,
    read_outcome,
    read_recipe,
    without_listed,
    write_outcome,
    write_unknown,
)
from amnesia.queue.summary import JOINT_NAME, PAGE_NAME, SUMMARY_NAME, Summary, joint_json, of_entity, summarize
from amnesia.recipe import Recipe
from amnesia.report.page import summary_html
from amnesia.report.tables import neighbors_line
from amnesia.sources.fingerprint import fingerprints
from amnesia.sources.resolve import resolve
from amnesia.sources.source import ModelSource
from amnesia.weights.manifest import forgotten
from amnesia.weights.plan import plan_edits

_POLL = 0.5  # Seconds between two looks at what other processes have finished.


def run_queue(
    listed: Sequence[Listed],
    model: str | None,
    popqa: Path | None,
    output: Path,
    tracker: Tracker = SILENT,
    *,
    force: bool = False,
    loading: Loading = DEFAULT_LOADING,
) -> Summary:
    """Make a model forget each entity of a list alone, then all of them in one edit, which is written into `output`.

    Whatever is in `output` already is not done again, and several processes may call this at once: each takes the
    entities that no other is at. With `force`, weak edits are written, too. An entity that the model knows too little
    about stops nobody else. Raises InputError when `output` holds a queue of something else, and the errors of this
    package for what the user can mend.
    """
    check_outside_caches(output)
    try:
        check_output(output)
    except OutputError:
        if not (output / SETTINGS_NAME).exists():
            raise
    source = resolve(model_of(listed, model), tracker.notice)
    check_unaltered(source.origin, partial(tracker.task, "proving the edit before"))
    for row in listed:
        if row.recipe is not None:
            _check_recipe(row.recipe, source)
    settings = _settings(listed, source, popqa, force, loading)
    for name in (SUMMARY_NAME, PAGE_NAME, JOINT_NAME):
        check_own(output / name)  # Hours of work must not end in front of a file that somebody has written in.
    queue = QueueFolder(output, tuple(row.name for row in listed))
    work = _Work(queue, tuple(listed), source, popqa, tracker, force, loading)
    if not (output / SETTINGS_NAME).exists():
        work.prepare()  # What this raises may be mended by another type or table, with which no queue goes on.
    begin(output, queue.names, settings, source.origin)
    while pending := queue.pending:
        if not any(work.entity_claimed(place) for place in pending):
            time.sleep(_POLL)
    while not work.is_joined():
        if not work.joint_claimed():
            time.sleep(_POLL)
    for folder in (*map(queue.entity, range(len(listed))), queue.joint):
        remove_abandoned(folder)
    summary = summarize(queue, source.ref.portable)
    document = summary.to_json()
    replace_own(output / SUMMARY_NAME, sealed_json(document))
    replace_own(output / PAGE_NAME, summary_html(document).encode())
    return summary


def _check_recipe(recipe: Recipe, source: ModelSource) -> None:
    """Raises InputError, with the entity's name, for what cannot be written, before any entity is at work."""
    try:
        if {*OF_GGUF} & {*recipe.edit.formats}:
            source.require_gguf()
        if recipe.edit.cells:
            plan_edits(source.checkpoint, [EntityEdits(recipe.target.entity, recipe.edit.cells)])
    except AmnesiaError as error:
        raise InputError(f"the recipe of {recipe.target.entity}: {error}") from error


def _settings(
    listed: Sequence[Listed], source: ModelSource, popqa: Path | None, force: bool, loading: Loading
) -> dict[str, Any]:
    """What must be the same for a queue to go on, beside its entities: all that its results depend on."""
    recipes = {row.name: hashlib.sha256(row.recipe.text.encode()).hexdigest() for row in listed if row.recipe}
    return {
        "model": str(source.ref.portable),
        "files": fingerprints(source),
        "dtype": loading.dtype,
        "table": None if popqa is None else hash_file(popqa),
        "recipes": recipes,
        "weak edits": force,
    }


@dataclass
class _Work:
    """One process's part of a queue. The model is loaded when something is left to do."""

    queue: QueueFolder
    listed: tuple[Listed, ...]
    source: ModelSource
    popqa: Path | None
    tracker: Tracker
    force: bool
    loading: Loading
    _neutral: tuple[Reading, ...] | None = None

    @cached_property
    def live(self) -> LiveModel:
        return load_source(self.source, _on_own_device(self.loading), notice=self.tracker.notice)

    @cached_property
    def cache(self) -> MeasurementCache:
        return MeasurementCache(self.queue.measured, fingerprint([self.source.folder], self.loading))

    @cached_property
    def rows(self) -> Any:
        return None if self.popqa is None else read_popqa(self.popqa)

    def prepare(self) -> None:
        """Load the model and read the table. What they raise is no entity's fault, and ends the queue."""
        _ = self.live, self.rows

    def entity_claimed(self, place: int) -> bool:
        """Do the work on an entity, if no other process is at it; whether it was done."""
        folder, name = self.queue.entity(place), self.queue.names[place]
        with claimed(folder) as own:
            if own:
                line = f"{name} ({place + 1} of {len(self.listed)})"
                self.prepare()
                try:
                    recipe, facts = self._known(self.listed[place])
                    known = select_known(facts)
                except InputError as error:
                    # The model knows too little about this one, which is no reason to leave out the others.
                    write_unknown(folder, name, str(error))
                    self.tracker.notice(f"{line}: {error}")
                    return True
                outcome = self._entity(folder, name, recipe, facts, known)
                scores = outcome.scores
                shown = "" if scores is None or scores.target is None else f", target {signed(scores.target)}"
                self.tracker.notice(f"{line}: {outcome.verdict} handle{shown}")
        return own

    def _known(self, listed: Listed) -> tuple[Recipe, tuple[KnownFact, ...]]:
        """An entity's recipe, mined where the list gives none, and what the original model knows of its facts."""
        recipe = listed.recipe
        if recipe is None:
            with self.tracker.task(f"{listed.name}: {TASK}") as progress:
                found = mine(self.live, listed.name, self.rows, self.source.ref, (), progress, self.cache)
            recipe = found.recipe
        questions = in_both_forms(self.live, questions_of(without_listed(recipe, self.queue.names)))
        with self.tracker.task(f"{listed.name}: asking the original model") as progress:
            return recipe, answered(self.live, questions, recipe.scoring, progress, self.cache)

    def _entity(
        self,
        folder: Path,
        name: str,
        recipe: Recipe,
        facts: Sequence[KnownFact],
        known: tuple[KnownFacts, KnownFacts],
    ) -> Outcome:
        """Choose the entity's edit, measure it alone, and write its folder."""
        avoided = self._others(name)
        seen = without_listed(recipe, self.queue.names)

        def task(line: str, n_bytes: int | None = None) -> AbstractContextManager[Progress]:
            return self.tracker.task(f"{name}: {line}", n_bytes)

        extraction = choose(self.live, seen, *known, task, cache_folder(), avoided)
        evaluation = None
        if extraction.verdict == "strong" or (extraction.verdict == "weak" and self.force):
            with task("asking with the edit in memory") as progress:
                before = self._examination(facts, progress)
                with edited(self.live, extraction.edits.edits):
                    after = examine_after(self.live, before, progress)
            evaluation = conclude(before, after)
        return write_outcome(folder, name, recipe, extraction, evaluation, self.source.ref)

    def _others(self, name: str) -> list[str]:
        """Who else is to be forgotten, by aliases of recipes in the list, too, or was before."""
        listed = [row for row in self.listed if row.name != name]
        aliases = [alias for row in listed if row.recipe for alias in row.recipe.target.aliases]
        return [*(row.name for row in listed), *aliases, *forgotten(self.source.checkpoint.manifest)]

    def _examination(self, facts: Sequence[KnownFact], progress: Progress) -> Examination:
        """What the original model knows, with its impression of neutral text, which is read once."""
        prompts = control_prompts(fact.question for fact in facts)
        found = impression(self.live, prompts, progress, self._neutral)
        self._neutral = found.neutral
        return Examination(tuple(facts), found, right_choices(self.live, progress, self.cache))

    def _places(self) -> list[int]:
        """Places of the entities whose edits are to be in the joint one: those that were measured alone."""
        return [place for place in range(len(self.listed)) if read_outcome(self.queue.entity(place)).scores is not None]

    def is_joined(self) -> bool:
        """Whether the joint edit is written, or there is none to write."""
        return is_finished(self.queue.joint) or not self._places()

    def joint_claimed(self) -> bool:
        """Write the joint edit, if no other process is at it; whether that was done."""
        with claimed(self.queue.joint) as own:
            if own:
                self._join()
        return own

    def _join(self) -> None:
        places = self._places()
        recipes, groups = [], []
        for place in places:
            folder, name = self.queue.entity(place), self.queue.names[place]
            recipe = without_listed(read_recipe(folder, name), self.queue.names)
            recipes.append(recipe)
            groups.append(read_edits(folder, recipe.target.entity))
        recipes = _of_one_split(recipes)
        with self.tracker.task("asking the original model about all entities") as progress:
            known = [
                answered(
                    self.live, in_both_forms(self.live, questions_of(recipe)), recipe.scoring, progress, self.cache
                )
                for recipe in recipes
            ]
        parts = []
        with self.tracker.task("asking about neighbors") as progress:
            for place, recipe, group, facts in zip(places, recipes, groups, known, strict=True):
                # Others that are to go are no neighbors that must stay, nor is who is held out of any choice.
                avoided = (*taken_beside(recipe, recipes), *self._others(self.queue.names[place]))
                near = facts_about(self.live, recipe, avoided, progress, self.cache)
                parts.append(Part(recipe, group, *select_known(facts), near))
        joint = join(self.live, parts, self.tracker.task, cache_folder())
        if lost := neighbors_line(joint.neighbors):
            self.tracker.notice(lost)
        facts = {(fact.question.role, fact.pair): fact for own in known for fact in own}
        with self.tracker.task("asking the original model about all else") as progress:
            before = self._examination(list(facts.values()), progress)
            earlier = earlier_edits(self.live, self.source.checkpoint.manifest, progress)
        replace_own(self.queue.path / JOINT_NAME, sealed_json(joint_json(joint)))
        self.__dict__.pop("live", None)
        gc.collect()
        self._write(joint, recipes, before, earlier)

    def _write(self, joint: Joint, recipes: Sequence[Recipe], before: Examination, earlier: Sequence[Earlier]) -> None:
        controls = {fact.pair(): fact for recipe in recipes for fact in recipe.controls}
        save_and_ask(
            self.source,
            spec_of(
                self.source,
                joint.groups,
                recipe_text=joint_text(recipes, self.source.ref, list(controls.values())),
                allow_overlap=True,
            ),
            tuple(dict.fromkeys(name for recipe in recipes for name in recipe.edit.formats)),
            before,
            lambda evaluation: all(
                of_entity(evaluation, recipe.target.entity).accepted(recipe.accept) for recipe in recipes
            ),
            self.queue.joint,
            self.tracker,
            loading=self.loading,
            earlier=earlier,
        )


def _on_own_device(loading: Loading) -> Loading:
    """Of processes that were launched together, each has a device of its own, where there are several."""
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    return replace(loading, device=f"cuda:{rank % count}") if loading.device is None and rank and count else loading


def _of_one_split(recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes, with every control that any choice saw among those that were seen."""
    seen = {name_key(fact.entity) for recipe in recipes for fact in recipe.controls if fact.split == "search"}

    def placed(fact: Fact) -> Fact:
        return replace(fact, split="search" if name_key(fact.entity) in seen else "held_out")

    return [replace(recipe, controls=tuple(map(placed, recipe.controls))) for recipe in recipes]
