"""Scaling of stored numbers against exact fractions, and against torch where torch rounds once."""

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia.errors import CheckpointError, NumericalError
from amnesia.weights.scaling import DTYPES, check_dtype, flip_signs, inverse_multiplier, inverts_exactly, scale_bytes

NUMBERS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
SMALL = ("F8_E4M3", "F8_E5M2", "F16", "BF16")
# Parameters of the formats, from their definitions: significand bits with the hidden one, smallest exponent, maximum.
FORMATS = {
    "F64": (53, -1022, Fraction(2**53 - 1) * 2**971),
    "F32": (24, -126, Fraction(2**24 - 1) * 2**104),
    "F16": (11, -14, Fraction(65504)),
    "BF16": (8, -126, Fraction(255) * 2**120),
    "F8_E4M3": (4, -6, Fraction(448)),
    "F8_E5M2": (3, -14, Fraction(57344)),
}


def every_finite(dtype):
    """All finite numbers of a type of at most 16 bits."""
    number = NUMBERS[dtype]
    values = np.arange(2 ** (8 * number.itemsize), dtype=f"u{number.itemsize}").view(number)
    with np.errstate(invalid="ignore"):
        return values[np.isfinite(values.astype(np.float64))]


def nearest(exact, dtype):
    """The number of `dtype` nearest to a fraction, ties to even; None when it overflows. Pure integers."""
    bits, low, maximum = FORMATS[dtype]
    if exact == 0:
        return Fraction(0)
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    while Fraction(2) ** exponent > magnitude:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    unit = Fraction(2) ** (max(exponent, low) - bits + 1)
    rounded = round(magnitude / unit) * unit  # Python rounds fractions half to even.
    if rounded > maximum:
        return None
    return rounded if exact > 0 else -rounded


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_one_flips_the_sign_bit_only(dtype):
    number = NUMBERS[dtype]
    raw = np.array([0.0, -0.0, 1.0, -1.5, 2.0**-9], dtype=number).tobytes()
    scaled = scale_bytes(raw, dtype, -1.0)
    top = number.itemsize - 1
    expected = bytes(byte ^ (0x80 if place % number.itemsize == top else 0) for place, byte in enumerate(raw))
    assert scaled.raw == expected
    assert scaled.exact
    assert flip_signs(scaled.raw, dtype) == raw


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("multiplier", [0.5, -2.0, -3.0, 0.1, -1.7, 1 / 3, 0.0, -(1 + 2**-20), -(1 + 2**-50)])
def test_every_number_of_the_small_types_rounds_once(dtype, multiplier):
    values = every_finite(dtype)
    if len(values) > 3000:
        values = np.concatenate([values[::37], values[:40], values[-40:]])
    products = [Fraction(value) * Fraction(multiplier) for value in values.astype(np.float64).tolist()]
    expected = [nearest(product, dtype) for product in products]
    fits = np.array([value is not None for value in expected])
    scaled = scale_bytes(values[fits].tobytes(), dtype, multiplier)
    result = np.frombuffer(scaled.raw, NUMBERS[dtype]).astype(np.float64).tolist()
    kept = [value for value in expected if value is not None]
    assert [Fraction(value) for value in result] == kept
    assert scaled.exact == all(
        value == product for value, product, fit in zip(expected, products, fits, strict=True) if fit
    )
    if not fits.all():
        with pytest.raises(NumericalError, match="after multiplying"):
            scale_bytes(values[~fits].tobytes(), dtype, multiplier)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from(["F32", "F64", "BF16"]),
    value=st.floats(allow_nan=False, allow_infinity=False, width=32),
    multiplier=st.floats(allow_nan=False, allow_infinity=False),
)
def test_products_round_once(dtype, value, multiplier):
    value = float(np.array([value]).astype(NUMBERS[dtype]).astype(np.float64)[0])
    if not math.isfinite(value):
        return
    raw = np.array([value], NUMBERS[dtype]).tobytes()
    expected = nearest(Fraction(value) * Fraction(multiplier), dtype)
    if expected is None:
        with pytest.raises(NumericalError):
            scale_bytes(raw, dtype, multiplier)
        return
    scaled = scale_bytes(raw, dtype, multiplier)
    result = float(np.frombuffer(scaled.raw, NUMBERS[dtype]).astype(np.float64)[0])
    assert Fraction(result) == expected
    assert math.copysign(1, result) == math.copysign(1, value) * math.copysign(1, multiplier)
    assert scaled.exact == (expected == Fraction(value) * Fraction(multiplier))


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)]
)
@pytest.mark.parametrize("multiplier", [-1.0, -3.0, 0.5, -1.75])
def test_agrees_with_torch_where_its_intermediate_is_exact(dtype, torch_dtype, multiplier):
    column = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(torch_dtype)
    raw = column.view(torch.uint8).numpy().tobytes()
    expected = (column * multiplier).view(torch.uint8).numpy().tobytes()
    assert scale_bytes(raw, dtype, multiplier).raw == expected


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("multiplier", [-1.0, 0.0, 0.5])
def test_refuses_nan_and_infinity(dtype, bad, multiplier):
    raw = np.array([1.0, bad], NUMBERS[dtype]).tobytes()
    with pytest.raises(NumericalError, match="position 1 before the edit"):
        scale_bytes(raw, dtype, multiplier)


