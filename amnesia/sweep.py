"""Knowledge scores over a range of multipliers: as before at 1, zero ablation at 0, negative ablation below.

The same for a whole edit, whose cells and directions have multipliers of their own: over its strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import Cell, Edit, Fact, weakened
from amnesia.errors import InputError, NumericalError
from amnesia.forward import AnswerLogprob, answer_logprobs
from amnesia.interventions import Asked, varied_logprobs
from amnesia.measurement import Unknown, measure_unknown, why_excluded
from amnesia.model import LiveModel, Progress, edited
from amnesia.questions import Question, questions_of
from amnesia.recipe import Recipe, Scoring
from amnesia.scores import knowledge_score

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class SweptFact:
    """One fact: log-probability for an unknown entity and knowledge score at each multiplier, or why it has none."""

    kind: str
    entity: str
    prompt: str
    answer: str
    logprob_unknown: float
    knowledge_scores: tuple[float, ...]
    excluded: str | None


@dataclass(frozen=True)
class Curve:
    """Mean knowledge score at each multiplier and its standard error (0 for a single fact), over `n` scored facts."""

    kind: str
    n: int
    n_excluded: int
    mean: tuple[float, ...]
    standard_error: tuple[float, ...]


@dataclass(frozen=True)
class Sweep:
    """Curves of targets and controls over `multipliers`, which always hold 1 and 0. `tokens` is "all" or "entity"."""

    model: str
    entity: str
    cells: tuple[Cell, ...]
    tokens: str
    multipliers: tuple[float, ...]
    curves: tuple[Curve, ...]
    facts: tuple[SweptFact, ...]


@dataclass(frozen=True)
class StrengthSweep:
    """Curves of targets and controls over the `strengths` of an edit; a kind without known facts has no curve."""

    strengths: tuple[float, ...]
    curves: tuple[Curve, ...]


def grid(low: float, steps: int) -> tuple[float, ...]:
    """`steps` multipliers from 1 down to `low`, evenly spaced, and 0 (zero ablation) where it falls between them.

    Raises InputError for fewer than two steps and for a `low` that is not below 1.
    """
    if steps < 2 or not -math.inf < low < 1:
        raise InputError(f"{steps} multipliers from 1 to {low:g}: give at least 2, ending below 1")
    values = {round(1 + (low - 1) * step / (steps - 1), 6) for step in range(steps)}
    return tuple(sorted(values | ({0.0} if low < 0 else set()), reverse=True))


def sweep(
    live: LiveModel,
    recipe: Recipe,
    cells: Sequence[Cell],
    multipliers: Sequence[float],
    *,
    entity_only: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Scale `cells` by each multiplier and score all facts and controls of the recipe.

    With `entity_only` the cells are scaled at the last token of the entity alone (in a control: of the control's
    entity), else at every token, as a permanent edit acts. Raises InputError when no target or no control is known.
    """
    questions = questions_of(recipe)
    unknown = measure_unknown(live, questions, progress)
    before = answer_logprobs(live, [(row.fact.text(), row.fact.answer) for row in questions], progress)
    reasons = [why_excluded(one, base, recipe.scoring) for one, base in zip(before, unknown, strict=True)]
    known = [index for index, reason in enumerate(reasons) if reason is None]
    for kind in ("target", "control"):
        if not any(kind in questions[index].kind for index in known):
            raise InputError(f"the model knows no {kind} of the recipe: add facts that it answers correctly")
    asked = [_asked(questions[index].fact) for index in known]
    logprobs = varied_logprobs(live, asked, cells, multipliers, entity_only=entity_only, progress=progress)
    scores = {
        index: tuple(
            knowledge_score(value, before[index].total, unknown[index].total) for value in logprobs[:, n].tolist()
        )
        for n, index in enumerate(known)
    }
    facts = tuple(
        SweptFact(
            _kind(question),
            question.fact.entity,
            question.fact.text(),
            question.fact.answer,
            unknown[index].total,
            scores.get(index, ()),
            reasons[index],
        )
        for index, question in enumerate(questions)
    )
    return Sweep(
        live.name,
        recipe.entity,
        tuple(cells),
        "entity" if entity_only else "all",
        tuple(multipliers),
        _curves([(fact.kind, fact.knowledge_scores) for fact in facts]),
        facts,
    )


def sweep_strength(
    live: LiveModel,
    questions: Sequence[Question],
    before: Sequence[AnswerLogprob],
    unknown: Sequence[Unknown | None],
    edits: Sequence[Edit],
    scoring: Scoring,
    *,
    strengths: Sequence[float] = STRENGTHS,
    progress: Progress | None = None,
) -> StrengthSweep:
    """Score the facts that the original model `live` knows while `edits` act with each of the strengths.

    At strength s a multiplier m becomes 1 + s (m − 1): 0 is the original model, 1 the edit, and more goes beyond
    it. `before` and `unknown` are measurements of the same questions. The curves end early where a strength above 1
    gives NaN or infinity; below, NumericalError is raised.
    """
    known = [
        index
        for index, (one, base) in enumerate(zip(before, unknown, strict=True))
        if why_excluded(one, base, scoring) is None
    ]
    pairs = [(questions[index].fact.text(), questions[index].fact.answer) for index in known]
    scores: list[list[float]] = [[] for _ in questions]
    reached = []
    for strength in strengths:
        try:
            with edited(live, [weakened(edit, strength) for edit in edits] if strength else ()):
                after = answer_logprobs(live, pairs, progress)
        except NumericalError:
            if strength <= 1:
                raise
            break
        reached.append(strength)
        for index, answer in zip(known, after, strict=True):
            base = unknown[index]
            assert base is not None, "facts without it are not known"
            scores[index].append(knowledge_score(answer.total, before[index].total, base.total))
    rows = [(_kind(question), tuple(row)) for question, row in zip(questions, scores, strict=True)]
    return StrengthSweep(tuple(reached), _curves(rows))


def _kind(question: Question) -> str:
    return "target" if "target" in question.kind else "control"


def _asked(fact: Fact) -> Asked:
    return Asked(fact.prompt, fact.entity, fact.answer)


def _curves(rows: Sequence[tuple[str, tuple[float, ...]]]) -> tuple[Curve, ...]:
    """Curves from kinds and knowledge scores; facts without scores were excluded."""
    curves = []
    for kind in ("target", "control"):
        found = [scores for name, scores in rows if name == kind]
        scored = [scores for scores in found if scores]
        if scored:
            means, errors = zip(*(_mean_and_error(values) for values in zip(*scored, strict=True)), strict=True)
            curves.append(Curve(kind, len(scored), len(found) - len(scored), means, errors))
    return tuple(curves)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return mean, math.sqrt(variance / n)
