"""Ask one model: log-probabilities of answers, and what it writes freely.

A model is measured alone, so that two models need never be in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.errors import InputError
from amnesia.model import AnswerLogprob, LiveModel, Progress, answer_logprobs, generate
from amnesia.prompts import unseen_names
from amnesia.questions import Question
from amnesia.recipe import Scoring


@dataclass(frozen=True)
class Unknown:
    """Mean log-probabilities (nats) of an answer when the entity is replaced by unseen names."""

    total: float
    first: float


@dataclass(frozen=True)
class Measurement:
    """What one model makes of the questions, in their order; `generated` is None where it was not asked to write."""

    answers: tuple[AnswerLogprob, ...]
    generated: tuple[str, ...] | None = None


def measure(
    live: LiveModel, questions: Sequence[Question], *, generated: bool = True, progress: Progress | None = None
) -> Measurement:
    """Log-probability of each answer, and the greedy continuation of each prompt."""
    pairs = [(question.fact.text(), question.fact.answer) for question in questions]
    return Measurement(
        tuple(answer_logprobs(live, pairs, progress)),
        tuple(generate(live, [prompt for prompt, _ in pairs], progress=progress)) if generated else None,
    )


def measure_unknown(
    live: LiveModel, questions: Sequence[Question], progress: Progress | None = None
) -> tuple[Unknown, ...]:
    """What an unknown entity is worth in each question: the mean over unseen names, on the original model."""
    wanted = [
        [
            (question.fact.text(name), question.fact.answer)
            for name in unseen_names(question.fact.entity, question.aliases)
        ]
        for question in questions
    ]
    # Many facts share a wording and an answer; each is asked once.
    unique = list(dict.fromkeys(pair for pairs in wanted for pair in pairs))
    found = dict(zip(unique, answer_logprobs(live, unique, progress), strict=True))
    return tuple(
        Unknown(
            sum(found[pair].total for pair in pairs) / len(pairs), sum(found[pair].first for pair in pairs) / len(pairs)
        )
        for pairs in wanted
    )


def why_excluded(before: AnswerLogprob, unknown: Unknown, scoring: Scoring) -> str | None:
    """Why the original model does not know a fact, or None when it does."""
    gain = before.total - unknown.total
    if gain < scoring.min_nats:
        return f"not known: the answer is {gain:.2f} nats above an unknown entity, needed are {scoring.min_nats:g}"
    if before.rank > scoring.max_rank:
        return f"not known: the answer has rank {before.rank}, allowed is {scoring.max_rank}"
    return None


def check_known(questions: Sequence[Question], excluded: Sequence[str | None]) -> None:
    """Raise InputError when the original model knows none of the target facts."""
    targets = [reason for question, reason in zip(questions, excluded, strict=True) if "target" in question.kind]
    known = [reason for reason in targets if reason is None]
    if not known:
        entity = next((question.fact.entity for question in questions if "target" in question.kind), "the entity")
        raise InputError(
            f"the model knows none of the {len(targets)} target facts about {entity!r} ({targets[0]}): "
            "add facts that it answers correctly"
            if targets
            else "there are no target facts: add facts about the entity"
        )
