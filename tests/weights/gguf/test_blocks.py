"""The table of scales against the `gguf` package's own dequantization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from amnesia.errors import CheckpointError, NumericalError
from amnesia.weights.gguf.blocks import BLOCKS, REFUSED, SIGNS, scale_row, scales_of
from support.tiny_gguf import random_rows

TYPES = [pytest.param(tensor_type, id=tensor_type.name) for tensor_type in BLOCKS]
QUANTIZED = [pytest.param(kind, id=kind.name) for kind, layout in BLOCKS.items() if layout.quantized]
NOT_WEIGHTS = {"I8", "I16", "I32", "I64", "F64"}


def _row(tensor_type: GGMLQuantizationType, seed: int = 0) -> bytes:
    return random_rows(tensor_type, 1, 2048, seed).tobytes()


def _values(row: bytes, tensor_type: GGMLQuantizationType) -> np.ndarray:
    return dequantize(np.frombuffer(row, dtype=np.uint8).reshape(1, -1), tensor_type).ravel()


def test_every_type_of_the_format_is_either_supported_or_refused():
    assert {kind.name for kind in (*BLOCKS, *SIGNS, *REFUSED)} | NOT_WEIGHTS == {
        kind.name for kind in GGMLQuantizationType
    }


@pytest.mark.parametrize("tensor_type", TYPES)
@pytest.mark.parametrize("multiplier", [-1.0, -2.0, -0.5, 4.0, 0.0])
def test_scaling_a_row_scales_every_dequantized_value_exactly(tensor_type, multiplier):
    layout = BLOCKS[tensor_type]
    row = _row(tensor_type)
    if multiplier == -0.5 and layout.quantized:
        # Half of an odd subnormal scale is no half-precision number; clearing the last bit makes room for it.
        scales = np.frombuffer(layout.read(row), np.uint16) & np.uint16(0xFFFE)
        row = layout.write(row, scales.tobytes())
    scaled = scale_row(layout, row, multiplier, "cell 0:0")
    assert np.array_equal(_values(scaled, tensor_type), multiplier * _values(row, tensor_type))
    assert np.abs(_values(row, tensor_type)).max() > 0


@pytest.mark.parametrize("tensor_type", TYPES)
def test_only_bits_of_scales_change_and_the_flip_undoes_itself(tensor_type):
    layout = BLOCKS[tensor_type]
    row = _row(tensor_type, seed=1)
    flipped = scale_row(layout, row, -1.0, "cell 0:0")
    changed = np.frombuffer(row, np.uint8) ^ np.frombuffer(flipped, np.uint8)
    # A sign flip changes exactly one bit for each scale, in each block.
    assert np.unpackbits(changed).sum() == len(layout.scales) * len(row) // GGML_QUANT_SIZES[tensor_type][1]
    assert scale_row(layout, flipped, -1.0, "cell 0:0") == row


@pytest.mark.parametrize("tensor_type", TYPES)
def test_reading_and_writing_scales_are_inverse(tensor_type):
    layout = BLOCKS[tensor_type]
    row = np.random.default_rng(2).integers(0, 256, size=4 * layout.block_bytes, dtype=np.uint8).tobytes()
    scales = layout.read(row)
    assert len(scales) == 4 * len(layout.scales) * (4 if layout.number == "F32" else 2)
    assert layout.write(row, scales) == row
    other = bytes(byte ^ 0xFF for byte in scales)
    assert layout.read(layout.write(row, other)) == other


@pytest.mark.parametrize("tensor_type", QUANTIZED)
def test_multipliers_that_would_round_a_scale_are_refused_with_one_that_would_not(tensor_type):
    layout = BLOCKS[tensor_type]
    row = _row(tensor_type)
    for multiplier, remedy in [(-3.0, "use -4, or"), (-1e6, "use -"), (2.0**-30, "use ")]:
        with pytest.raises(
            CheckpointError, match=f"cell 3:5: multiplier .* is not exact in {tensor_type.name}.*{remedy}"
        ):
            scale_row(layout, row, multiplier, "cell 3:5")


def test_the_largest_multiplier_that_the_message_offers_is_accepted():
    layout = BLOCKS[GGMLQuantizationType.Q8_0]
    row = np.concatenate([np.array([3.0], np.float16).view(np.uint8), np.arange(32, dtype=np.uint8)]).tobytes()
    with pytest.raises(CheckpointError, match="to -16384: use -16384") as caught:
        scale_row(layout, row, -65536.0, "cell 0:0")
    assert "\n" not in str(caught.value)
    assert np.array_equal(
        _values(scale_row(layout, row, -16384.0, "cell 0:0"), GGMLQuantizationType.Q8_0),
        -16384.0 * _values(row, GGMLQuantizationType.Q8_0),
    )


@pytest.mark.parametrize(
    ("tensor_type", "dtype"),
    [
        (GGMLQuantizationType.F32, torch.float32),
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.BF16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("multiplier", [-1.0, -3.0, 0.75, -1.1875, 0.0])
def test_plain_numbers_round_like_torch(tensor_type, dtype, multiplier):
    row = _row(tensor_type, seed=3)
    column = torch.frombuffer(bytearray(row), dtype=dtype)
    scaled = torch.frombuffer(bytearray(scale_row(BLOCKS[tensor_type], row, multiplier, "cell 0:0")), dtype=dtype)
    assert torch.equal(scaled, column * multiplier)


def test_numbers_that_are_not_finite_are_refused():
    half, q8 = BLOCKS[GGMLQuantizationType.F16], BLOCKS[GGMLQuantizationType.Q8_0]
    row = np.array([1.0, np.nan], np.float16).tobytes()
    for multiplier in (-1.0, -2.0):
        with pytest.raises(NumericalError, match="nan"):
            scale_row(half, row, multiplier, "cell 0:0")
        with pytest.raises(CheckpointError, match="NaN or infinite: use an intact file"):
            scale_row(q8, np.array([np.inf] + 16 * [1], np.float16).tobytes(), multiplier, "cell 0:0")
    with pytest.raises(NumericalError, match="inf"):
        scale_row(half, np.array([60000.0], np.float16).tobytes(), -2.0, "cell 0:0")


@pytest.mark.parametrize("name", ["Q8_K", "I32"])
def test_types_without_a_signed_scale_are_refused_by_name(name):
    with pytest.raises(CheckpointError, match=rf"tensor blk\.0\.ffn_up\.weight is {name}, .*use a file in one of F32"):
        scales_of(GGMLQuantizationType[name], "blk.0.ffn_up.weight")


@pytest.mark.parametrize("tensor_type", [pytest.param(kind, id=kind.name) for kind in SIGNS])
def test_rows_of_signed_codes_are_negated_exactly_and_not_multiplied_otherwise(tensor_type):
    row = _row(tensor_type)
    flipped = scale_row(scales_of(tensor_type, "x"), row, -1.0, "cell 0:0")
    assert np.array_equal(_values(flipped, tensor_type), -_values(row, tensor_type))
    assert np.abs(_values(row, tensor_type)).max() > 0
    assert scale_row(SIGNS[tensor_type], flipped, -1.0, "cell 0:0") == row
    changed = np.frombuffer(row, np.uint8) ^ np.frombuffer(flipped, np.uint8)
    assert np.unpackbits(changed).sum() == 2048, "one bit of each weight"
    for multiplier in (-2.0, 0.0, 0.5):
        with pytest.raises(CheckpointError, match=f"cell 0:0: multiplier {multiplier:g} is not exact in .*: use -1"):
            scale_row(SIGNS[tensor_type], row, multiplier, "cell 0:0")
