"""All that is asked of one model in an evaluation, and the conclusion from two models that were asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.damage import Impression, damage, impression, impression_after
from amnesia.evaluation import Evaluation, compare
from amnesia.kept import Kept
from amnesia.measurement import Measurement, Unknown, measure
from amnesia.model import LiveModel, Progress
from amnesia.questions import Question
from amnesia.recipe import Scoring


@dataclass(frozen=True)
class Examination:
    """A model's answers to the questions, and its impression of other texts."""

    answers: Measurement
    impression: Impression


def examine(
    live: LiveModel, questions: Sequence[Question], progress: Progress | None = None, kept: Kept | None = None
) -> Examination:
    """Ask the original model. Answers are kept in `kept`; texts, which take seconds, are read anew."""
    prompts = [question.fact.text() for question in questions if "control" in question.kind]
    return Examination(measure(live, questions, progress=progress, kept=kept), impression(live, prompts, progress))


def examine_after(
    live: LiveModel,
    questions: Sequence[Question],
    original: Examination,
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> Examination:
    """Ask the edited model the same."""
    return Examination(
        measure(live, questions, progress=progress, kept=kept), impression_after(live, original.impression, progress)
    )


def conclude(
    questions: Sequence[Question],
    unknown: Sequence[Unknown],
    before: Examination,
    after: Examination | None,
    scoring: Scoring,
) -> Evaluation:
    """The comparison of two models, or what the first knows where there is no second; see `evaluation.compare`."""
    harm, kl = damage(before.impression, None if after is None else after.impression)
    return compare(questions, unknown, before.answers, None if after is None else after.answers, scoring, harm, kl)
