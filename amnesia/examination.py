"""All that is asked of one model in an evaluation, and the conclusion from two models that were asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.damage import Impression, damage, impression, impression_after
from amnesia.evaluation import Evaluation, compare
from amnesia.kept import Kept
from amnesia.measurement import Measurement, Unknown, measure, measure_unknown_of_likely, why_excluded, write
from amnesia.model import LiveModel, Progress
from amnesia.questions import Question
from amnesia.recipe import Scoring


@dataclass(frozen=True)
class Examination:
    """A model's answers to the questions, and its impression of other texts.

    Of the original model also what an unknown entity is worth in each question, None where the rank of the answer
    alone says that the fact is not known.
    """

    answers: Measurement
    impression: Impression
    unknown: tuple[Unknown | None, ...] = ()


def examine(
    live: LiveModel,
    questions: Sequence[Question],
    scoring: Scoring,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Examination:
    """Ask the original model.

    It writes only where it knows the fact, because nothing else is scored. Answers are kept in `kept`; texts, which
    take seconds, are read anew.
    """
    answers = measure(live, questions, generated=False, progress=progress, kept=kept).answers
    unknown = measure_unknown_of_likely(live, questions, answers, scoring, progress, kept)
    known = [why_excluded(answer, base, scoring) is None for answer, base in zip(answers, unknown, strict=True)]
    written = write(live, questions, known, progress, kept)
    prompts = [question.fact.text() for question in questions if "control" in question.kind]
    return Examination(Measurement(answers, written), impression(live, prompts, progress), unknown)


def examine_after(
    live: LiveModel,
    questions: Sequence[Question],
    original: Examination,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Examination:
    """Ask the edited model the same."""
    answers = measure(live, questions, generated=False, progress=progress, kept=kept).answers
    wanted = [text is not None for text in original.answers.generated or ()]
    written = write(live, questions, wanted, progress, kept)
    return Examination(Measurement(answers, written), impression_after(live, original.impression, progress))


def conclude(
    questions: Sequence[Question], before: Examination, after: Examination | None, scoring: Scoring
) -> Evaluation:
    """The comparison of two models, or what the first knows where there is no second; see `evaluation.compare`."""
    harm, kl = damage(before.impression, None if after is None else after.impression)
    return compare(
        questions, before.unknown, before.answers, None if after is None else after.answers, scoring, harm, kl
    )
