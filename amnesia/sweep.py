"""Knowledge scores over a range of multipliers: as before at 1, zero ablation at 0, negative ablation below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import Cell, Fact
from amnesia.errors import InputError
from amnesia.forward import answer_logprobs
from amnesia.interventions import Asked, varied_logprobs
from amnesia.measurement import measure_unknown, why_excluded
from amnesia.model import LiveModel, Progress
from amnesia.questions import Question, questions_of
from amnesia.recipe import Recipe
from amnesia.scores import knowledge_score


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
        tuple(_curve(kind, facts) for kind in ("target", "control")),
        facts,
    )


def _kind(question: Question) -> str:
    return "target" if "target" in question.kind else "control"


def _asked(fact: Fact) -> Asked:
    return Asked(fact.prompt, fact.entity, fact.answer)


def _curve(kind: str, facts: Sequence[SweptFact]) -> Curve:
    rows = [fact for fact in facts if fact.kind == kind]
    scored = [fact.knowledge_scores for fact in rows if fact.excluded is None]
    n = len(scored)
    means, errors = [], []
    for values in zip(*scored, strict=True):
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
        means.append(mean)
        errors.append(math.sqrt(variance / n))
    return Curve(kind, n, len(rows) - n, tuple(means), tuple(errors))
