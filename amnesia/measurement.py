"""Ask one model: log-probabilities of answers, and what it writes freely.

A model is measured alone, so that two models need never be in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from amnesia.errors import InputError
from amnesia.forward import AnswerLogprob, answer_logprobs, generate
from amnesia.kept import Kept
from amnesia.model import LiveModel, Progress
from amnesia.prompts import unseen_names
from amnesia.questions import Question
from amnesia.recipe import Scoring

T = TypeVar("T")

BATCH = 256
"""Items that are asked, and kept, together: what is lost at most when a process is killed."""


@dataclass(frozen=True)
class Unknown:
    """Mean log-probabilities (nats) of an answer when the entity is replaced by unseen names."""

    total: float
    first: float


@dataclass(frozen=True)
class Measurement:
    """What one model makes of the questions, in their order; texts are None where it was not asked to write."""

    answers: tuple[AnswerLogprob, ...]
    generated: tuple[str | None, ...] | None = None


def measure(
    live: LiveModel,
    questions: Sequence[Question],
    *,
    generated: bool = True,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Measurement:
    """Log-probability of each answer, and, unless `generated` is false, the greedy continuation of each prompt.

    What is in `kept` is not asked again, and what is asked is put there.
    """
    pairs = [(question.fact.text(), question.fact.answer) for question in questions]
    answers = tuple(_logprobs(live, pairs, progress, kept))
    everything = [True] * len(questions)
    return Measurement(answers, write(live, questions, everything, progress, kept) if generated else None)


def write(
    live: LiveModel,
    questions: Sequence[Question],
    wanted: Sequence[bool],
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[str | None, ...]:
    """The greedy continuation of each prompt that is wanted, and None for the others."""
    prompts = [row.fact.text() for row, asked in zip(questions, wanted, strict=True) if asked]
    texts = iter(_resumed("text", prompts, len, lambda part: generate(live, part, progress=progress), kept))
    return tuple(next(texts) if asked else None for asked in wanted)


def measure_unknown(
    live: LiveModel, questions: Sequence[Question], progress: Progress | None = None, kept: Kept | None = None
) -> tuple[Unknown, ...]:
    """What an unknown entity is worth in each question: the mean over unseen names, on the original model."""
    wanted = [
        [
            (question.fact.text(name), question.fact.answer)
            for name in unseen_names(question.fact.entity, question.aliases)
        ]
        for question in questions
    ]
    flat = [pair for pairs in wanted for pair in pairs]
    found = dict(zip(flat, _logprobs(live, flat, progress, kept), strict=True))
    return tuple(
        Unknown(
            sum(found[pair].total for pair in pairs) / len(pairs), sum(found[pair].first for pair in pairs) / len(pairs)
        )
        for pairs in wanted
    )


def _logprobs(
    live: LiveModel, pairs: Sequence[tuple[str, str]], progress: Progress | None, kept: Kept | None
) -> list[AnswerLogprob]:
    def ask(part: Sequence[tuple[str, str]]) -> list[tuple[float, float, int]]:
        return [(row.total, row.first, row.rank) for row in answer_logprobs(live, part, progress)]

    # In the order of their prompts, because what prompts share at their beginning is computed once.
    return [AnswerLogprob(*value) for value in _resumed("logprob", pairs, lambda pair: pair, ask, kept)]


def _resumed(
    kind: str,
    items: Sequence[T],
    order: Callable[[T], Any],
    ask: Callable[[Sequence[T]], Sequence[Any]],
    kept: Kept | None,
) -> list[Any]:
    """What `ask` says to each item; equal items are asked once, in the given order, and batches are kept at once."""
    keys = {item: json.dumps(item, ensure_ascii=False) for item in items}
    known = {} if kept is None else kept.known(kind)
    missing = sorted((item for item, key in keys.items() if key not in known), key=order)
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        values = {keys[item]: value for item, value in zip(part, ask(part), strict=True)}
        if kept is not None:
            kept.keep(kind, values)
        known |= values
    return [known[keys[item]] for item in items]


def measure_unknown_of_likely(
    live: LiveModel,
    questions: Sequence[Question],
    answers: Sequence[AnswerLogprob],
    scoring: Scoring,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Unknown | None, ...]:
    """Like `measure_unknown`, but None where the rank of the answer alone already says that it is not known."""
    likely = [answer.rank <= scoring.max_rank for answer in answers]
    asked = [question for question, wanted in zip(questions, likely, strict=True) if wanted]
    found = iter(measure_unknown(live, asked, progress, kept))
    return tuple(next(found) if wanted else None for wanted in likely)


def why_excluded(before: AnswerLogprob, unknown: Unknown | None, scoring: Scoring) -> str | None:
    """Why the original model does not know a fact, or None when it does.

    `unknown` may be missing where the rank is beyond the limit.
    """
    if unknown is not None and (gain := before.total - unknown.total) < scoring.min_nats:
        return f"not known: the answer is {gain:.2f} nats above an unknown entity, needed are {scoring.min_nats:g}"
    if before.rank > scoring.max_rank:
        return f"not known: the answer has rank {before.rank}, allowed is {scoring.max_rank}"
    assert unknown is not None, "it is measured where the rank is within the limit"
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
