"""Codes in blocks against the `gguf` package's dequantization, and what choosing them keeps of an edit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia.errors import CheckpointError, NumericalError
from amnesia.weights.gguf.blocks import BLOCKS, SIGNS
from amnesia.weights.gguf.blocks import REFUSED as REFUSED_BLOCKS
from amnesia.weights.gguf.codes import CODES, REFUSED, BlockCodes, PlainNumbers, codes_of, to_bfloat16
from amnesia.weights.gguf.rounding import Metric, choose_codes, nearest
from support.tiny_gguf import random_rows

TYPES = [pytest.param(kind, id=kind.name) for kind in CODES]
LAYOUTS = {kind: layout for kind, layout in CODES.items() if isinstance(layout, BlockCodes)}
QUANTIZED = [pytest.param(kind, id=kind.name) for kind in LAYOUTS]
N_COLUMNS = 512


def columns_of(seed: int, count: int = 90) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(N_COLUMNS, count, replace=False))


def random_bytes(kind: GGMLQuantizationType, seed: int, n_rows: int = 6) -> np.ndarray:
    """Any bytes at all, but for rows with a scale that is not finite."""
    size, block_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    rows = np.empty((0, N_COLUMNS // size * block_bytes), np.uint8)
    while len(rows) < n_rows:
        more = rng.integers(0, 256, size=(64, rows.shape[1]), dtype=np.uint8)
        if isinstance(CODES[kind], PlainNumbers):
            more = random_rows(kind, n_rows, N_COLUMNS, seed)
        with np.errstate(all="ignore"):
            rows = np.concatenate([rows, more[np.isfinite(dequantize(more, kind)).all(axis=1)]])
    return rows[:n_rows]


def test_every_type_of_weights_is_either_supported_or_refused():
    assert {*CODES} | {*REFUSED} == {*BLOCKS} | {*SIGNS}
    for kind in (*REFUSED, *(REFUSED_BLOCKS.keys() - REFUSED.keys())):
        with pytest.raises(
            CheckpointError, match=f"x is {kind.name}, .* --tensor-type \\(in Python: tensor_type\\)"
        ) as caught:
            codes_of(kind, "x")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TYPES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_values_are_those_of_the_gguf_package(kind, seed):
    rows, columns = random_bytes(kind, seed), columns_of(seed)
    expected = dequantize(rows, kind)[:, columns]
    found = CODES[kind].values(rows, columns)
    # The package rounds products and sums to single precision.
    largest = np.abs(dequantize(rows, kind)).max(axis=1, keepdims=True)
    assert (np.abs(found - expected) <= 2.0**-22 * largest).all()


@pytest.mark.parametrize("kind", QUANTIZED)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_codes_are_replaced_and_nothing_else_is(kind, seed):
    layout, rows, columns = LAYOUTS[kind], random_bytes(kind, seed), columns_of(seed)
    codes = np.random.default_rng(seed).integers(0, len(layout.levels), size=(len(rows), len(columns)), dtype=np.uint8)
    original = rows.copy()
    new = layout.write(rows, columns, codes)
    assert np.array_equal(rows, original)
    assert np.array_equal(layout.read(new, columns), codes)
    assert np.array_equal(layout.write(new, columns, layout.read(rows, columns)), rows)
    others = np.setdiff1d(np.arange(N_COLUMNS), columns)
    assert np.array_equal(layout.read(new, others), layout.read(rows, others))
    assert np.array_equal(dequantize(new, kind)[:, others], dequantize(rows, kind)[:, others])
    assert all(
        np.array_equal(*pair) for pair in zip(layout.scales(new, columns), layout.scales(rows, columns), strict=True)
    )
    changed = np.flatnonzero((new != rows).any(axis=0))
    assert {*changed.tolist()} <= {*layout.byte_places(columns).tolist()}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_all_codes_together_fill_bytes_without_overlap(kind):
    layout = LAYOUTS[kind]
    bits = np.zeros(layout.block_bytes * 8, int)
    for field in layout.fields:
        assert len(field.byte) == len(field.shift) == layout.block_size
        for byte, shift in zip(field.byte, field.shift, strict=True):
            bits[8 * byte + shift : 8 * byte + shift + field.width] += 1
    assert set(bits.tolist()) <= {0, 1}
    assert bits.sum() == layout.block_size * sum(field.width for field in layout.fields)
    assert len(layout.levels) == 1 << sum(field.width for field in layout.fields)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in CODES if kind not in LAYOUTS])
def test_plain_numbers_are_rounded_to_the_nearest(kind):
    layout, columns = CODES[kind], columns_of(3)
    rows = random_bytes(kind, 3)
    values = np.random.default_rng(4).normal(size=(len(rows), len(columns)))
    new = layout.write(rows, columns, values)
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind.name]
    assert np.array_equal(layout.values(new, columns), values.astype(np.float32).astype(dtype).astype(np.float64))
    others = np.setdiff1d(np.arange(N_COLUMNS), columns)
    assert np.array_equal(layout.values(new, others), layout.values(rows, others))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        layout.write(rows, columns, np.full_like(values, 1e300))


def test_bfloat16_is_rounded_once():
    # Just above the middle of two bfloat16 numbers, by less than single precision can say.
    value = 1 + 2.0**-8 + 2.0**-40
    assert to_bfloat16(np.array([value, 1 + 2.0**-8, -value])).tolist() == [0x3F81, 0x3F80, 0xBF81]


def test_a_scale_that_is_not_finite_is_an_error():
    layout = LAYOUTS[GGMLQuantizationType.Q4_1]
    rows = random_bytes(GGMLQuantizationType.Q4_1, 0)
    rows[0, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        layout.scales(rows, [1])


def plausible_rows(kind: GGMLQuantizationType, n_rows: int, seed: int) -> np.ndarray:
    """Rows whose weights lie around zero, with few of them at the last levels, as in real files."""
    rows = random_rows(kind, n_rows, N_COLUMNS, seed).copy()
    if kind.name in ("Q4_K", "Q5_K"):
        blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
        half = (len(LAYOUTS[kind].levels) - 1) / 2
        blocks[:, :4] = np.frombuffer(np.array([0.01, 0.01 * half], np.float16).tobytes(), np.uint8)
        blocks[:, 8:12] = blocks[:, 4:8]  # Scales and minima of the groups are the same.
        blocks[:, 12:16] = (blocks[:, 12:16] & 0x0F) * 0x11
        codes = np.random.default_rng(seed).normal(half, half / 2.5, size=(n_rows, N_COLUMNS))
        rows = LAYOUTS[kind].write(rows, range(N_COLUMNS), codes.clip(0, 2 * half).astype(np.uint8))
    return rows


def problem(kind: GGMLQuantizationType, n_columns: int, seed: int = 0, n_rows: int = 96, n_keys: int = 1):
    """Random rows of normal weights, and directions of a plausible size on some columns with a long-tailed key."""
    layout, rng = LAYOUTS[kind], np.random.default_rng(seed)
    rows = plausible_rows(kind, n_rows, seed)
    columns = np.sort(rng.choice(N_COLUMNS, n_columns, replace=False))
    spread = rng.uniform(0.2, 1.0, n_columns)
    keys = rng.standard_t(3, size=(n_columns, n_keys)) * spread[:, None]
    present = layout.values(rows, columns)
    delta = np.zeros_like(present)
    for key in keys.T:
        read = key / spread**2 / (key**2 / spread**2).sum()
        delta -= 0.7 * (present @ key)[:, None] * read
    return layout, rows, columns, Metric(keys, spread), delta


def kept(layout, rows, new, columns, key, delta) -> float:
    change = (layout.values(new, columns) - layout.values(rows, columns)) @ key
    wanted = delta @ key
    return float(change @ wanted / (wanted @ wanted))


def chosen(layout, rows, columns, metric, delta):
    """Rows with codes chosen for a metric, and with each rounded by itself."""
    target, (scale, offset) = layout.values(rows, columns) + delta, layout.scales(rows, columns)
    present = layout.read(rows, columns)
    compensated = choose_codes(layout, target, scale, offset, present, metric)
    plain = np.where(scale == 0, present, layout.by_level[1][nearest(layout, target, scale, offset)])
    return layout.write(rows, columns, compensated), layout.write(rows, columns, plain)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_choosing_codes_together_keeps_the_effect(kind):
    layout, rows, columns, metric, delta = problem(kind, 64)
    compensated, plain = chosen(layout, rows, columns, metric, delta)
    key = metric.keys[:, 0]
    together, alone = (kept(layout, rows, new, columns, key, delta) for new in (compensated, plain))
    assert together > alone
    # Two bits leave columns too little room for this change.
    assert together == pytest.approx(1.0, abs=0.01) or (kind.name == "Q2_K" and together > 0.5)
    assert alone < 0.99
    residual = [
        np.linalg.norm((layout.values(new, columns) - layout.values(rows, columns) - delta) @ key)
        for new in (compensated, plain)
    ]
    assert residual[0] < residual[1] or residual[1] == 0


def test_two_directions_are_kept_at_once():
    layout, rows, columns, metric, delta = problem(GGMLQuantizationType.Q4_1, 256, n_keys=2)
    compensated, plain = chosen(layout, rows, columns, metric, delta)
    for key in metric.keys.T:
        assert kept(layout, rows, compensated, columns, key, delta) == pytest.approx(1.0, abs=0.01)
        assert kept(layout, rows, plain, columns, key, delta) < 0.97


@pytest.mark.parametrize("n_keys", [1, 3])
def test_feedback_is_that_of_the_inverse_of_the_metric(n_keys):
    rng = np.random.default_rng(5)
    metric = Metric(rng.normal(size=(9, n_keys)), rng.uniform(0.1, 1, 9))
    order = metric.order()
    matrix = (np.diag(metric.diagonal()) + 3 * metric.keys @ metric.keys.T)[np.ix_(order, order)]
    found = metric.feedback(order)
    weighted = metric.weighted(3.0)[order]
    errors = rng.normal(size=9)
    for place in range(1, 9):
        rest = np.linalg.solve(matrix[place:, place:], matrix[place:, :place] @ errors[:place])
        assert found[place] @ (weighted[:place].T @ errors[:place]) == pytest.approx(rest[0], rel=1e-9)


def test_codes_end_and_later_columns_make_up_for_it():
    layout = LAYOUTS[GGMLQuantizationType.Q4_0]
    # One column is to go far beyond the last level; three others, of which the first could not do it alone, take over.
    target = np.array([[30.0, 0.0, 0.0, 0.0]])
    metric = Metric(np.array([[2.0], [1.9], [1.0], [0.5]]), np.ones(4))
    ones, zeros = np.ones_like(target), np.zeros_like(target)
    codes = choose_codes(layout, target, ones, zeros, np.full(target.shape, 8, np.uint8), metric)
    values = np.array(layout.levels)[codes]
    assert values[0, 0] == values[0, 1] == values[0, 2] == values[0, 3] == 7
    target[0, 0] = 10.0
    values = np.array(layout.levels)[choose_codes(layout, target, ones, zeros, codes, metric)]
    assert values[0, 0] == 7
    assert float((values - target)[0] @ metric.keys[:, 0]) == pytest.approx(0, abs=0.5)


def test_where_the_scale_is_zero_codes_stay():
    layout = LAYOUTS[GGMLQuantizationType.Q4_0]
    present = np.array([[3, 9]], np.uint8)
    zeros = np.zeros((1, 2))
    metric = Metric(np.ones((2, 1)), np.zeros(2))
    assert np.array_equal(choose_codes(layout, zeros + 5, zeros, zeros, present, metric), present)


def test_eight_bits_never_become_minus_128():
    layout = LAYOUTS[GGMLQuantizationType.Q8_0]
    codes = choose_codes(
        layout,
        np.full((1, 2), -1e3),
        np.ones((1, 2)),
        np.zeros((1, 2)),
        np.zeros((1, 2), np.uint8),
        Metric(np.ones((2, 1)), np.ones(2)),
    )
    assert np.array(layout.levels)[codes].tolist() == [[-127, -127]]
