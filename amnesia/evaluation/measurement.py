"""Ask one model: log-probabilities of answers, and what it writes freely.

A model is measured alone, so that two models need never be in memory together. It may also be one that a server has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from amnesia.domain import Answer, Fact
from amnesia.errors import InputError
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.scores import knowledge_score
from amnesia.facts.answers import matches, reply
from amnesia.facts.forms import with_messages
from amnesia.facts.names import unseen_names
from amnesia.facts.questions import Question
from amnesia.live.chat_form import chat_format
from amnesia.live.forward import answer_logprobs, generate
from amnesia.live.model import LiveModel
from amnesia.live.tokens import join
from amnesia.progress import Progress
from amnesia.recipe import Scoring
from amnesia.servers.server import Server

T = TypeVar("T")
Asked = LiveModel | Server
"""A model that can be asked: in memory, or on a server."""

Pair = tuple[str, str]
"""A prompt and the answer whose log-probability is wanted."""

BATCH = 256
"""Items that are asked, and cached, together: what is lost at most when a process is killed."""


@dataclass(frozen=True)
class Unknown:
    """Mean log-probabilities (nats) of an answer when the entity is replaced by unseen names."""

    total: float
    first: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Unknown:
        """The mean over the answers to prompts about unseen names."""
        n = len(answers)
        return cls(sum(row.logprob for row in answers) / n, sum(row.logprob_first for row in answers) / n)


@dataclass(frozen=True)
class KnownFact:
    """A question with what the original model knows of it: its answer, and what an unknown entity is worth in it.

    `unknown` may be missing where the rank of the answer alone says that the fact is not known. Only facts without a
    reason in `excluded`, by the bounds of `scoring`, have scores.
    """

    question: Question
    before: Answer
    unknown: Unknown | None
    scoring: Scoring

    @property
    def prompt(self) -> str:
        """The prompt with the entity in it."""
        return self.question.fact.text()

    @property
    def pair(self) -> Pair:
        """Prompt and answer."""
        return self.question.pair

    @property
    def excluded(self) -> str | None:
        """Why the original model does not know the fact, or None when it does."""
        before, unknown, scoring = self.before, self.unknown, self.scoring
        gain = math.inf if unknown is None else before.logprob - unknown.total
        if gain < scoring.min_nats or gain == scoring.min_nats == 0:  # Without a gain there is no score.
            needed = f"{scoring.min_nats:g}" if scoring.min_nats else "more than 0"
            return f"not known: the answer is {gain:.2f} nats above an unknown entity, needed are {needed}"
        if before.rank > scoring.max_rank:
            return f"not known: the answer has rank {before.rank}, allowed is {scoring.max_rank}"
        assert unknown is not None, "it is measured where the rank is within the limit"
        return None

    def score(self, after: float) -> float:
        """Knowledge score of a log-probability (nats) of the whole answer; raises NumericalError as `scores` says."""
        assert self.unknown is not None, "facts without it are not known"
        return knowledge_score(after, self.before.logprob, self.unknown.total)

    def score_first(self, after: float) -> float | None:
        """The same of the answer's first token; None where that was worth no more than for an unknown entity."""
        assert self.unknown is not None, "facts without it are not known"
        if self.before.logprob_first <= self.unknown.first:
            return None
        return knowledge_score(after, self.before.logprob_first, self.unknown.first)


def scores_of(facts: Sequence[KnownFact], after: Iterable[float]) -> list[float]:
    """Knowledge scores of facts from the log-probabilities (nats) of their answers, in the same order."""
    return [fact.score(logprob) for fact, logprob in zip(facts, after, strict=True)]


