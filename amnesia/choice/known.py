"""What a choice may see of a recipe: the search facts and search controls that the original model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import Fact, FactKind
from amnesia.errors import InputError
from amnesia.forward import AnswerLogprob, answer_logprobs
from amnesia.measurement import Unknown, check_known, why_excluded
from amnesia.model import LiveModel
from amnesia.questions import Question
from amnesia.recipe import Scoring
from amnesia.scores import knowledge_score

SEARCH_KINDS: tuple[FactKind, FactKind] = ("target", "control")


@dataclass(frozen=True)
class Known:
    """Facts that the original model knows, with its log-probabilities (nats) and those of an unknown entity."""

    facts: tuple[Fact, ...]
    before: tuple[float, ...]
    unknown: tuple[float, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Prompts with their answers."""
        return [(fact.text(), fact.answer) for fact in self.facts]

    def mean_score(self, live: LiveModel) -> float:
        """Mean knowledge score of the model as it is now."""
        after = (answer.total for answer in answer_logprobs(live, self.pairs))
        return sum(map(knowledge_score, after, self.before, self.unknown)) / len(self.facts)

    def some(self, n: int) -> Known:
        """At most `n` of the facts, taken evenly."""
        step = max(1.0, len(self.facts) / n)
        places = [int(place * step) for place in range(min(n, len(self.facts)))]
        parts = (self.facts, self.before, self.unknown)
        return Known(*(tuple(part[place] for place in places) for part in parts))


def select_known(
    questions: Sequence[Question],
    before: Sequence[AnswerLogprob],
    unknown: Sequence[Unknown | None],
    scoring: Scoring,
) -> tuple[Known, Known]:
    """Search facts and search controls that the original model knows; held-out questions are dropped here.

    Raises InputError when either is empty.
    """
    rows = [row for row in zip(questions, before, unknown, strict=True) if row[0].kind in SEARCH_KINDS]
    reasons = [why_excluded(answer, base, scoring) for _, answer, base in rows]
    check_known([question for question, _, _ in rows], reasons)
    targets, controls = (
        Known(
            tuple(question.fact for question, _, _ in chosen),
            tuple(answer.total for _, answer, _ in chosen),
            tuple(base.total for _, _, base in chosen if base is not None),
        )
        for kind in SEARCH_KINDS
        for chosen in [[row for row, reason in zip(rows, reasons, strict=True) if row[0].kind == kind and not reason]]
    )
    if not controls.facts:
        raise InputError(
            "the model knows none of the search controls: add facts about others that it answers correctly"
        )
    return targets, controls
