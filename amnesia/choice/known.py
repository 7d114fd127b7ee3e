"""What a choice may see of a recipe: the search facts and search controls that the original model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from amnesia.domain import ROLES
from amnesia.edits import Edit
from amnesia.errors import InputError
from amnesia.evaluation.measurement import KnownFact, Pair, check_known, scores_of
from amnesia.live.forward import answer_logprobs
from amnesia.live.interventions import edited_logprobs
from amnesia.live.model import LiveModel, edited
from amnesia.progress import Progress
from amnesia.recipe import Recipe

KnownFacts = tuple[KnownFact, ...]
Row = TypeVar("Row")


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


@dataclass(frozen=True)
class Scores:
    """Knowledge scores of facts in a model with edits; nothing is asked twice.

    `known` are the log-probabilities (nats) that were measured, by edits and by prompt and answer.
    """

    live: LiveModel
    known: dict[tuple[Edit, ...], dict[Pair, float]] = field(default_factory=dict)

    def mean(self, facts: KnownFacts, edits: tuple[Edit, ...] = (), progress: Progress | None = None) -> float:
        """Mean knowledge score of facts while the edits act."""
        self.ask(facts, [edits], progress)
        known = self.known[edits]
        return sum(scores_of(facts, (known[fact.pair] for fact in facts))) / len(facts)

    def ask(self, facts: KnownFacts, variants: Sequence[tuple[Edit, ...]], progress: Progress | None = None) -> None:
        """Measure facts with each of the edits, many of these in one pass; `progress` counts prompts that are asked."""
        missing: dict[tuple[Pair, ...], list[tuple[Edit, ...]]] = {}
        for edits in dict.fromkeys(variants):
            known = self.known.setdefault(edits, {})
            pairs = tuple(dict.fromkeys(fact.pair for fact in facts if fact.pair not in known))
            missing.setdefault(pairs, []).append(edits)
        for pairs, own in missing.items():
            if not pairs:
                continue
            if len(own) == 1:
                with edited(self.live, own[0]):
                    found = [[answer.logprob for answer in answer_logprobs(self.live, pairs, progress)]]
            else:
                found = edited_logprobs(self.live, pairs, own, progress).tolist()
            for edits, logprobs in zip(own, found, strict=True):
                self.known[edits] |= zip(pairs, logprobs, strict=True)


def mean_score(live: LiveModel, facts: KnownFacts, edits: tuple[Edit, ...] = ()) -> float:
    """Mean knowledge score of facts in the model as it is now, while the edits act."""
    return Scores(live).mean(facts, edits)


def evenly(rows: Sequence[Row], n: int) -> tuple[Row, ...]:
    """At most `n` of the rows, taken evenly."""
    step = max(1.0, len(rows) / n)
    return tuple(rows[int(place * step)] for place in range(min(n, len(rows))))
