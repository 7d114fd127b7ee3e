"""Neighbors of a name: others that share a word with it, which an edit that acts at that word can take along.

What the model itself says about them stands for what it knows of them, so that no table is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from amnesia.choice.direction import MAX_TOKENS, DirectionChoice, JudgedTrial
from amnesia.choice.known import KnownFacts, Scores, evenly, reserved_names
from amnesia.choice.results import NeighborResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.response import Response, response_of
from amnesia.domain import name_key
from amnesia.edits import Edit
from amnesia.errors import InputError
from amnesia.evaluation.measurement import write
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.own_facts import answer_in, own_facts
from amnesia.facts.answers import normalized
from amnesia.facts.names import (
    begins,
    contains,
    ends,
    is_part,
    kind_of,
    share_words,
    shares_a_word,
    well_known,
    words_shared,
)
from amnesia.facts.relations import kind_asked, relations_of
from amnesia.facts.variants import is_spelling
from amnesia.live.model import LiveModel
from amnesia.live.tokens import encode, join
from amnesia.progress import Progress
from amnesia.recipe import Recipe, Target

MAX_NEIGHBORS, MAX_ALIKE = 8, 2
"""Neighbors that are asked about, those that the recipe names first, and how many well-known ones of them may begin
with the entity's name, so that no edit can spare them."""

N_ASKED, MIN_ASKED = 32, 6
"""Prompts about all neighbors together, and at least about each. To ask of a neighbor whatever names of its kind can
have took as long as the choice itself."""


_SAME = 0.4
"""Share of statements about a longer name from which on it may be another one for the entity. SmolLM2-135M says the
same of Madrid and Real Madrid, Ford and Henry Ford, Mexico and Mexico City in 0.20 to 0.36, of Obama, Churchill and
Napoleon and their full names in 0.55 to 0.83."""


