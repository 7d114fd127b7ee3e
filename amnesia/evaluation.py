"""Measure what a model knows, and compare the measurements before and after an edit.

A model is measured alone, so that two models need never be in memory together; the comparison is pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import Aggregate, Fact, FactKind, PromptScore
from amnesia.errors import InputError, NumericalError
from amnesia.model import AnswerLogprob, LiveModel, Progress, answer_logprobs, generate
from amnesia.prompts import neutral_texts, unseen_names
from amnesia.recipe import Accept, Recipe, Scoring
from amnesia.scores import knowledge_score, mean_interval

KINDS: tuple[FactKind, ...] = ("target", "held_out_target", "control", "held_out_control")

MAX_NATS_PER_WORD = 700.0
"""The exponential of a little more is beyond the range of floating-point numbers."""


@dataclass(frozen=True)
class Question:
    """A fact with its role in the evaluation, and the aliases of its entity."""

    kind: FactKind
    fact: Fact
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unknown:
    """Mean log-probabilities (nats) of an answer when the entity is replaced by unseen names."""

    total: float
    first: float


@dataclass(frozen=True)
class Measurement:
    """What one model makes of the questions, in their order, and its perplexity on held-out neutral text."""

    answers: tuple[AnswerLogprob, ...]
    generated: tuple[str, ...] | None
    perplexity: float


@dataclass(frozen=True)
class Evaluation:
    """Scores per prompt, their aggregates by kind, and the perplexity on neutral text before and after.

    An aggregate is missing where no fact of its kind was scored.
    """

    prompts: tuple[PromptScore, ...]
    aggregates: tuple[Aggregate, ...]
    perplexity_before: float
    perplexity_after: float

    def mean(self, kind: FactKind) -> float | None:
        """Mean knowledge score of one kind, or None where nothing of that kind was scored."""
        return next((row.mean for row in self.aggregates if row.kind == kind), None)

    def accepted(self, accept: Accept) -> bool:
        """Whether every bound holds. Kinds without scored facts pass; there is always a scored target."""
        target, held_out = self.mean("target"), self.mean("held_out_target")
        controls = [mean for kind in ("control", "held_out_control") if (mean := self.mean(kind)) is not None]
        return (
            target is not None
            and target <= accept.max_target
            and (held_out is None or held_out <= accept.max_held_out_target)
            and all(mean >= accept.min_control for mean in controls)
        )


def questions_of(recipe: Recipe) -> tuple[Question, ...]:
    """All facts of a recipe with their roles."""
    kinds: dict[tuple[bool, str], FactKind] = {
        (True, "search"): "target",
        (True, "held_out"): "held_out_target",
        (False, "search"): "control",
        (False, "held_out"): "held_out_control",
    }
    targets = tuple(Question(kinds[True, fact.split], fact, recipe.aliases) for fact in recipe.facts)
    return targets + tuple(Question(kinds[False, fact.split], fact) for fact in recipe.controls)


def measure(
    live: LiveModel, questions: Sequence[Question], *, generated: bool = True, progress: Progress | None = None
) -> Measurement:
    """Log-probability of each answer, greedy continuation of each prompt, and perplexity on held-out neutral text."""
    pairs = [(question.fact.text(), question.fact.answer) for question in questions]
    # The first word has no context to be predicted from, so the rest of the sentence is scored.
    neutral = [tuple(text.split(" ", 1)) for text in neutral_texts("held_out")]
    answers = answer_logprobs(live, [*pairs, *((first, rest) for first, rest in neutral)], progress)
    total = sum(answer.total for answer in answers[len(pairs) :])
    n_words = sum(len(rest.split()) for _, rest in neutral)
    if -total / n_words > MAX_NATS_PER_WORD:
        raise NumericalError(
            f"{live.name} gives neutral text {-total / n_words:.0f} nats per word, which has no finite perplexity: "
            "the edit has destroyed it, use smaller multipliers"
        )
    return Measurement(
        tuple(answers[: len(pairs)]),
        tuple(generate(live, [prompt for prompt, _ in pairs], progress=progress)) if generated else None,
        math.exp(-total / n_words),
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


def compare(
    questions: Sequence[Question],
    unknown: Sequence[Unknown],
    before: Measurement,
    after: Measurement,
    scoring: Scoring,
) -> Evaluation:
    """Knowledge scores from two measurements of the same questions.

    Facts that the original model does not know are listed with the reason and never scored. Raises InputError when no
    target fact is left.
    """
    prompts = []
    for index, question in enumerate(questions):
        old, new, base = before.answers[index], after.answers[index], unknown[index]
        reason = why_excluded(old, base, scoring)
        prompts.append(
            PromptScore(
                kind=question.kind,
                entity=question.fact.entity,
                prompt=question.fact.text(),
                answer=question.fact.answer,
                rank_before=old.rank,
                rank_after=new.rank,
                logprob_before=old.total,
                logprob_after=new.total,
                logprob_unknown=base.total,
                knowledge_score=None if reason else knowledge_score(new.total, old.total, base.total),
                knowledge_score_first=None
                if reason or old.first <= base.first
                else knowledge_score(new.first, old.first, base.first),
                generated_before=before.generated[index] if before.generated else None,
                generated_after=after.generated[index] if after.generated else None,
                excluded=reason,
            )
        )
    check_known(questions, [row.excluded for row in prompts])
    return Evaluation(
        tuple(prompts),
        tuple(row for kind in KINDS if (row := _aggregate(kind, prompts)) is not None),
        before.perplexity,
        after.perplexity,
    )


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


def _aggregate(kind: FactKind, prompts: Sequence[PromptScore]) -> Aggregate | None:
    rows = [row for row in prompts if row.kind == kind]
    scores = [row.knowledge_score for row in rows if row.knowledge_score is not None]
    if not scores:
        return None
    return Aggregate(kind, len(scores), len(rows) - len(scores), *mean_interval(scores))
