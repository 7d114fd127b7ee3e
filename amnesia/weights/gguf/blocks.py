"""Where each GGUF tensor type keeps its scales, and how a row of blocks is multiplied through them alone.

A quantized block dequantizes to a value that is linear in its floating point scales (`d`, and `dmin` or `m` where the
format has a minimum), so that multiplying the scales multiplies every weight of the block and leaves the quantized
integers alone. To support a type, add one row to `BLOCKS`, after checking its formula in `gguf.quants`.

Scales of MXFP4 and NVFP4 have no sign, but each of their codes has (E2M1): these rows can be negated, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from amnesia.errors import CheckpointError, NumericalError
from amnesia.weights.scaling import inverse_multiplier, scale_bytes

Number = Literal["F16", "BF16", "F32"]
_BYTES: Mapping[Number, int] = {"F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True)
class Block:
    """The weights of `tensor_type` that are quantized together."""

    tensor_type: GGMLQuantizationType

    @property
    def block_size(self) -> int:
        """Weights of one block."""
        return GGML_QUANT_SIZES[self.tensor_type][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return GGML_QUANT_SIZES[self.tensor_type][1]


@dataclass(frozen=True)
class BlockScales(Block):
    """The scales of one block of `tensor_type`, each a floating point number of type `number`.

    `scales` lists, for each scale, the positions of its hexadecimal digits in the block, least significant digit
    first; digit 2i is the low half of byte i, digit 2i + 1 the high half. Digits rather than bytes, because IQ1_M
    scatters its scale over four bytes that it shares with other fields. `quantized` tells scales of integers from
    plain numbers: a multiplier may round plain numbers, but never scales.
    """

    number: Number
    scales: tuple[tuple[int, ...], ...]
    quantized: bool

    def read(self, row: bytes) -> bytes:
        """The scales of `row` (whole blocks) as contiguous little-endian numbers, block after block."""
        blocks = np.frombuffer(row, dtype=np.uint8).reshape(-1, self.block_bytes)
        digits = np.array(self.scales).ravel()
        halves = (blocks[:, digits // 2] >> (4 * (digits % 2)).astype(np.uint8)) & np.uint8(0x0F)
        return (halves[:, 0::2] | halves[:, 1::2] << np.uint8(4)).tobytes()

    def write(self, row: bytes, scales: bytes) -> bytes:
        """`row` with its scales replaced by `scales`, which are laid out as `read` returns them."""
        blocks = np.frombuffer(row, dtype=np.uint8).reshape(-1, self.block_bytes).copy()
        numbers = np.frombuffer(scales, dtype=np.uint8).reshape(len(blocks), -1)
        for place, digit in enumerate(digit for digits in self.scales for digit in digits):
            half = (numbers[:, place // 2] >> np.uint8(4 * (place % 2))) & np.uint8(0x0F)
            shift = np.uint8(4 * (digit % 2))
            other_half = np.uint8(0x0F if digit % 2 else 0xF0)
            blocks[:, digit // 2] = (blocks[:, digit // 2] & other_half) | (half << shift)
        return blocks.tobytes()


@dataclass(frozen=True)
class BlockSigns(Block):
    """Blocks of codes of four bits, two in each byte from byte `first` on, whose highest bit is their sign."""

    first: int

    def flip(self, row: bytes) -> bytes:
        """`row` (whole blocks) with every weight negated; zero has two codes."""
        blocks = np.frombuffer(row, dtype=np.uint8).reshape(-1, self.block_bytes).copy()
        blocks[:, self.first :] ^= np.uint8(0x88)
        return blocks.tobytes()


def _number(number: Number, offset: int) -> tuple[int, ...]:
    """Digit positions of a contiguous little-endian number that starts at byte `offset`."""
    return tuple(range(2 * offset, 2 * (offset + _BYTES[number])))


def _plain(tensor_type: GGMLQuantizationType, number: Number) -> BlockScales:
    return BlockScales(tensor_type, number, (_number(number, 0),), quantized=False)


def _quantized(tensor_type: GGMLQuantizationType, *offsets: int) -> BlockScales:
    return BlockScales(tensor_type, "F16", tuple(_number("F16", offset) for offset in offsets), quantized=True)


_T = GGMLQuantizationType

# Offsets are those of the C structures of ggml; the comment names the scales in that order.
BLOCKS: Mapping[GGMLQuantizationType, BlockScales] = {
    row.tensor_type: row
    for row in (
        _plain(_T.F32, "F32"),
        _plain(_T.F16, "F16"),
        _plain(_T.BF16, "BF16"),
        _quantized(_T.Q4_0, 0),  # d
        _quantized(_T.Q4_1, 0, 2),  # d, m
        _quantized(_T.Q5_0, 0),  # d
        _quantized(_T.Q5_1, 0, 2),  # d, m
        _quantized(_T.Q8_0, 0),  # d
        _quantized(_T.Q2_K, 80, 82),  # d, dmin, after 16 bytes of 4-bit scales and 64 of quants
        _quantized(_T.Q3_K, 108),  # d, after 32 bytes of high bits, 64 of quants and 12 of 6-bit scales
        _quantized(_T.Q4_K, 0, 2),  # d, dmin
        _quantized(_T.Q5_K, 0, 2),  # d, dmin
        _quantized(_T.Q6_K, 208),  # d, after 128 bytes of low bits, 64 of high bits and 16 of 8-bit scales
        _quantized(_T.IQ1_S, 0),  # d
        # The four digits of d are the highest digits of the four 16-bit words at the end of the block.
        BlockScales(_T.IQ1_M, "F16", ((99, 103, 107, 111),), quantized=True),
        _quantized(_T.IQ2_XXS, 0),  # d
        _quantized(_T.IQ2_XS, 0),  # d
        _quantized(_T.IQ2_S, 0),  # d
        _quantized(_T.IQ3_XXS, 0),  # d
        _quantized(_T.IQ3_S, 0),  # d
        _quantized(_T.IQ4_NL, 0),  # d
        _quantized(_T.IQ4_XS, 0),  # d
        _quantized(_T.TQ1_0, 52),  # d, after 48 bytes of five trits each and 4 of four
        _quantized(_T.TQ2_0, 64),  # d, after 64 bytes of quants
    )
}

# Their scales come first: a bare exponent, or four numbers without a sign.
SIGNS: Mapping[GGMLQuantizationType, BlockSigns] = {
    row.tensor_type: row for row in (BlockSigns(_T.MXFP4, 1), BlockSigns(_T.NVFP4, 4))
}

# Why a type that exists is in neither table; the reason becomes part of the error message.
REFUSED: Mapping[GGMLQuantizationType, str] = {
    _T.Q8_1: "it only holds intermediate results",
    _T.Q8_K: "it only holds intermediate results",
    _T.Q1_0: "its format has no reference implementation to check against",
}


def scales_of(tensor_type: GGMLQuantizationType, tensor: str) -> BlockScales | BlockSigns:
    """The row of `tensor_type`; raises CheckpointError that names the type, the reason and the supported types."""
    if tensor_type in SIGNS:
        return SIGNS[tensor_type]
    if tensor_type not in BLOCKS:
        reason = REFUSED.get(tensor_type, "it is not a type of weights")
        raise CheckpointError(
            f"tensor {tensor} is {tensor_type.name}, which cannot be edited exactly because {reason}: "
            f"use a file in one of {', '.join(known.name for known in (*BLOCKS, *SIGNS))}"
        )
    return BLOCKS[tensor_type]


def scale_row(layout: BlockScales | BlockSigns, row: bytes, multiplier: float, what: str) -> bytes:
    """`row` (whole blocks) with every weight multiplied by `multiplier`; only bits of scales change, or signs of codes.

    Exact for quantized types: their multipliers must be powers of two (or zero), with which neither a scale nor a
    weight rounds. Plain numbers round as `scale_bytes` says. `what` names the cell in errors.

    Raises CheckpointError for a multiplier that is not exact, NumericalError for numbers that are not finite.
    """
    if isinstance(layout, BlockSigns):
        if multiplier != -1.0:
            raise CheckpointError(not_a_sign(what, multiplier, layout.tensor_type))
        return layout.flip(row)
    scales = layout.read(row)
    if not layout.quantized:
        return layout.write(row, scale_bytes(scales, layout.number, multiplier).raw)
    scaled = _scale_exactly(scales, multiplier)
    if scaled is None:
        raise _refusal(layout, scales, multiplier, what)
    return layout.write(row, scaled)


def not_a_sign(what: str, multiplier: float, tensor_type: GGMLQuantizationType) -> str:
    """The message about a multiplier of `what` in a type of `SIGNS`."""
    return (
        f"{what}: multiplier {multiplier:g} is not exact in {tensor_type.name}, of which only the signs can change: "
        "use -1, or edit the floating point model"
    )


def _scale_exactly(scales: bytes, multiplier: float) -> bytes | None:
    """Half-precision scales times `multiplier`, or None if a scale or a weight would round or overflow."""
    # A multiplier of several bits may leave a scale exact, but not the weights, its products with integers.
    if multiplier != 0.0 and inverse_multiplier(multiplier) is None:
        return None
    try:
        scaled = scale_bytes(scales, "F16", multiplier)
    except NumericalError:
        return None
    return scaled.raw if scaled.exact else None


def _refusal(layout: BlockScales, scales: bytes, multiplier: float, what: str) -> CheckpointError:
    """Says which multipliers this row allows instead, and which of them is nearest."""
    sign = math.copysign(1.0, multiplier)
    possible = [power for power in range(-24, 16) if _scale_exactly(scales, sign * 2.0**power) is not None]
    problem = f"{what}: multiplier {multiplier:g} is not exact in {layout.tensor_type.name}"
    if not possible:
        return CheckpointError(f"{problem}, because a scale of this row is NaN or infinite: use an intact file")
    low, high = (f"{sign * 2.0**power:g}" for power in (possible[0], possible[-1]))
    near = min(possible, key=lambda power: abs(power - math.log2(abs(multiplier))))
    return CheckpointError(
        f"{problem}, whose 16-bit scales allow this row powers of two from {low} to {high}: "
        f"use {sign * 2.0**near:g}, or edit the floating point model"
    )
