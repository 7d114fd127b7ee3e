"""Neighbors of a name: others that share a word with it, which an edit that acts at that word can take along.

What the model itself says about them stands for what it knows of them, so that no table is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from amnesia.choice.direction import MAX_TOKENS, DirectionChoice, JudgedTrial
from amnesia.choice.known import KnownFacts, Scores, evenly
from amnesia.choice.results import NeighborResult
from amnesia.choice.settings import ChoiceSettings
from amnesia.directions.response import Response, response_of
from amnesia.domain import name_key
from amnesia.edits import Edit
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact
from amnesia.evaluation.own_facts import own_facts
from amnesia.facts.names import contrast_entities, kind_of, share_words, shares_a_word
from amnesia.facts.relations import relations_of
from amnesia.live.model import LiveModel
from amnesia.live.tokens import encode, join
from amnesia.progress import Progress
from amnesia.recipe import Scoring, Target

MAX_NEIGHBORS = 8
"""Neighbors that are asked about, those that the recipe names first."""

N_ASKED, MIN_ASKED = 32, 6
"""Prompts about all neighbors together, and at least about each. To ask of a neighbor whatever names of its kind can
have took as long as the choice itself."""


def neighbors_of(target: Target, reserved: Sequence[str], avoided: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that share a word with the entity's: those of the recipe, then well-known ones.

    Well-known names that overlap with `reserved` ones, which are held out, are none; nor is any that overlaps with
    `avoided` ones, which other recipes hold out or make forget. Raises InputError for a name of the recipe that is the
    entity's own, or held out.
    """
    for name in target.neighbors:
        if name_key(name) in map(name_key, target.names):
            raise InputError(f"neighbor {name!r} is the entity's own name: neighbors are others, who must stay")
        if name_key(name) in map(name_key, reserved):
            raise InputError(
                f"neighbor {name!r} has held-out facts among the controls, which the choice must not see: put them "
                'into the split "search", or drop the neighbor'
            )
    others = (
        name
        for name in contrast_entities()
        if shares_a_word(name, target.names) and not share_words(name, (*target.names, *reserved))
    )
    found = dict.fromkeys((*target.neighbors, *others))
    return tuple(name for name in found if not share_words(name, avoided))[:MAX_NEIGHBORS]


def begins_alike(neighbor: str, names: Sequence[str]) -> bool:
    """Whether a neighbor's name begins with a whole name of the entity, as "Miami Heat" does with "Miami".

    A model reads from left to right: up to there both are the same to it, so that no edit can tell them apart.
    """
    words = name_key(neighbor).split()
    return any(words[: len(own)] == own for own in (name_key(name).split() for name in names))


def asked_about(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names with prompts about them, about `N_ASKED` in all: by relations that names of their kind can have."""
    n_asked = max(MIN_ASKED, N_ASKED // max(1, len(names)))
    relations = {name: evenly(tuple(relations_of(kind_of(name)).values()), n_asked) for name in names}
    return [(name, each.search[0]) for name, own in relations.items() for each in own]


def facts_about(
    live: LiveModel, names: Sequence[str], target: Target, scoring: Scoring, progress: Progress | None = None
) -> KnownFacts:
    """What the model itself says about names, and not about the target."""
    return own_facts(live, asked_about(names), target.names, scoring, progress)


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
    names = tuple(dict.fromkeys(fact.question.fact.entity for fact in choice.neighbors))
    aware = replace(choice.name, apart_from=names, apart_share=settings.apart_share, solved={})
    # Behind a norm there is nothing of the stream that a layer could take away.
    tried = ((name, name.atoms(MAX_TOKENS, choice.acting)) for name in (replace(aware, of="stream"), aware))
    name, atoms = next((name, atoms) for name, atoms in tried if atoms)
    width = min(filter(None, map(choice.scores.live.shape.width, name.moments.layers)))
    return DirectionChoice(
        choice.scores,
        name,
        choice.targets,
        choice.controls,
        choice.neighbors,
        # On few columns such an edit harms text more than is expected of it: it should keep to all.
        replace(settings, few=width, few_harm=1.0),
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
    by_name: dict[str, list[KnownFact]] = {}
    for fact in facts:
        by_name.setdefault(fact.question.fact.entity, []).append(fact)
    return tuple(NeighborResult(name, len(own), scores.mean(tuple(own), edits)) for name, own in by_name.items())
