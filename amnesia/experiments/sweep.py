"""An edit at many multipliers: curves of what the model says of facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import ROLES, Cell
from amnesia.errors import InputError
from amnesia.evaluation.measurement import known_facts, scores_of
from amnesia.evaluation.results import ScoreCurve
from amnesia.evaluation.strength import SweptFact, curves_of, swept_fact
from amnesia.facts.questions import questions_of
from amnesia.live.interventions import Asked, varied_logprobs
from amnesia.live.model import LiveModel
from amnesia.progress import Progress
from amnesia.recipe import Recipe


@dataclass(frozen=True)
class Sweep:
    """Curves of targets and controls over `multipliers`, which always hold 1 and 0. `tokens` is "all" or "entity"."""

    model: str
    entity: str
    cells: tuple[Cell, ...]
    tokens: str
    multipliers: tuple[float, ...]
    curves: tuple[ScoreCurve, ...]
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
    facts = known_facts(live, questions_of(recipe), recipe.scoring, progress, unlikely=True)
    known = [fact for fact in facts if not fact.excluded]
    for role in ROLES:
        if not any(fact.question.role == role for fact in known):
            raise InputError(f"the model knows no {role} of the recipe: add facts that it answers correctly")
    asked = [Asked(fact.prompt, fact.entity, fact.answer) for fact in (row.question.fact for row in known)]
    logprobs = varied_logprobs(live, asked, cells, multipliers, entity_only=entity_only, progress=progress)
    scores = [scores_of(known, line) for line in logprobs.tolist()]
    places = {fact: place for place, fact in enumerate(known)}
    return Sweep(
        live.label,
        recipe.target.entity,
        tuple(cells),
        "entity" if entity_only else "all",
        tuple(multipliers),
        curves_of(facts, scores),
        tuple(swept_fact(fact, [] if fact.excluded else [line[places[fact]] for line in scores]) for fact in facts),
    )
