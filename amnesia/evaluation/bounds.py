"""What an evaluation measured, beside the bounds that a recipe sets. Pure functions of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia.evaluation.labels import facts_label
from amnesia.evaluation.results import ALL, Aggregate, Damage, Estimate
from amnesia.recipe import Accept


@dataclass(frozen=True)
class Check:
    """A number that a bound may be set for: a mean knowledge score, or perplexity after the edit over that before.

    `n` counts facts, or words of a language; `low` and `high` end the 95 % interval, where there is one. `limit` and
    `passed` are None where no bound is set; `is_upper` says that the limit is a highest value.
    """

    name: str
    n: int
    value: float
    low: float | None
    high: float | None
    is_upper: bool
    limit: float | None
    passed: bool | None


def checks(aggregates: Sequence[Aggregate], damage: Damage, accept: Accept | None = None) -> tuple[Check, ...]:
    """What an evaluation measured beside the bounds of a recipe; a language that the original model is not fluent in
    has none, and without a recipe nothing has."""
    found = []
    for row in aggregates:
        if row.group != ALL:
            continue
        limit = None if accept is None else accept.limit(row.role, row.split)
        score, name = row.knowledge_score, f"knowledge score: {facts_label(row.role, row.split)}"
        found.append(_check(name, row.n, score.mean, limit, row.role == "target", score))
    for text in damage.languages:
        limit = accept.max_perplexity if accept is not None and text.fluent else None
        found.append(_check(f"perplexity ratio: {text.language}", text.n_words, text.perplexity_ratio, limit, True))
    return tuple(found)


def _check(
    name: str, n: int, value: float, limit: float | None, is_upper: bool, interval: Estimate | None = None
) -> Check:
    passed = None if limit is None else value <= limit if is_upper else value >= limit
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return Check(name, n, value, low, high, is_upper, limit, passed)
