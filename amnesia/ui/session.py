"""What the page asks for, done on one model in memory: a search, answers, what an edit does where, files."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amnesia.choice.extraction import choose
from amnesia.choice.known import select_known
from amnesia.choice.results import Extraction
from amnesia.domain import FORMATS, OF_GGUF, ROLES, SPLITS, Format, entity_name, n_columns, name_key, user_path
from amnesia.edits import ColumnEdit, Edit, EntityEdits, by_projection, columns_of, directions_of, weakened
from amnesia.errors import InputError, OutputError, os_errors_as
from amnesia.evaluation.lineage import changed_columns
from amnesia.evaluation.measurement import KnownFact, in_both_forms, known_facts, plainly_asked, scores_of
from amnesia.facts.popqa import PopqaRow, is_about
from amnesia.facts.questions import questions_of
from amnesia.files.cache import cache_folder
from amnesia.files.disk import replace_file
from amnesia.files.staging import check_outside_caches
from amnesia.files.strict_json import json_bytes
from amnesia.live.chat_form import chat_format
from amnesia.live.duet import Duet, Sampling, Voice, changes_of, shifts
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import LiveModel, edited
from amnesia.localization.cells import CellMap, cell_maps
from amnesia.mining.entity import TASK, mine
from amnesia.mining.recipe_text import text_with_cells
from amnesia.numbers import short
from amnesia.outputs.commands import save
from amnesia.recipe import LocalizeOptions, Recipe
from amnesia.recipe_file import parse_recipe
from amnesia.report.document import extraction_json
from amnesia.sources.source import ModelSource
from amnesia.ui.jobs import Job
from amnesia.weights.edit_rows import edit_json
from amnesia.weights.manifest import forgotten

FILES = {"edit": ".json", "recipe": ".toml"}
"""What is saved as a file, with the end of its name; all other formats are folders."""

N_CELLS = 12
"""Cells that the page lists."""

N_TOKENS = 48
"""Of an answer, and at most of a text whose map is drawn."""

_NOTHING = "the edit changes nothing: give it some strength, or choose a cell"

_N_ASKED = (8, 4)  # Prompts that the page offers: about the entity, and about others. Set by hand.


@dataclass(frozen=True)
class Wanted:
    """An edit as the sliders have it: so many times what was chosen for the entity, and cells with multipliers."""

    entity: str
    strength: float
    cells: tuple[ColumnEdit, ...]


@dataclass(frozen=True)
class Subject:
    """An entity that was searched for, as far as the search has come: a recipe, its known facts, what was chosen."""

    entity: str
    recipe: Recipe | None = None
    facts: tuple[KnownFact, ...] = ()
    found: Extraction | None = None


class Session:
    """One model, and the entity that was last searched for in it. Its methods run in one thread, one at a time.

    Facts are those of `recipe` for its own entity; of others those in the `table`, or what the model says.
    """

    def __init__(
        self,
        source: ModelSource,
        live: LiveModel,
        recipe: Recipe | None = None,
        table: Sequence[PopqaRow] = (),
    ) -> None:
        self.source, self.live, self.recipe, self.table = source, live, recipe, table
        self.written: list[Path] = []
        self.form = chat_format(live.tokenizer)
        self.subject: Subject | None = None
        self._scored: tuple[tuple[Edit, ...], list[dict[str, Any]]] | None = None  # The last edit, with its scores.

    @property
    def formats(self) -> tuple[str, ...]:
        """What an edit can be saved as."""
        return (*(name for name in FORMATS if self.source.gguf is not None or name not in OF_GGUF), *FILES)

    def search(self, job: Job, entity: str) -> None:
        """Rank the cells of an entity, then choose an edit by what the model says of it; told of step by step.

        Raises InputError where the model knows too little for a choice; the cells stay.
        """
        self._scored = None
        name = entity_name(entity)
        recipe = self.recipe
        if recipe is not None and name_key(name) in map(name_key, recipe.target.names):
            name = recipe.target.entity
        else:
            recipe = None
        options = LocalizeOptions() if recipe is None else recipe.localization
        with job.task(f"ranking the cells of {name}") as progress:
            (cell_map,), _, _ = cell_maps(
                self.live,
                [name],
                baseline=options.baseline,
                n_prompts=options.n_prompts,
                aliases=() if recipe is None else recipe.target.aliases,
                progress=progress,
            )
        self.subject = Subject(name)
        job.tell("cells", entity=name, **_ranked(cell_map))
        if recipe is None:
            rows = self.table if any(is_about(row, name) for row in self.table) else None
            with job.task(TASK) as progress:
                recipe = mine(self.live, name, rows, self.source.ref, (), progress).recipe
        with job.task("asking about the facts") as progress:
            questions = in_both_forms(self.live, questions_of(recipe))
            facts = known_facts(self.live, questions, recipe.scoring, progress)
        known = [fact for fact in plainly_asked(facts) if not fact.excluded]
        self.subject = Subject(name, recipe, tuple(known))
        job.tell("facts", prompts=_prompts(known))
        targets, controls = select_known(facts)
        avoided = forgotten(self.source.checkpoint.manifest)
        found = choose(self.live, recipe, targets, controls, job.task, cache_folder(), avoided)
        self.subject = replace(self.subject, found=found)
        job.tell(
            "edit",
            verdict=found.verdict,
            what=_in_words(found.edits.edits),
            layers=sorted({layer for layer, _ in by_projection([found.edits])}),
            neighbors={row.name: row.score for row in found.neighbors},
        )

    def attempt(self, job: Job, wanted: Wanted, prompt: str, as_chat: bool) -> None:
        """Answer a prompt before and after, token by token; then where the edit acts in it, and what it leaves."""
        edits, text = self._edits(wanted), self._text(prompt, as_chat)
        voice = self._voice(edits)
        before, after = Duet((voice,)).answer(
            [text], Sampling(N_TOKENS), lambda texts: job.tell("answer", before=texts[0], after=texts[1])
        )
        job.tell("answer", before=before, after=after)
        self._map(job, voice, text)
        facts = self.subject.facts if self.subject else ()
        if facts:
            job.tell("scores", rows=self._scores(job, edits, facts))

    def map(self, job: Job, wanted: Wanted, prompt: str, as_chat: bool) -> None:
        """Where an edit, perhaps of a single cell, acts in a prompt."""
        self._map(job, self._voice(self._edits(wanted)), self._text(prompt, as_chat))

    def save(self, job: Job, wanted: Wanted, form: str, output: str) -> None:
        """Write the edit in one of `formats`; never over what is there."""
        edits = self._edits(wanted)
        if not output.strip():
            raise InputError("no place to save to is given: enter the name of a new folder or file")
        if form not in self.formats:
            raise InputError(f"there is no format {form!r} for {self.source}: choose one of {', '.join(self.formats)}")
        if "\0" in output:
            raise InputError(f"{output!r} holds a null character, which no name can have: choose another name")
        path = user_path(output.strip()).absolute()
        with os_errors_as(OutputError, f"{path} cannot be written", "choose another name"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.lstat()  # Other errors are those of names that no file can have.
                raise OutputError(f"{path} exists: choose another name, or move it away yourself")
        if form == "recipe":
            _write_file(path, self._recipe_text(edits).encode())
        elif not edits:
            raise InputError(_NOTHING)
        elif form == "edit":
            _write_file(path, json_bytes(self._edit_document(wanted.entity, edits)))
        else:
            save(self.source, EntityEdits(wanted.entity, edits), path, format=_format(form), tracker=job)
        self.written.append(path)
        job.tell("saved", path=str(path))

    def _edits(self, wanted: Wanted) -> tuple[Edit, ...]:
        """What the sliders say, cells of their own in place of the same cells of the choice."""
        subject = self.subject
        if subject is None or subject.entity != wanted.entity:
            raise InputError(f"{wanted.entity!r} is not what was last searched for: search for it again")
        own = {edit.cell for edit in wanted.cells}
        chosen = subject.found.edits.edits if subject.found is not None else ()
        kept = (edit for edit in chosen if not (isinstance(edit, ColumnEdit) and edit.cell in own))
        every = (*(weakened(edit, wanted.strength) for edit in kept), *wanted.cells)
        return tuple(edit for edit in every if edit.multiplier != 1.0)

    def _scores(self, job: Job, edits: tuple[Edit, ...], facts: Sequence[KnownFact]) -> list[dict[str, Any]]:
        """Mean scores with an edit; another prompt alone does not change them."""
        if self._scored is None or self._scored[0] != edits:
            with job.task("asking about the facts") as progress, edited(self.live, edits):
                after = [row.logprob for row in answer_logprobs(self.live, [fact.pair for fact in facts], progress)]
            self._scored = edits, _means(facts, scores_of(facts, after))
        return self._scored[1]

    def _voice(self, edits: Sequence[Edit]) -> Voice:
        return Voice(self.live, changes_of(changed_columns(self.source, edits), self.live) if edits else {})

    def _text(self, prompt: str, as_chat: bool) -> str:
        if not prompt.strip():
            raise InputError("no prompt is given: enter the beginning of a text")
        return self.form(prompt) if as_chat and self.form else prompt

    def _map(self, job: Job, voice: Voice, text: str) -> None:
        tokens, shift = shifts(voice, text, N_TOKENS)
        job.tell("map", tokens=tokens, rows=[[round(value, 6) for value in row] for row in shift.tolist()])

    def _recipe_text(self, edits: Sequence[Edit]) -> str:
        """The facts, by which the edit is chosen anew; with cells alone, these are listed and nothing is chosen.

        Raises InputError for what a recipe cannot say: a direction that is not as it was chosen, or with cells of its
        own; an edit that was chosen, and is turned down to nothing.
        """
        recipe, found = (self.subject.recipe, self.subject.found) if self.subject else (None, None)
        if recipe is None:
            raise InputError("there are no facts for a recipe: save the edit itself, as a model or a file")
        cells = columns_of(edits)
        if directions_of(edits) and (found is None or edits != found.edits.edits):
            raise InputError(
                "a recipe says how a direction is chosen, not how strong it is, nor which cells go along: save the "
                f"weights, which hold both ({', '.join(self.formats[:-1])} in place of recipe), or set the strength "
                "and all cells to 1"
            )
        if not edits and (recipe.edit.cells or (found is not None and found.edits.edits)):
            raise InputError(_NOTHING)
        if not cells or directions_of(edits):
            return recipe.text
        text = text_with_cells(recipe.text, recipe.target.entity, cells)
        return parse_recipe(text, recipe.target.entity).text

    def _edit_document(self, entity: str, edits: Sequence[Edit]) -> dict[str, Any]:
        """What `extract -o` writes, with the edit as it is now."""
        found = self.subject.found if self.subject else None
        if found is None or edits != found.edits.edits:
            return {"entity": entity, "edits": [edit_json(edit) for edit in edits]}
        return extraction_json(replace(found, edits=EntityEdits(entity, tuple(edits))))


def _ranked(cell_map: CellMap) -> dict[str, Any]:
    best = cell_map.score.amax(1).tolist()
    return {
        "layers": [{"layer": layer, "best": value} for layer, value in zip(cell_map.layers, best, strict=True)],
        "cells": [{"cell": str(row.cell), "score": row.score} for row in cell_map.top(N_CELLS)],
    }


def _in_words(edits: Sequence[Edit]) -> str:
    """An edit in a few words; nothing for none."""
    directions, cells = directions_of(edits), columns_of(edits)
    words = []
    if directions:
        n = n_columns(directions)
        layers = ", ".join(map(str, sorted({edit.layer for edit in directions})))
        words.append(f"{len(directions)} direction{'s' * (len(directions) > 1)} on {n} columns of layer {layers}")
    words += [f"cell {edit.cell} times {short(edit.multiplier)}" for edit in cells]
    return ", ".join(words)


def _prompts(known: Sequence[KnownFact]) -> list[dict[str, str]]:
    rows = []
    for role, n in zip(ROLES, _N_ASKED, strict=True):
        own = [fact for fact in known if fact.question.role == role]
        rows += [{"role": role, "prompt": fact.prompt, "answer": fact.question.fact.answer} for fact in own[:n]]
    return rows


def _means(facts: Sequence[KnownFact], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Mean knowledge scores of each role and split that has facts."""
    rows = []
    for role in ROLES:
        for split in SPLITS:
            own = [
                score
                for fact, score in zip(facts, scores, strict=True)
                if (fact.question.role, fact.question.split) == (role, split)
            ]
            if own:
                rows.append({"role": role, "split": split, "n": len(own), "mean": sum(own) / len(own)})
    return rows


def _format(name: str) -> Format:
    return next(known for known in FORMATS if known == name)


def _write_file(path: Path, content: bytes) -> None:
    """Write a file whole."""
    check_outside_caches(path)
    with os_errors_as(OutputError, f"{path} cannot be written", "choose another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
