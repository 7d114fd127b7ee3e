"""Knowledge scores and their aggregates: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from amnesia.errors import NumericalError
from amnesia.evaluation.results import Estimate

N_RESAMPLES = 10_000

_MAX_DRAWS = 4_000_000
"""Indices that are drawn at a time, for memory."""


def knowledge_score(after: float, before: float, unknown: float) -> float:
    """How much of a fact is left: (after − unknown) / (before − unknown) of log-probabilities in nats.

    1 is as before the edit, 0 like an unknown entity; below 0 the answer is even less likely than that. From "Friends
    and Grandmothers in Silico" (Yona, Barzilay and Karasik, 2026), technical details.

    Raises NumericalError for NaN, infinity, and for a fact that was worth no more than an unknown entity.
    """
    if not all(map(math.isfinite, (after, before, unknown))):
        raise NumericalError(f"log-probabilities {after}, {before}, {unknown} are not finite: the model is damaged")
    if before <= unknown:
        raise NumericalError("a fact that the model does not know has no knowledge score: exclude it first")
    return (after - unknown) / (before - unknown)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of `values` with its 95 % percentile bootstrap interval.

    Of changes (after − before of the same prompt) this is the paired bootstrap: prompts are drawn with both of their
    values. Raises NumericalError for NaN or infinity and for an empty list.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or not np.isfinite(array).all():
        raise NumericalError("mean of no values, or of NaN or infinity: there is nothing to report")
    if (array == array[0]).all():
        return Estimate(float(array[0]), float(array[0]), float(array[0]))
    generator = np.random.default_rng(0)
    step = max(1, _MAX_DRAWS // array.size)
    means = [
        array[generator.integers(0, array.size, (min(step, N_RESAMPLES - start), array.size))].mean(1)
        for start in range(0, N_RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high))
