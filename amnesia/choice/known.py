"""What a choice may see of a recipe: the search facts and search controls that the original model knows."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia.domain import ROLES
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, check_known, scores_of
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import LiveModel
from amnesia.recipe import Recipe

KnownFacts = tuple[KnownFact, ...]


def select_known(facts: Sequence[KnownFact]) -> tuple[KnownFacts, KnownFacts]:
    """Search facts and search controls that the original model knows, in all forms in which they were asked.

    Held-out facts are dropped here. Raises InputError when either is empty.
    """
    search = [fact for fact in facts if fact.question.split == "search"]
    check_known(search)
    targets, controls = (
        tuple(fact for fact in search if fact.question.role == role and not fact.excluded) for role in ROLES
    )
    if not controls:
        raise InputError(
            "the model knows none of the search controls: add facts about others that it answers correctly"
        )
    return targets, controls


def reserved_names(recipe: Recipe) -> list[str]:
    """The entities of the held-out controls: all that the choice learns of them, in order to keep away from them."""
    return sorted({fact.entity for fact in recipe.controls if fact.split == "held_out"})


def mean_score(live: LiveModel, facts: KnownFacts) -> float:
    """Mean knowledge score of facts in the model as it is now."""
    after = (answer.logprob for answer in answer_logprobs(live, [fact.pair for fact in facts]))
    return sum(scores_of(facts, after)) / len(facts)


def some(facts: KnownFacts, n: int) -> KnownFacts:
    """At most `n` of the facts, taken evenly."""
    step = max(1.0, len(facts) / n)
    return tuple(facts[int(place * step)] for place in range(min(n, len(facts))))
