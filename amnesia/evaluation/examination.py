"""All that is asked of one model in an evaluation, and the conclusion from two models that were asked the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from amnesia.domain import Answer
from amnesia.evaluation.ability import ability, right_choices
from amnesia.evaluation.comparison import Evaluation, compare
from amnesia.evaluation.damage import Impression, damage, impression, impression_after
from amnesia.evaluation.measurement import Asked, KnownFact, in_both_forms, known_facts, measure, write, written
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.facts.questions import Question
from amnesia.live.forward import as_generated, n_generated
from amnesia.progress import Progress
from amnesia.recipe import Scoring
from amnesia.servers.server import Server


@dataclass(frozen=True)
class Examination:
    """What the original model knows of the facts, its impression of other texts, and its right choices in the
    questions of general ability."""

    facts: tuple[KnownFact, ...]
    impression: Impression
    choices: tuple[bool, ...]


@dataclass(frozen=True)
class Reexamination:
    """The edited model's answers to the same facts, in their order, its impression of the same texts, its choices."""

    answers: tuple[Answer, ...]
    impression: Impression
    choices: tuple[bool, ...]


def examine(
    live: Asked,
    questions: Sequence[Question],
    scoring: Scoring,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
) -> Examination:
    """Ask the original model; with a chat template, half of the questions as messages, too.

    Answers are put into `cache`; texts, which take seconds, are read anew.
    """
    choices = right_choices(live, progress, cache)
    first = impression(live, control_prompts(questions), progress)
    facts = answered(live, in_both_forms(live, questions), scoring, progress, cache, texts_in(live, first))
    return Examination(facts, first, choices)


def texts_in(live: Asked, found: Impression) -> dict[str, str]:
    """What a model writes after control prompts, as `write` gives it, as far as its impression tells: all that the
    original writes, and of another what begins like that."""
    if found.continued is None or isinstance(live, Server):
        return {}
    texts = {}
    for prompt, row, n in zip(found.prompts, found.continued.rows, found.continued.n_likeliest, strict=True):
        tokens = row.ids[-row.n_answer :]
        if n >= n_generated(live, tokens):
            texts[prompt] = as_generated(live, tokens)
    return texts


def answered(
    live: Asked,
    questions: Sequence[Question],
    scoring: Scoring,
    progress: Progress | None = None,
    cache: MeasurementCache | None = None,
    texts: Mapping[str, str] | None = None,
) -> tuple[KnownFact, ...]:
    """What the original model knows of the questions, in their order, with what it writes after those that it knows.

    Nothing else is scored, so that it writes nothing else, and nothing after prompts whose `texts` are there already.
    """
    facts = known_facts(live, questions, scoring, progress, cache)
    texts = texts or {}
    prompts = [fact.prompt for fact in facts if not fact.excluded and fact.prompt not in texts]
    texts = {**texts, **write(live, prompts, progress, cache)}
    return tuple(
        fact if fact.excluded else replace(fact, before=written(fact.before, fact.question.fact, texts[fact.prompt]))
        for fact in facts
    )


def control_prompts(questions: Iterable[Question]) -> list[str]:
    """The prompts about others, after which the divergence is measured; messages are none."""
    return [row.fact.text() for row in questions if row.role == "control" and not row.is_message]


def examine_after(
    live: Asked, original: Examination, progress: Progress | None = None, cache: MeasurementCache | None = None
) -> Reexamination:
    """Ask the edited model the same."""
    choices = right_choices(live, progress, cache)
    seen = impression_after(live, original.impression, progress)
    found = measure(live, [fact.pair for fact in original.facts], progress, cache)
    prompts = [fact.prompt for fact in original.facts if not fact.excluded]
    texts = texts_in(live, seen)
    texts |= write(live, [prompt for prompt in prompts if prompt not in texts], progress, cache)
    answers = tuple(
        found[fact.pair] if fact.excluded else written(found[fact.pair], fact.question.fact, texts[fact.prompt])
        for fact in original.facts
    )
    return Reexamination(answers, seen, choices)


def conclude(before: Examination, after: Reexamination | None) -> Evaluation:
    """The comparison of two models, or what the first knows where there is no second; see `comparison.compare`."""
    harm, kl = damage(before.impression, None if after is None else after.impression)
    harm = replace(harm, ability=ability(before.choices, None if after is None else after.choices))
    return compare(before.facts, None if after is None else after.answers, harm, kl)
