"""Which codes come nearest to a matrix that was changed, where it matters: at the entity's key and at everything else.

Rounding each weight by itself loses a large part of a small change. Here columns are rounded one after the other, and
each later column makes up for the errors of those before it (GPTQ, Frantar et al., arXiv 2210.17323) in the metric
H = D + 3·K·Kᵀ, where D holds the mean squares of the activations of everything that must stay and K the entities'
keys; then each is rounded once more in view of all others. As H is diagonal but for a few keys, its inverse is too, so
that a column costs no more than a few operations for each row.

Only operations that every machine rounds alike are used, and sums have a fixed order, because `verify` computes the
codes again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amnesia.weights.gguf.codes import BlockCodes

# How much an error at a key weighs against one at an ordinary activation of the same size.
_KEY_WEIGHT = 3.0
# Where codes end, columns that come early cannot be made up for by those after them. So all are looked at again, with
# the errors of all others known and a weight that leaves hardly any error at the key.
_FINAL_WEIGHT = 30.0
_FINAL_PASSES = 2
# Columns in which nothing was ever active would take any error; they count as having a little of the mean.
_DAMPING = 0.01


@dataclass(frozen=True)
class Metric:
    """What errors cost: `keys` (n_columns, n_keys), and `spread` (n_columns,), root mean squares of all the rest."""

    keys: np.ndarray
    spread: np.ndarray

    def diagonal(self) -> np.ndarray:
        """D, positive, (n_columns,)."""
        squares = self.spread * self.spread
        mean = float(np.add.accumulate(squares)[-1]) / len(squares)
        return squares + _DAMPING * mean if mean > 0 else np.ones_like(squares)

    def order(self) -> np.ndarray:
        """Columns from those that count most for a key to those that count least, whose errors stay small."""
        return np.argsort(-self.sizes(), kind="stable")

    def final_order(self) -> np.ndarray:
        """Columns from those that reach a key at the least cost to everything else."""
        return np.argsort(-self.sizes() / self.diagonal(), kind="stable")

    def sizes(self) -> np.ndarray:
        """Squares of the keys in each column, (n_columns,)."""
        sizes = np.zeros(len(self.keys))
        for key in self.keys.T:
            sizes += key * key
        return sizes

    def feedback(self, order: np.ndarray) -> np.ndarray:
        """What a column takes of the sum of key times error over all columns before it, (n_columns, n_keys).

        With R the columns that are left, this is D⁻¹K_i·(1 + K_RᵀD⁻¹K_R)⁻¹ (Woodbury); keys have their weight in them.
        """
        keys = self.weighted(_KEY_WEIGHT)[order]
        inverse = 1.0 / self.diagonal()[order]
        n_keys = keys.shape[1]
        outer = keys[:, :, None] * keys[:, None, :] * inverse[:, None, None]
        matrix = np.add.accumulate(outer[::-1], axis=0)[::-1] + np.eye(n_keys)
        solution = keys * inverse[:, None]
        # Elimination for all columns at once; the matrices are positive definite, so that no pivot is needed.
        for pivot in range(n_keys):
            for row in range(pivot + 1, n_keys):
                factor = matrix[:, row, pivot] / matrix[:, pivot, pivot]
                for column in range(pivot, n_keys):
                    matrix[:, row, column] -= factor * matrix[:, pivot, column]
                solution[:, row] -= factor * solution[:, pivot]
        for pivot in reversed(range(n_keys)):
            for column in range(pivot + 1, n_keys):
                solution[:, pivot] -= matrix[:, pivot, column] * solution[:, column]
            solution[:, pivot] /= matrix[:, pivot, pivot]
        return solution

    def weighted(self, weight: float) -> np.ndarray:
        """Keys times the square root of their weight."""
        return self.keys * np.sqrt(weight)


def nearest(layout: BlockCodes, values: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """For each value the place, in `layout.by_level`, of the level that comes nearest; all arrays of one shape."""
    levels, _ = layout.by_level
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        wanted = (values - offset) / scale
    wanted = np.where(scale == 0, 0.0, wanted)  # Then all codes mean the same, and the caller keeps the present one.
    if levels[-1] - levels[0] == len(levels) - 1:
        return np.rint(np.clip(wanted, levels[0], levels[-1]) - levels[0]).astype(np.intp)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, wanted)


def choose_codes(
    layout: BlockCodes,
    target: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    present: np.ndarray,
    metric: Metric,
) -> np.ndarray:
    """Codes, uint8, for a matrix `target`; all arrays (n_rows, n_columns), and each row is on its own.

    `scale` and `offset` say what codes mean; where the scale is 0 the `present` code stays. A target beyond the last
    level gets that level, and the columns after it make up for the rest.
    """
    levels, level_codes = layout.by_level
    order = metric.order()
    # Columns as rows, so that each is contiguous.
    target, scale, offset = (np.ascontiguousarray(array.T) for array in (target, scale, offset))
    errors = np.empty_like(target)  # What the codes chosen last are short of the target.
    places = np.empty(target.shape, np.intp)

    def choose(column: int, value: np.ndarray) -> None:
        places[column] = nearest(layout, value, scale[column], offset[column])
        errors[column] = target[column] - (scale[column] * levels[places[column]] + offset[column])

    feedback, keys = metric.feedback(order), metric.weighted(_KEY_WEIGHT)
    total = np.zeros((keys.shape[1], target.shape[1]))  # Key times error, summed over the columns that are done.
    for place, column in enumerate(order):
        value = target[column].copy()
        for number, error in enumerate(total):
            value += feedback[place, number] * error
        choose(column, value)
        for number, error in enumerate(total):
            error += keys[column, number] * errors[column]

    keys, order = metric.weighted(_FINAL_WEIGHT), metric.final_order()
    curvature = metric.diagonal() + _FINAL_WEIGHT * metric.sizes()
    total *= np.sqrt(_FINAL_WEIGHT / _KEY_WEIGHT)
    for _ in range(_FINAL_PASSES):
        for column in order:
            key = keys[column]
            value = target[column].copy()
            for number, error in enumerate(total):
                error -= key[number] * errors[column]
                value += key[number] / curvature[column] * error
            choose(column, value)
            for number, error in enumerate(total):
                error += key[number] * errors[column]
    return np.where(scale.T == 0, present, level_codes[places].T)
