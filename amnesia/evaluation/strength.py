"""Knowledge scores over a range of multipliers: as before at 1, zero ablation at 0, negative ablation below.

The same for a whole edit, whose cells and directions have multipliers of their own: over its strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.domain import ROLES
from amnesia.edits import Edit, weakened
from amnesia.errors import NumericalError
from amnesia.evaluation.labels import kind_of
from amnesia.evaluation.measurement import KnownFact, plainly_asked, scores_of
from amnesia.evaluation.results import ScoreCurve, StrengthSweep
from amnesia.live.forward import answer_logprobs
from amnesia.live.model import LiveModel, edited
from amnesia.progress import Progress

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class SweptFact:
    """One fact: log-probability for an unknown entity and knowledge score at each multiplier, or why it has none.

    `kind` is its role and split in one word, as reports have it.
    """

    kind: str
    entity: str
    prompt: str
    answer: str
    logprob_unknown: float
    knowledge_scores: tuple[float, ...]
    excluded: str | None


def swept_fact(known: KnownFact, scores: Sequence[float]) -> SweptFact:
    assert known.unknown is not None, "a sweep asks about unknown entities in every fact"
    fact = known.question.fact
    return SweptFact(
        kind_of(known.question.role, fact.split),
        fact.entity,
        fact.text(),
        fact.answer,
        known.unknown.total,
        tuple(scores),
        known.excluded,
    )


def sweep_strength(
    live: LiveModel,
    facts: Sequence[KnownFact],
    edits: Sequence[Edit],
    *,
    strengths: Sequence[float] = STRENGTHS,
    progress: Progress | None = None,
) -> StrengthSweep:
    """Score the facts that the original model `live` knows, as text, while `edits` act with each of the strengths.

    At strength s a multiplier m becomes 1 + s (m − 1): 0 is the original model, 1 the edit, and more goes beyond
    it. The curves end early where a strength above 1 gives NaN or infinity; below, NumericalError is raised.
    """
    facts = plainly_asked(facts)
    known = [fact for fact in facts if not fact.excluded]
    pairs = [fact.pair for fact in known]
    scores = []
    for strength in strengths:
        if not strength:  # As it was asked already.
            scores.append(scores_of(known, (fact.before.logprob for fact in known)))
            continue
        try:
            with edited(live, [weakened(edit, strength) for edit in edits]):
                after = answer_logprobs(live, pairs, progress)
        except NumericalError:
            if strength <= 1:
                raise
            break
        scores.append(scores_of(known, (answer.logprob for answer in after)))
    return StrengthSweep(tuple(strengths[: len(scores)]), curves_of(facts, scores))


def curves_of(facts: Sequence[KnownFact], scores: Sequence[Sequence[float]]) -> tuple[ScoreCurve, ...]:
    """Curves of each role; `scores` are those of the facts that are known, a row for each place on the curves."""
    roles = [fact.question.role for fact in facts if not fact.excluded]
    curves = []
    for role in ROLES:
        places = [place for place, own in enumerate(roles) if own == role]
        if places:
            points = [_mean_and_error([line[place] for place in places]) for line in scores]
            n_excluded = sum(fact.question.role == role for fact in facts) - len(places)
            means, errors = (tuple(point[side] for point in points) for side in (0, 1))
            curves.append(ScoreCurve(role, len(places), n_excluded, means, errors))
    return tuple(curves)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return mean, math.sqrt(variance / n)
