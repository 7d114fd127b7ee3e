"""A recipe for an entity without a table: its facts are what the model itself says, again and again.

The model writes on after every wording of every relation. What it says in most wordings of a relation, and to no unseen
name, is a fact; wordings of the search and held-out ones are those of the relation. Facts about others, the controls,
are found in the same way, in one wording each, until there are as many as are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from amnesia.domain import SPLITS, Fact, ModelRef, entity_name
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, known_facts
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.own_facts import own_facts
from amnesia.facts.answers import normalized
from amnesia.facts.names import contrast_entities, kind_of, share_words
from amnesia.facts.questions import Question
from amnesia.facts.relations import RelationTemplates, relation_templates, relations_of
from amnesia.live.model import LiveModel
from amnesia.mining.recipe_text import N_CONTROLS, Mined, recipe_text
from amnesia.progress import Progress
from amnesia.recipe import Scoring
from amnesia.recipe_file import parse_recipe

MIN_AGREEING = 3
"""Wordings of a relation in which the model must write the same answer; one that it writes less often is chance."""

PER_NAME = 3
"""Relations that the model is asked about each other name."""


def from_model(
    live: LiveModel,
    entity: str,
    *,
    model: ModelRef,
    aliases: Sequence[str] = (),
    scoring: Scoring | None = None,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> Mined:
    """A recipe that makes `model` (already in memory as `live`) forget what it says of `entity` by itself.

    What is in `cache` is not asked again, and what is asked is put there. Raises InputError when the model says nothing
    of its own about the entity, or about others.
    """
    scoring, entity, aliases = scoring or Scoring(), entity_name(entity), tuple(map(entity_name, aliases))
    names = (entity, *aliases)
    asked = [(entity, wording) for each in relation_templates().values() for wording in each.wordings]
    written = own_facts(live, asked, names, scoring, progress, cache)
    facts = _agreed(live, entity, aliases, written, scoring, progress, cache)
    splits = {fact.split for fact in facts}
    if splits != set(SPLITS):
        raise InputError(
            f"{live.name} says nothing of its own about {entity!r} that holds in {MIN_AGREEING} wordings of a "
            "relation: give a table of facts about it (--popqa), or a recipe with facts that it answers correctly"
        )
    controls, n_others = _controls(live, names, {fact.answer for fact in facts}, scoring, progress, cache)
    if {fact.split for fact in controls} != set(SPLITS):
        raise InputError(f"{live.name} says nothing of its own about {n_others} others: write a recipe with controls")
    text = recipe_text(model, entity, aliases, facts, controls, scoring)
    return Mined(parse_recipe(text, name="the recipe made from what the model says"), len(asked), n_others)


def _agreed(
    live: LiveModel,
    entity: str,
    aliases: Sequence[str],
    written: Sequence[KnownFact],
    scoring: Scoring,
    progress: Progress | None,
    cache: MeasurementCache | None,
) -> tuple[Fact, ...]:
    """Of each relation the answer that the model writes most often, in all wordings in which it knows it."""
    by_prompt = {fact.question.fact.prompt: fact.question.fact.answer for fact in written}
    candidates = []
    for each in relation_templates().values():
        answer = _most_frequent([by_prompt[prompt] for prompt in each.wordings if prompt in by_prompt])
        if answer is not None:
            candidates += _worded(entity, answer, each)
    questions = [Question("target", fact, tuple(aliases)) for fact in candidates]
    known = known_facts(live, questions, scoring, progress, cache)
    return tuple(fact.question.fact for fact in known if not fact.excluded)


def _most_frequent(answers: Sequence[str]) -> str | None:
    """The answer that comes most often, if often enough; answers that differ in an article or in case are one."""
    counts = Counter(map(normalized, answers))
    if not counts:
        return None
    ((words, n),) = counts.most_common(1)
    return next(answer for answer in answers if normalized(answer) == words) if n >= MIN_AGREEING else None


def _worded(entity: str, answer: str, each: RelationTemplates) -> list[Fact]:
    return [
        Fact(entity, prompt, answer, split)
        for split, prompts in zip(SPLITS, (each.search, each.held_out), strict=True)
        for prompt in prompts
    ]


def _asked_of_others(names: Sequence[str], answers: set[str]) -> Iterator[tuple[str, str]]:
    """Well-known names that are not the entity's and none of its answers, each with wordings of some relations of its
    kind, which take turns."""
    turns = {kind: cycle(relations_of(kind)) for kind in {kind_of(name) for name in contrast_entities()}}
    wordings = {relation: cycle(each.wordings) for relation, each in relation_templates().items()}
    for name in contrast_entities():
        if not share_words(name, (*names, *answers)):
            for _ in range(PER_NAME):
                yield name, next(wordings[next(turns[kind_of(name)])])


def _controls(
    live: LiveModel,
    names: Sequence[str],
    answers: set[str],
    scoring: Scoring,
    progress: Progress | None,
    cache: MeasurementCache | None,
) -> tuple[tuple[Fact, ...], int]:
    """One fact about each name, in turn for the search and held out, as many as controls are wanted, and how many
    prompts were asked for them: well-known names come in their order, and no more than needed."""
    first: dict[str, Fact] = {}
    n_asked = 0
    others = _asked_of_others(names, answers)
    while len(first) < 2 * N_CONTROLS and (part := list(islice(others, PER_NAME * N_CONTROLS))):
        n_asked += len(part)
        for fact in own_facts(live, part, names, scoring, progress, cache):
            first.setdefault(fact.question.fact.entity, fact.question.fact)
    chosen = list(first.values())[: 2 * N_CONTROLS]
    placed = tuple(Fact(fact.entity, fact.prompt, fact.answer, SPLITS[n % 2]) for n, fact in enumerate(chosen))
    return placed, n_asked
