"""Which questions are asked in an evaluation, and how close each control is to the target.

Knows nothing of models: which of these facts a model knows is decided elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from amnesia.domain import NEIGHBORHOODS, Fact, Neighborhood, Role, Split, name_key
from amnesia.errors import InputError
from amnesia.facts.answers import same_answer
from amnesia.facts.names import given_names, kind_of, share_words, shares_a_word
from amnesia.facts.popqa import PopqaRow, facts_for, is_about, one_per_subject, read_popqa, strata, worded
from amnesia.facts.relations import relation_of, relation_templates, subject_types
from amnesia.recipe import Recipe, Scoring

Types = Callable[[Fact], frozenset[str]]


@dataclass(frozen=True)
class Question:
    """A fact with its role in the evaluation, the aliases of its entity, and the groups to which it belongs.

    `is_message` says that its prompt is a message to a chat model, with all that such a model is fed around it.
    """

    role: Role
    fact: Fact
    aliases: tuple[str, ...] = ()
    relation: str | None = None
    popularity: str | None = None
    neighborhood: Neighborhood | None = None
    is_message: bool = False

    @property
    def split(self) -> Split:
        """Whether the search may see the fact."""
        return self.fact.split

    @property
    def pair(self) -> tuple[str, str]:
        """Prompt and answer."""
        return self.fact.pair()


@dataclass(frozen=True)
class FactSet:
    """Questions to evaluate, the bounds of what counts as known, and a remark about what was left out.

    `translations` are the entity's names in other languages, by language code.
    """

    entity: str
    questions: tuple[Question, ...]
    scoring: Scoring
    note: str | None = None
    translations: Mapping[str, str] = field(default_factory=dict)


def questions_of(recipe: Recipe) -> tuple[Question, ...]:
    """All facts of a recipe with their roles."""
    targets = tuple(Question("target", fact, recipe.target.aliases, relation_of(fact.prompt)) for fact in recipe.facts)
    names = recipe.target.names
    return targets + tuple(
        Question(
            "control",
            fact,
            relation=relation_of(fact.prompt),
            neighborhood=fact.neighborhood or neighborhood(fact, recipe.facts, names, _types_by_name),
        )
        for fact in recipe.controls
    )


def facts_of_recipe(recipe: Recipe) -> FactSet:
    """The facts and controls of a recipe."""
    names = {row.language: row.name for row in recipe.target.translations}
    return FactSet(recipe.target.entity, questions_of(recipe), recipe.scoring, translations=names)


def facts_of_popqa(path: Path, entities: Sequence[str], n_controls: int) -> FactSet:
    """Cloze and question prompts for subjects of a PopQA file, and one prompt each about other subjects.

    Two spellings of a name are one subject. The controls are spread over the neighborhoods as evenly as the file
    allows. Raises InputError when the file cannot be used, does not know one of the subjects, or knows nobody else.
    """
    rows = read_popqa(path)
    stratum = strata(rows) if rows else str
    targets: list[Question] = []
    unworded: Counter[str] = Counter()
    names = []
    asked: dict[str, str] = {}
    for name in given_names(entities):
        asked.setdefault(name_key(name), name)  # As `is_about` tells them apart.
    for entity in asked.values():
        own = facts_for(rows, entity)
        unworded.update(dict(own.n_unknown_relation))
        by_answer = {(row.relation, row.answer): row for row in rows if is_about(row, entity)}
        for fact in own.facts:
            relation = relation_of(fact.prompt)
            assert relation is not None, "the fact was worded from a relation"
            popularity = stratum(by_answer[relation, fact.answer].popularity)
            targets.append(Question("target", fact, (entity,), relation, popularity))
        names.append(own.facts[0].entity if own.facts else entity)
    if not targets:
        raise InputError(
            f"no row about {', '.join(map(repr, entities))} has a relation with wordings: "
            f"known are {', '.join(relation_templates())}"
        )
    controls = _controls(rows, [question.fact for question in targets], names, n_controls)
    facts = worded(row for row, _ in controls)
    if not facts:
        raise InputError(f"{path} has no other subjects than {', '.join(map(repr, names))}: give a larger table")
    note = ", ".join(f"{relation} ({n})" for relation, n in sorted(unworded.items()))
    return FactSet(
        ", ".join(names),
        (
            *targets,
            *(
                Question("control", fact, (), row.relation, stratum(row.popularity), near)
                for fact, (row, near) in zip(facts, controls, strict=True)
            ),
        ),
        Scoring(),
        f"rows of relations without wording left out: {note}" if note else None,
    )


def neighborhood(control: Fact, targets: Sequence[Fact], names: Sequence[str], types: Types) -> Neighborhood | None:
    """How close a control is to the target: the first that holds of

    - shared_name: its entity has a word of its name in common with one of `names`,
    - related: it has the answer of a target fact, or its entity is one, or its answer is one of `names`,
    - same_relation: it has the wording of a target fact, or a wording of the same relation,
    - same_type: its entity is of the same type (a person, a place, a work) as a target's,
    - unrelated: its entity is known to be of another type.

    None where the types are not known.
    """
    if share_words(control.entity, names) or shares_a_word(control.entity, names):
        return "shared_name"
    answers = {fact.answer for fact in targets}
    if any(same_answer(answer, own) for answer in answers for own in (control.answer, control.entity)) or any(
        same_answer(control.answer, name) for name in names
    ):
        return "related"
    relation = relation_of(control.prompt)
    if any(
        fact.prompt == control.prompt or (relation is not None and relation_of(fact.prompt) == relation)
        for fact in targets
    ):
        return "same_relation"
    own, theirs = types(control), frozenset[str]().union(*map(types, targets))
    if not own or not theirs:
        return None
    return "same_type" if own & theirs else "unrelated"


def _types_by_name(fact: Fact) -> frozenset[str]:
    relation = relation_of(fact.prompt)
    found = (kind_of(fact.entity), None if relation is None else subject_types().get(relation))
    return frozenset(kind for kind in found if kind is not None)


def _controls(
    rows: Sequence[PopqaRow], targets: Sequence[Fact], names: Sequence[str], n: int
) -> list[tuple[PopqaRow, Neighborhood]]:
    """Up to `n` rows about others with their neighborhoods, which take turns while they last."""
    chosen = islice(by_turns(one_per_subject(rows, names), targets, names, types_in(rows)), n)
    # In the order of their neighborhoods, so that each of these has its share of both splits.
    return sorted(chosen, key=lambda item: NEIGHBORHOODS.index(item[1]))


def types_in(rows: Sequence[PopqaRow]) -> Types:
    """What the subjects of a table are, by its own word or by the relations that they have."""
    found: dict[str, set[str]] = {}
    for row in rows:
        # A relation that says nothing of its subjects makes a type of its own, so that nobody is without one.
        kind = row.type or subject_types().get(row.relation, row.relation)
        found.setdefault(name_key(row.subject), set()).add(kind)
    return lambda fact: frozenset(found[name_key(fact.entity)])


def by_turns(
    rows: Iterable[PopqaRow], targets: Sequence[Fact], names: Sequence[str], types: Types
) -> Iterator[tuple[PopqaRow, Neighborhood]]:
    """Rows about others with their neighborhoods, which take turns while they last; each keeps the order of `rows`."""
    queues: dict[Neighborhood, list[PopqaRow]] = {name: [] for name in NEIGHBORHOODS}
    for row in rows:
        fact = Fact(row.subject, relation_templates()[row.relation].wordings[0], row.answer)
        near = neighborhood(fact, targets, names, types)
        assert near is not None, "every subject of the table has a type"
        queues[near].append(row)
    for turn in zip_longest(*queues.values()):
        yield from ((row, near) for near, row in zip(queues, turn, strict=True) if row is not None)