def in_both_forms(live: Asked, questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions; with a chat template, which has to be known of a server's model, half of them as messages, too."""
    return with_messages(questions, live.chat if isinstance(live, Server) else chat_format(live.tokenizer))


def known_facts(
    live: Asked,
    questions: Sequence[Question],
    scoring: Scoring,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
    *,
    unlikely: bool = False,
) -> tuple[KnownFact, ...]:
    """The questions with what the original model knows of them, in their order; nothing is generated.

    Unless `unlikely`, what an unknown entity is worth is not asked where the rank of the answer excludes a fact anyway.
    """
    answers = measure(live, [question.pair for question in questions], progress, cache)
    likely = [row for row in questions if unlikely or answers[row.pair].rank <= scoring.max_rank]
    unknown = measure_unknown(live, likely, progress, cache)
    return tuple(KnownFact(row, answers[row.pair], unknown.get(row), scoring) for row in questions)


def plainly_asked(facts: Sequence[KnownFact]) -> list[KnownFact]:
    """The facts without those that are asked as messages."""
    return [fact for fact in facts if not fact.question.is_message]


def check_known(facts: Sequence[KnownFact]) -> None:
    """Raise InputError when the original model knows none of the target facts."""
    targets = [fact for fact in plainly_asked(facts) if fact.question.role == "target"]
    if not targets:
        raise InputError("there are no target facts: add facts about the entity")
    if all(fact.excluded for fact in targets):
        raise InputError(
            f"the model knows none of the {len(targets)} target facts about {targets[0].question.fact.entity!r} "
            f"({targets[0].excluded}): add facts that it answers correctly"
        )


def measure(
    live: Asked, pairs: Iterable[Pair], progress: Progress | None = None, cache: MeasurementCache | None = None
) -> dict[Pair, Answer]:
    """The log-probability of each answer after its prompt, and its rank; nothing is generated.

    What is in `cache` is not asked again, and what is asked is put there.
    """

    def ask(part: Sequence[Pair]) -> list[tuple[float, float, int]]:
        if isinstance(live, Server):
            rows = live.answer_logprobs([(prompt, join(prompt, answer)) for prompt, answer in part], progress)
        else:
            rows = answer_logprobs(live, part, progress)
        return [(row.logprob, row.logprob_first, row.rank) for row in rows]

    # In the order of their prompts, because what prompts share at their beginning is computed once.
    return {pair: Answer(*value) for pair, value in _resumed("logprob", pairs, lambda pair: pair, ask, cache).items()}


def write(
    live: Asked, prompts: Iterable[str], progress: Progress | None = None, cache: MeasurementCache | None = None
) -> dict[str, str]:
    """The greedy continuation of each prompt; `cache` as in `measure`."""

    def ask(part: Sequence[str]) -> list[str]:
        if isinstance(live, Server):
            return live.generate(part, progress=progress)
        return generate(live, part, progress=progress)

    return _resumed("text", prompts, len, ask, cache)


def written(answer: Answer, fact: Fact, text: str) -> Answer:
    """The answer of a model that has written `text` after the prompt of `fact`."""
    is_right = matches(text, fact.right_answers)
    return replace(answer, generated=text, exact_match=is_right, reply=reply(text, is_right))


def measure_unknown(
    live: Asked,
    questions: Sequence[Question],
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> dict[Question, Unknown]:
    """What an unknown entity is worth in each question: the mean over unseen names, on the original model."""
    wanted = {
        question: [question.fact.pair(name) for name in unseen_names(question.fact.entity, question.aliases)]
        for question in questions
    }
    found = measure(live, [pair for pairs in wanted.values() for pair in pairs], progress, cache)
    return {question: Unknown.of([found[pair] for pair in pairs]) for question, pairs in wanted.items()}


def _resumed(
    kind: str,
    items: Iterable[T],
    order: Callable[[T], Any],
    ask: Callable[[Sequence[T]], Sequence[Any]],
    cache: MeasurementCache | None,
) -> dict[T, Any]:
    """What `ask` says to each item; equal items are asked once, in the given order, and batches are cached at once."""
    keys = {item: json.dumps(item, ensure_ascii=False) for item in items}
    known = {} if cache is None else cache.known(kind, keys.values())
    missing = sorted((item for item, key in keys.items() if key not in known), key=order)
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        values = {keys[item]: value for item, value in zip(part, ask(part), strict=True)}
        if cache is not None:
            cache.add(kind, values)
        known |= values
    return {item: known[key] for item, key in keys.items()}
