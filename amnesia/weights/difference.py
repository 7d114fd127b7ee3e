"""How two stored matrices differ: which numbers, by how much, and whether it has the form that an edit would give it.

Both are read in blocks of rows; what is kept are sums for each row and column, and the products of the difference with
a few random vectors, whose singular values tell its rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from amnesia.files.disk import BLOCK
from amnesia.progress import Progress, ignore_progress

N_PROBES = 16
"""Random vectors for the rank, and so the lowest rank that is not told from a higher one."""

_ABOVE = 3.0
"""A singular value counts above so many times the largest that rounding explains; set by hand."""

_GAP = 2.0
"""The last singular value that counts is at least so many times the next; set by hand. Those of noise follow closely
upon each other."""

_REST = 0.1
"""Of a difference that passes for a multiplication: the square of what is left over, by that of what multiplying does.
Set by hand, above the 1/12 that rounding leaves of the smallest multiplication; of noise it is 1 and more."""

EPSILON = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7, "F8_E4M3": 2.0**-3, "F8_E5M2": 2.0**-2}
"""Relative distance of neighboring numbers by type, for types whose columns can be edited."""

_QUANTIZED = 2.0**-9
"""The same for scales of blocks, which are 16-bit floats: twice the distance of neighbors."""


@dataclass(frozen=True)
class Stored:
    """A matrix in a file: `read` gives the bytes of some rows (first, number), `numbers` their values (rows, columns).

    A tensor of one axis is a single row. `numbers` is None for types that are only compared byte by byte, and for
    tensors that mean nothing without the one named `scales`, by which they are multiplied.
    """

    name: str
    dtype: str
    shape: tuple[int, int]
    n_bytes: int
    read: Callable[[int, int], bytes]
    numbers: Callable[[bytes], np.ndarray] | None
    scales: str | None = None


@dataclass(frozen=True)
class MatrixDifference:
    """How a matrix differs from another one of the same shape.

    `share` of its numbers are others, by at most `largest` times the root mean square of the finite numbers of the
    first matrix; None where that is zero, and where a number that differs is not finite. NaN is equal to NaN. Along
    `axis` (1: columns, 0: rows) only `indices` differ; those in `scaled` are multiples of what they were, by these
    multipliers. `rank` is that of the difference above what rounding explains, None where that cannot be told or is
    `N_PROBES` or more. Of types without numbers only the names are known, and of tensors that are multiplied by another
    one beside them in either model, which `scales` names.
    """

    name: str
    dtypes: tuple[str, str]
    shape: tuple[int, int]
    share: float | None = None
    largest: float | None = None
    axis: int | None = None
    indices: tuple[int, ...] = ()
    scaled: dict[int, float] = field(default_factory=dict)
    rank: int | None = None
    scales: str | None = None


def compare(one: Stored, two: Stored, progress: Progress = ignore_progress) -> MatrixDifference | None:
    """The difference of two matrices of the same shape; None where there is none."""
    alike = one.dtype == two.dtype
    if alike and all(first == second for first, second in _blocks(one, two, progress)):
        return None
    if one.numbers is None or two.numbers is None:
        return MatrixDifference(one.name, (one.dtype, two.dtype), one.shape, scales=one.scales or two.scales)
    sums = _Sums(one.shape, one.dtype, two.dtype)
    start = 0
    with np.errstate(all="ignore"):
        for first, second in _blocks(one, two, ignore_progress if alike else progress):
            start += sums.add(start, one.numbers(first), two.numbers(second))
        return sums.difference(one, two)


def _blocks(one: Stored, two: Stored, progress: Progress) -> Iterator[tuple[bytes, bytes]]:
    rows, columns = one.shape
    step = max(1, BLOCK // (8 * max(1, columns)))
    for first in range(0, rows, step):
        pair = one.read(first, min(step, rows - first)), two.read(first, min(step, rows - first))
        progress(sum(map(len, pair)))
        yield pair


class _Sums:
    """What is kept of two matrices x and y while their rows pass by."""

    def __init__(self, shape: tuple[int, int], *dtypes: str) -> None:
        self._shape = shape
        self._known = all(dtype in EPSILON for dtype in dtypes)
        self._epsilon = max(EPSILON.get(dtype, _QUANTIZED) for dtype in dtypes)
        # By axis: how many numbers differ, and the products x·x, x·y and y·y.
        self._counts = [np.zeros(size, np.int64) for size in shape]
        self._products = [np.zeros((3, size)) for size in shape]
        self._largest = self._noise = self._square = 0.0
        self._n_finite = 0
        self._probes = np.random.default_rng(0).normal(size=(shape[1], N_PROBES))
        self._answers = np.zeros((shape[0], N_PROBES))

    def add(self, start: int, x: np.ndarray, y: np.ndarray) -> int:
        """Take in rows from number `start` on; returns how many."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        rows = slice(start, start + len(x))
        differs = (x != y) & ~(np.isnan(x) & np.isnan(y))
        finite = np.isfinite(x)
        self._square += float(np.where(finite, x * x, 0.0).sum())
        self._n_finite += int(finite.sum())
        for axis, place in ((0, rows), (1, slice(None))):
            self._counts[axis][place] += differs.sum(1 - axis)
            for row, product in zip(self._products[axis], (x * x, x * y, y * y), strict=True):
                row[place] += product.sum(1 - axis)
        delta = np.where(differs, y - x, 0.0)
        self._largest = max(
            self._largest, float(np.nan_to_num(np.abs(delta), nan=np.inf, posinf=np.inf).max(initial=0.0))
        )
        self._noise += float((np.where(differs, y * self._epsilon, 0.0) ** 2).sum()) / 12
        self._answers[rows] = delta @ self._probes
        return len(x)

    def difference(self, one: Stored, two: Stored) -> MatrixDifference | None:
        """What it all comes to; None where other bytes are the same numbers."""
        n_different, size = int(self._counts[0].sum()), max(1, math.prod(self._shape))
        if not n_different and one.dtype == two.dtype:
            return None
        scale = math.sqrt(self._square / max(1, self._n_finite))
        found = MatrixDifference(
            one.name,
            (one.dtype, two.dtype),
            self._shape,
            share=n_different / size,
            largest=self._largest / scale if scale and math.isfinite(self._largest / scale) else None,
        )
        if min(self._shape) == 1 or not n_different:
            return found
        by_axis = [(axis, np.flatnonzero(self._counts[axis]), self._scaled(axis)) for axis in (1, 0)]
        # That in which all vectors are multiples, else that in which fewer of them differ.
        axis, indices, scaled = min(
            by_axis, key=lambda row: (len(row[2]) < len(row[1]), len(row[1]) / self._shape[row[0]])
        )
        return replace(found, axis=axis, indices=tuple(indices.tolist()), scaled=scaled, rank=self._rank())

    def _scaled(self, axis: int) -> dict[int, float]:
        """Multipliers of the vectors along an axis that are multiples of what they were, up to rounding."""
        before, mixed, after = self._products[axis]
        found = {}
        for index in np.flatnonzero(self._counts[axis]).tolist():
            if before[index] == 0.0 or not math.isfinite(before[index] + after[index]):
                continue
            explained = mixed[index] ** 2 / before[index]
            multiplier = float(mixed[index] / before[index])
            if abs(multiplier - 1.0) <= self._epsilon:
                continue  # Rounding, as in a copy in another type.
            rest = after[index] - explained
            by_multiplying = (multiplier - 1.0) ** 2 * before[index]
            if rest <= max(self._epsilon**2, 1e-13) * after[index] and rest <= _REST * by_multiplying:
                found[index] = multiplier
        return found

    def _rank(self) -> int | None:
        """Singular values of the difference above those of a random matrix of the size of the rounding errors."""
        if not self._known or not np.isfinite(self._answers).all():
            return None
        values = np.linalg.svd(self._answers, compute_uv=False)
        error = math.sqrt(self._noise / self._shape[0]) * (math.sqrt(self._shape[0]) + math.sqrt(N_PROBES))
        rank = int((values > max(_ABOVE * error, values[0] * 1e-12)).sum())
        if rank >= min(N_PROBES, *self._shape) or (rank and values[rank - 1] < _GAP * values[rank]):
            return None
        return rank
