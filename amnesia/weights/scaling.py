"""Exact arithmetic of stored numbers: what happens to the bytes of a column when it is multiplied or added to.

Multiplying by −1 flips the sign bit and nothing else (`flip_signs`). Every other product is computed exactly and
rounded once, to the nearest number of the stored type (ties to even), whatever the type and the multiplier
(`scale_bytes`).

A direction adds a multiple of one vector to a column (`add_to_bytes`). The sum is computed in float32, in float64 for
F64, and rounded once to the stored type, as PEFT rounds when it merges an adapter of float32 into weights of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np

from amnesia.errors import CheckpointError, NumericalError

# The types that can be edited, with the unsigned integer of the same width: its top bit is the sign.
_TYPES: Mapping[str, tuple[np.dtype, np.dtype]] = {
    "F64": (np.dtype("<f8"), np.dtype("<u8")),
    "F32": (np.dtype("<f4"), np.dtype("<u4")),
    "F16": (np.dtype("<f2"), np.dtype("<u2")),
    "BF16": (np.dtype(ml_dtypes.bfloat16), np.dtype("<u2")),
    "F8_E4M3": (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype("u1")),
    "F8_E5M2": (np.dtype(ml_dtypes.float8_e5m2), np.dtype("u1")),
}
DTYPES = tuple(_TYPES)


# What one direction adds to one column: its factor (d_model,), which `factor_of` gives, and the column's number in u.
Term = tuple[np.ndarray, float]


@dataclass(frozen=True)
class Scaled:
    """Bytes after scaling. `exact` says that no product had to be rounded."""

    raw: bytes
    exact: bool


def check_dtype(dtype: str, tensor: str) -> None:
    """Raises CheckpointError that names the type when numbers of `dtype` cannot be scaled."""
    if dtype not in _TYPES:
        raise CheckpointError(
            f"tensor {tensor} is stored as {dtype}: only {', '.join(DTYPES)} can be edited; use a checkpoint of these"
        )


def scale_bytes(raw: bytes, dtype: str, multiplier: float) -> Scaled:
    """Multiply each number in `raw` (little-endian, of safetensors type `dtype`) by `multiplier`.

    Raises NumericalError when a number is NaN or infinite, before or after.
    """
    if multiplier == -1.0:
        return Scaled(flip_signs(raw, dtype), exact=True)
    if not math.isfinite(multiplier):
        raise NumericalError(f"multiplier {multiplier} is not finite: use -1")
    number, _ = _TYPES[dtype]
    values = _doubles(raw, number)
    _check_finite(values, "before the edit")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # Overflow is reported below.
        if dtype == "F64":
            result = values * multiplier
        else:
            # Doubles and singles hold all narrower numbers. The way there rounds to odd, so that only the last step,
            # to the stored type, rounds to nearest. (ml_dtypes converts doubles by way of singles.)
            product = _to_odd_double(values, multiplier)
            result = (product if dtype in ("F32", "F16") else _to_odd_single(product)).astype(number)
    stored = result.astype(np.float64)
    _check_finite(stored, f"after multiplying by {multiplier:g}")
    return Scaled(result.tobytes(), exact=_is_product(stored, values, multiplier))


def flip_signs(raw: bytes, dtype: str) -> bytes:
    """Negate each number by flipping its sign bit: exact for every type, and its own inverse.

    Raises NumericalError when a number is NaN or infinite.
    """
    number, unsigned = _TYPES[dtype]
    _check_finite(_doubles(raw, number), "before the edit")
    sign_bit = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    return (np.frombuffer(raw, unsigned) ^ sign_bit).tobytes()


def add_to_bytes(raw: bytes, dtype: str, multiplier: float, terms: Sequence[Term]) -> bytes:
    """multiplier·w + Σ factor·u for the numbers w (d_model,) in `raw`, little-endian, of safetensors type `dtype`.

    The product with the multiplier, each factor·u, their sum in the order of `terms` and the whole are float32 (float64
    for F64); the result is then rounded to `dtype`. Raises NumericalError for NaN or infinity, before or after.
    """
    wide = sum_dtype(dtype)
    number = number_type(wide)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # Overflow is reported below.
        scaled = np.frombuffer(scale_bytes(converted(raw, dtype, wide), wide, multiplier).raw, number)
        added = np.zeros_like(scaled)
        for factor, u in terms:
            added += factor * number.type(u)
        result = (scaled + added).astype(number_type(dtype))
        _check_finite(result.astype(np.float64), "after adding a direction")
    return result.tobytes()


def factor_of(write: np.ndarray, multiplier: float, dtype: str) -> np.ndarray:
    """(m − 1)·v for v = `write` (d_model,), in the type in which sums for weights of `dtype` are computed.

    Raises NumericalError on overflow.
    """
    number = number_type(sum_dtype(dtype))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        factor = number.type(multiplier - 1.0) * write.astype(number)
    if not np.isfinite(factor).all():
        raise NumericalError(f"a direction overflows with multiplier {multiplier:g}: use one nearer to 1")
    return factor


def sum_dtype(dtype: str) -> str:
    """The safetensors type in which sums for weights of `dtype` are computed."""
    return "F64" if dtype == "F64" else "F32"


def number_type(dtype: str) -> np.dtype:
    """NumPy's type for numbers of a safetensors type."""
    return _TYPES[dtype][0]


