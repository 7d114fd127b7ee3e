"""A recipe for an entity from a table of facts: word them, ask the model what it knows, and split them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from amnesia.domain import SPLITS, Fact, ModelRef, entity_name, name_key
from amnesia.errors import InputError
from amnesia.evaluation.measurement import known_facts
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.names import share_words
from amnesia.facts.popqa import PopqaRow, facts_for, is_about
from amnesia.facts.questions import Question, by_turns, types_in
from amnesia.facts.relations import relation_templates
from amnesia.live.model import LiveModel
from amnesia.mining.recipe_text import N_CONTROLS, Mined, recipe_text
from amnesia.progress import Progress
from amnesia.recipe import Scoring
from amnesia.recipe_file import parse_recipe

MAX_ASKED = 600
"""Controls are asked from the most popular subject down, and no further than this many."""

CHUNK = 64


def from_table(
    live: LiveModel,
    rows: Sequence[PopqaRow],
    entity: str,
    *,
    model: ModelRef,
    aliases: Sequence[str] = (),
    scoring: Scoring | None = None,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> Mined:
    """A recipe that makes `model` (already in memory as `live`) forget `entity`, a subject of `rows`.

    Of what the model knows about the entity, each relation has wordings for the search and others that are held out;
    where only one of the two is known, every third wording is held out. Controls are one fact each about other
    subjects, the most popular first, whose neighborhoods (same relation, same type, related, unrelated) take turns, and
    in each of these the splits. Subjects that share a word with the entity, the hardest to keep apart, are all held
    out; facts whose answer is the entity are about it and left out.

    What is in `cache` is not asked again, and what is asked is put there.

    Raises InputError when the table has no row about the entity, when the model knows no fact about it or only a
    single wording, and when it knows no controls.
    """
    scoring, aliases = scoring or Scoring(), tuple(map(entity_name, aliases))
    name = next((row.subject for row in rows if is_about(row, entity)), entity)
    wordings = facts_for(rows, entity).facts
    if not wordings:
        raise InputError(
            f"no row about {entity!r} has a relation with wordings: known are {', '.join(relation_templates())}"
        )
    known = _known(live, wordings, aliases, scoring, progress, cache)
    if len(known) < 2:
        raise InputError(
            f"{live.name} knows {len(known)} of {len(wordings)} wordings of facts about {entity!r}: "
            "write a recipe with facts that it answers correctly, at least two"
        )
    controls, n_asked = _controls(live, rows, wordings, (name, *aliases), scoring, progress, cache)
    if not {"search"} <= {fact.split for fact in controls}:
        raise InputError(f"{live.name} answers none of {n_asked} facts about others: write a recipe with controls")
    text = recipe_text(model, name, aliases, _both_splits(known), controls, scoring)
    return Mined(parse_recipe(text, name="the recipe made from the table"), len(wordings), n_asked)


def _known(
    live: LiveModel,
    facts: Sequence[Fact],
    aliases: Sequence[str],
    scoring: Scoring,
    progress: Progress | None,
    cache: MeasurementCache | None,
) -> tuple[Fact, ...]:
    """The facts that the model knows, in their order."""
    questions = [Question("target", fact, tuple(aliases)) for fact in facts]
    found = known_facts(live, questions, scoring, progress, cache)
    return tuple(known.question.fact for known in found if not known.excluded)


def _both_splits(known: Sequence[Fact]) -> tuple[Fact, ...]:
    if {fact.split for fact in known} == set(SPLITS):
        return tuple(known)
    # Of two wordings the second is held out, of four or more every third.
    return tuple(
        replace(fact, split="held_out" if index % 3 == min(2, len(known) - 1) else "search")
        for index, fact in enumerate(known)
    )


def _controls(
    live: LiveModel,
    rows: Sequence[PopqaRow],
    targets: Sequence[Fact],
    names: Sequence[str],
    scoring: Scoring,
    progress: Progress | None,
    cache: MeasurementCache | None,
) -> tuple[tuple[Fact, ...], int]:
    """Known facts about others for both splits, and how many were asked."""
    relations = {row.relation for row in rows if is_about(row, targets[0].entity)}
    others = by_turns(_by_popularity(rows, names, relations), targets, names, types_in(rows))
    turns = dict.fromkeys(relation_templates(), 0)
    splits: Counter[str] = Counter()
    chosen: list[Fact] = []
    n_asked = 0
    while n_asked < MAX_ASKED and (chunk := list(islice(others, min(CHUNK, MAX_ASKED - n_asked)))):
        n_asked += len(chunk)
        facts = []
        for row, near in chunk:
            wordings = relation_templates()[row.relation].wordings
            prompt = wordings[turns[row.relation] % len(wordings)]
            turns[row.relation] += 1
            facts.append(Fact(row.subject, prompt, row.answer, answer_aliases=row.aliases, neighborhood=near))
        for fact in _known(live, facts, (), scoring, progress, cache):
            near = str(fact.neighborhood)
            split = "held_out" if near == "shared_name" else SPLITS[splits[near] % 2]
            splits[near] += 1
            if sum(other.split == split for other in chosen) < N_CONTROLS:
                chosen.append(replace(fact, split=split))
        if len(chosen) == 2 * N_CONTROLS:
            break
    return tuple(chosen), n_asked


def _by_popularity(rows: Sequence[PopqaRow], names: Sequence[str], relations: set[str]) -> list[PopqaRow]:
    """One row per subject, the most popular subject first; one of `relations` where the subject has it."""
    found: dict[str, PopqaRow] = {}
    for row in sorted(rows, key=lambda row: (-row.popularity, row.relation not in relations)):
        own = name_key(row.subject) in {name_key(name) for name in names}
        if row.relation in relation_templates() and not own and not share_words(row.answer, names):
            found.setdefault(name_key(row.subject), row)
    return list(found.values())