def neighbors_of(target: Target, reserved: Sequence[str], avoided: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that share a word with the entity's: those of the recipe, then well-known ones.

    Of these the first are those from which an edit can tell the entity, by turns for each word of its name. None
    overlaps with `reserved` ones, which are held out; nor does any overlap with `avoided` ones, which other recipes
    hold out or make forget. Raises InputError for a name of the recipe that is the entity's own, or held out.
    """
    for name in target.neighbors:
        if name_key(name) in map(name_key, target.names):
            raise InputError(f"neighbor {name!r} is the entity's own name: neighbors are others, who must stay")
        if name_key(name) in map(name_key, reserved):
            raise InputError(
                f"neighbor {name!r} has held-out facts among the controls, which the choice must not see: put them "
                'into the split "search", or drop the neighbor'
            )
    found: dict[str, str] = {}
    n_alike, kept_out = 0, tuple(dict.fromkeys((*reserved, *avoided)))
    for name in (*target.neighbors, *_well_known(target)):
        if len(found) == MAX_NEIGHBORS:
            break
        is_given, is_alike = name in target.neighbors, begins_alike(name, target.names)
        out = avoided if is_given else kept_out
        if name_key(name) in found or share_words(name, out) or (is_alike and not is_given and n_alike == MAX_ALIKE):
            continue
        n_alike += is_alike and not is_given
        found[name_key(name)] = name
    return tuple(found.values())


def _well_known(target: Target) -> list[str]:
    """Well-known names that share a word with the entity's, in the order in which they are asked about."""
    turns: dict[int, int] = {}
    order = []
    for name in well_known():
        places = words_shared(target.entity, name) or [-1] * shares_a_word(name, target.aliases)
        if places and not is_part(name, target.names) and not any(is_spelling(name, own) for own in target.names):
            turns[places[0]] = turn = turns.get(places[0], 0) + 1
            order.append((begins_alike(name, target.names), turn, name))
    return [name for *_, name in sorted(order, key=lambda row: row[:2])]


def begins_alike(neighbor: str, names: Sequence[str]) -> bool:
    """Whether a neighbor's name begins with a whole name of the entity, as "Miami Heat" does with "Miami".

    A model reads from left to right: up to there both are the same to it, so that no edit can tell them apart.
    """
    return begins(neighbor, names)


def tellable(facts: KnownFacts, target: Target) -> KnownFacts:
    """Those of the facts that are about neighbors which an edit can tell from the entity."""
    return tuple(fact for fact in facts if not begins_alike(fact.question.fact.entity, target.names))


def asked_about(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names with prompts about them, about `N_ASKED` in all: by relations that names of their kind can have."""
    n_asked = max(MIN_ASKED, N_ASKED // max(1, len(names)))
    relations = {name: evenly(tuple(relations_of(kind_of(name)).values()), n_asked) for name in names}
    return [(name, each.search[0]) for name, own in relations.items() for each in own]


def facts_about(
    live: LiveModel,
    recipe: Recipe,
    avoided: Sequence[str],
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> KnownFacts:
    """What the model itself says about the neighbors that the choice may see, and not about the target.

    A longer name than the entity's that the recipe does not give is left out where it may be another one for it.
    `avoided` and errors as in `neighbors_of`.
    """
    target = recipe.target
    names = neighbors_of(target, reserved_names(recipe), avoided)
    found = own_facts(live, asked_about(names), target.names, recipe.scoring, progress, cache)
    longer = [name for name in names if contains(name, target.names) and name not in target.neighbors]
    kind = kind_asked(fact.prompt for fact in recipe.facts) or kind_of(target.entity)
    same = {
        name
        for name in longer
        if _is_full_name(name, target, kind) or _is_same(live, target, facts_of(name, found), progress, cache)
    }
    return tuple(fact for fact in found if fact.question.fact.entity not in same)


def _is_full_name(name: str, target: Target, kind: str | None) -> bool:
    """Whether a longer name may be the full one of a person: no other well-known person's begins or ends so."""
    if kind not in (None, "person") or kind_of(name) != "person":
        return False
    people = [other for other in well_known() if kind_of(other) == "person"]
    return any(
        is_so(name, target.names) and sum(is_so(other, target.names) for other in people) == 1
        for is_so in (begins, ends)
    )


def _is_same(
    live: LiveModel, target: Target, facts: KnownFacts, progress: Progress | None, cache: MeasurementCache | None
) -> bool:
    """Whether a longer name may be another one for the entity: the model says the same of both too often."""
    texts = {fact: fact.question.fact.prompt.replace("{entity}", target.entity) for fact in facts}
    written = write(live, list(texts.values()), progress, cache)
    said = [(answer_in(written[text]), fact.question.fact.answer) for fact, text in texts.items()]
    same = sum(own is not None and normalized(own) == normalized(other) for own, other in said)
    return same >= _SAME * len(said)


def facts_of(name: str, facts: KnownFacts) -> KnownFacts:
    """The facts about one name."""
    return tuple(fact for fact in facts if fact.question.fact.entity == name)


def names_in(facts: KnownFacts) -> tuple[str, ...]:
    """The names that facts are about, each once."""
    return tuple(dict.fromkeys(fact.question.fact.entity for fact in facts))


def near_response(
    live: LiveModel, facts: KnownFacts, layers: Sequence[int], progress: Progress | None = None
) -> Response | None:
    """What statements of the facts answer to; None without any."""
    rows = [item.ids for item in encode(live.tokenizer, [join(*fact.pair) for fact in facts])]
    return response_of(live, rows, layers, progress) if rows else None


def told_apart(
    choice: DirectionChoice, best: JudgedTrial, settings: ChoiceSettings
) -> tuple[DirectionChoice, JudgedTrial]:
    """The choice with its best trial; where that takes any neighbor along, another that spares all, or much more of the
    one that suffers most. The `settings` say what this may cost, forms of the name or not.

    An early layer writes much the same about a word whoever it names. A later one has seen the words before it, so that
    its cells answer to the name and not to its neighbors, with these among the bystanders, and can take away all that
    the stream carries of the name by then.
    """
    if not choice.neighbors:
        return choice, best
    worst = _worst(choice, best)
    if worst >= settings.min_neighbor:
        return choice, best
    other = _apart(choice, settings)
    found = other.choose()
    keeps = found.control >= settings.min_control and found.change.harm <= other.cap(found.atoms)
    forgets = found.score <= max(settings.goal + settings.slack, best.score)
    spares = _worst(other, found) >= min(settings.min_neighbor, worst + settings.much)
    return (other, found) if keeps and forgets and spares else (choice, best)


def _worst(choice: DirectionChoice, trial: JudgedTrial) -> float:
    """The score of the neighbor that suffers most."""
    kept = neighbor_results(choice.scores, choice.neighbors, (*choice.acting, *trial.edits))
    return min(row.score for row in kept)


def _apart(choice: DirectionChoice, settings: ChoiceSettings) -> DirectionChoice:
    """The choice among what streams carry, with the keys of the neighbors among the bystanders."""
    aware = replace(choice.name, apart_from=names_in(choice.neighbors), apart_share=settings.apart_share, solved={})
    # Behind a norm there is nothing of the stream that a layer could take away.
    tried = ((name, name.atoms(MAX_TOKENS, choice.acting)) for name in (replace(aware, of="stream"), aware))
    name, atoms = next((name, atoms) for name, atoms in tried if atoms)
    widths = map(choice.scores.live.shape.width, name.moments.layers)
    most = min(filter(None, (choice.max_columns, *widths)))
    return DirectionChoice(
        choice.scores,
        name,
        choice.targets,
        choice.controls,
        choice.neighbors,
        # On few columns such an edit harms text more than is expected of it: it should keep to all that it may change.
        replace(settings, few=most, few_harm=1.0),
        choice.max_columns,
        choice.progress,
        choice.beside,
        choice.acting,
        choice.watch,
        atoms,
    )


def neighbor_results(scores: Scores, facts: KnownFacts, edits: tuple[Edit, ...]) -> tuple[NeighborResult, ...]:
    """The mean score of each neighbor's facts with an edit."""
    scores.ask(facts, [edits])
    by_name = {name: facts_of(name, facts) for name in names_in(facts)}
    return tuple(NeighborResult(name, len(own), scores.mean(own, edits)) for name, own in by_name.items())