def converted(raw: bytes, dtype: str, to: str) -> bytes:
    """Numbers of type `dtype` as numbers of type `to`, which must hold all of them."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN; who computes with it says so.
        return np.frombuffer(raw, number_type(dtype)).astype(number_type(to)).tobytes()


def _doubles(raw: bytes, number: np.dtype) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # A NaN is reported by the caller, in better words.
        return np.frombuffer(raw, number).astype(np.float64)


def inverse_multiplier(multiplier: float) -> float | None:
    """The multiplier that takes `multiplier` back if nothing was rounded: for ± powers of two; None for others."""
    mantissa, _ = math.frexp(multiplier)
    if abs(mantissa) != 0.5:
        return None
    inverse = 1.0 / multiplier
    return inverse if math.isfinite(inverse) and 1.0 / inverse == multiplier else None


def inverts_exactly(raw: bytes, scaled: bytes, dtype: str, multiplier: float) -> bool:
    """Whether multiplying `scaled` by the inverse of `multiplier` gives back every bit of `raw`."""
    inverse = inverse_multiplier(multiplier)
    try:
        return inverse is not None and scale_bytes(scaled, dtype, inverse).raw == raw
    except NumericalError:
        return False  # A number that was rounded up can overflow on the way back.


def _check_finite(values: np.ndarray, when: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NumericalError(
            f"a column holds {values[bad[0]]} at position {bad[0]} {when}: expected finite numbers; "
            "use another checkpoint or a smaller multiplier"
        )


def _to_odd_double(values: np.ndarray, multiplier: float) -> np.ndarray:
    """The products rounded to odd in double precision.

    A result that was rounded to odd with at least two spare bits can be rounded again to the nearest without error
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd").
    `values` have at most 24 significant bits, so halves of the multiplier give exact partial products.
    """
    mantissa, exponent = math.frexp(multiplier)
    high = math.floor(mantissa * 2.0**27) / 2.0**27
    low = mantissa - high
    product = values * mantissa
    error = (values * high - product) + values * low
    return np.ldexp(_to_odd(product, error), exponent)


def _to_odd_single(values: np.ndarray) -> np.ndarray:
    """Doubles rounded to odd in single precision."""
    rounded = values.astype(np.float32)
    return _to_odd(rounded, values - rounded.astype(np.float64))


def _to_odd(rounded: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Of the two neighbours of each inexact result, the one whose last bit is set; exact results stay."""
    last_bit = rounded.view(f"u{rounded.dtype.itemsize}") & 1
    towards = np.copysign(np.array(np.inf, rounded.dtype), error).astype(rounded.dtype)
    return np.where((error != 0) & (last_bit == 0), np.nextafter(rounded, towards), rounded)


def _is_product(result: np.ndarray, values: np.ndarray, multiplier: float) -> bool:
    """Whether every result is the mathematical product."""
    inverse = inverse_multiplier(multiplier)
    if inverse is not None:
        return np.array_equal(result * inverse, values)
    factor = Fraction(multiplier)
    pairs = zip(result.tolist(), values.tolist(), strict=True)
    return all(Fraction(after) == Fraction(before) * factor for after, before in pairs)