def test_refuses_e4m3_nan_and_overflow():
    with pytest.raises(NumericalError):
        scale_bytes(b"\x7f", "F8_E4M3", -1.0)
    with pytest.raises(NumericalError):
        scale_bytes(np.array([448.0], ml_dtypes.float8_e4m3fn).tobytes(), "F8_E4M3", 2.0)


@pytest.mark.parametrize("multiplier", [math.nan, math.inf])
def test_refuses_multipliers_that_are_not_finite(multiplier):
    with pytest.raises(NumericalError, match="not finite"):
        scale_bytes(struct.pack("<f", 1.0), "F32", multiplier)


def test_inverse_exists_for_powers_of_two_only():
    assert [inverse_multiplier(m) for m in (-1.0, 0.5, -4.0, 2.0**-1022)] == [-1.0, 2.0, -0.25, 2.0**1022]
    assert [inverse_multiplier(m) for m in (0.0, 3.0, -1.5, 2.0**-1074, 0.1)] == [None] * 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("multiplier", [-1.0, 0.5, -0.25, 2.0, -3.0, 0.0])
def test_inverts_exactly_is_the_truth_for_every_number(dtype, multiplier):
    for value in every_finite(dtype)[:: 1 if dtype.startswith("F8") else 97]:
        raw = value.tobytes()
        try:
            scaled = scale_bytes(raw, dtype, multiplier).raw
        except NumericalError:
            continue
        exact_inverse = multiplier not in (-3.0, 0.0)
        back = (
            nearest(Fraction(float(np.frombuffer(scaled, NUMBERS[dtype])[0])) / Fraction(multiplier), dtype)
            if (exact_inverse)
            else None
        )
        assert inverts_exactly(raw, scaled, dtype, multiplier) == (
            exact_inverse and back == Fraction(float(value)) and (back != 0 or float(value) == 0)
        )


def test_a_number_that_overflows_on_the_way_back_is_not_inverted():
    raw = np.array([40000], np.float16).tobytes()
    scaled = scale_bytes(raw, "F16", 2.0**-40).raw
    assert not inverts_exactly(raw, scaled, "F16", 2.0**-40)


def test_refuses_types_by_name():
    for dtype in DTYPES:
        check_dtype(dtype, "w")
    with pytest.raises(CheckpointError, match=r"tensor w is stored as I32: only F64, F32"):
        check_dtype("I32", "w")
    with pytest.raises(CheckpointError, match="F8_E8M0"):
        check_dtype("F8_E8M0", "w")
