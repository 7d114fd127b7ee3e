"""How the codes of weights lie in the blocks of each GGUF tensor type, and what each code stands for.

A code is the small integer of one weight: the weight is `scale · level + offset`, where `level` is the number that the
code means in this type, and scale and offset belong to a run of weights of the block. Codes of single columns can so be
read and replaced while every other bit stays. To support a type, add one row to `CODES`, after checking its formula in
`gguf.quants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gguf.constants import GGMLQuantizationType

from amnesia.errors import CheckpointError, NumericalError
from amnesia.weights.gguf.blocks import SIGNS, Block, not_a_sign
from amnesia.weights.scaling import scale_bytes

Columns = Sequence[int] | np.ndarray  # Indices of columns.
# Scales and offsets of blocks (..., block_bytes), both (..., groups).
Affine = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Field:
    """Some bits of the codes: for each weight of a block the byte, the shift in it, and where they go in the code."""

    byte: tuple[int, ...]
    shift: tuple[int, ...]
    width: int
    place: int = 0


@dataclass(frozen=True)
class BlockCodes(Block):
    """The codes of one block of `tensor_type`.

    `levels[code]` is what a code means; with `choices` only the codes of these levels are ever written. `affine` gives
    the scales and offsets of the block's groups of weights, in order.
    """

    fields: tuple[Field, ...]
    levels: tuple[int, ...]
    affine: Affine
    choices: tuple[int, int] | None = None

    @cached_property
    def by_level(self) -> tuple[np.ndarray, np.ndarray]:
        """The levels that may be written in ascending order, float64, and the code of each, uint8."""
        low, high = self.choices or (min(self.levels), max(self.levels))
        # Of two codes that mean the same, as 0 and −0, the first is written.
        codes = {level: code for code, level in reversed([*enumerate(self.levels)]) if low <= level <= high}
        levels = sorted(codes)
        return np.array(levels, np.float64), np.array([codes[level] for level in levels], np.uint8)

    def byte_places(self, columns: Columns) -> np.ndarray:
        """The bytes of a row, ascending, that hold something of the codes of `columns`."""
        return np.unique(np.concatenate([self._bytes(field, np.asarray(columns)) for field in self.fields]))

    def read(self, rows: np.ndarray, columns: Columns) -> np.ndarray:
        """The codes of `columns`, uint8 (n_rows, n_columns), in rows of whole blocks, uint8 (n_rows, row_bytes)."""
        places = np.asarray(columns)
        codes = np.zeros((len(rows), len(places)), np.uint8)
        for field in self.fields:
            shift = np.array(field.shift, np.uint8)[places % self.block_size]
            bits = (rows[:, self._bytes(field, places)] >> shift) & np.uint8((1 << field.width) - 1)
            codes |= bits << np.uint8(field.place)
        return codes

    def write(self, rows: np.ndarray, columns: Columns, codes: np.ndarray) -> np.ndarray:
        """A copy of `rows` in which `columns`, each given once, have these codes; every other bit is as it was."""
        rows = rows.copy()
        places = np.asarray(columns)
        for field in self.fields:
            mask = (1 << field.width) - 1
            bits = (codes >> np.uint8(field.place)) & np.uint8(mask)
            shift = np.array(field.shift)[places % self.block_size]
            where = self._bytes(field, places)
            for number in np.unique(shift):  # Codes with one shift lie in different bytes.
                chosen = np.flatnonzero(shift == number)
                other_bits = rows[:, where[chosen]] & np.uint8(0xFF ^ mask << number)
                rows[:, where[chosen]] = other_bits | bits[:, chosen] << np.uint8(number)
        return rows

    def scales(self, rows: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset of each weight in `columns`, both float64 (n_rows, n_columns) and exact.

        Raises NumericalError for scales that are NaN or infinite.
        """
        scale, offset = self.affine(rows.reshape(len(rows), -1, self.block_bytes))
        if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
            raise NumericalError("a block has a scale that is NaN or infinite: use an intact file")
        places = np.asarray(columns)
        block, group = places // self.block_size, places % self.block_size * scale.shape[2] // self.block_size
        return scale[:, block, group], offset[:, block, group]

    def values(self, rows: np.ndarray, columns: Columns) -> np.ndarray:
        """The weights in `columns`, float64 (n_rows, n_columns), exact."""
        scale, offset = self.scales(rows, columns)
        return scale * np.array(self.levels, np.float64)[self.read(rows, columns)] + offset

    def scale(self, rows: np.ndarray, multipliers: Mapping[int, float], what: str) -> np.ndarray:
        """A copy of `rows` in which each column of `multipliers` is multiplied, exactly, by the signs of its codes.

        `what` names the matrix in errors. Raises CheckpointError for codes without a sign, and for all but −1.
        """
        if self.tensor_type not in SIGNS:
            usable = ", ".join(kind.name for kind in (*SIGNS, *_PLAIN))
            # All experts of a layer have one type.
            wider = "" if "[" in what else "store it wider with --tensor-type (in Python: tensor_type), "
            raise CheckpointError(
                f"{what} is {self.tensor_type.name}, of which no single column can be multiplied exactly, and in this "
                f"architecture no row of ffn_up stands for one: {wider}use a file in one of {usable}, or edit the "
                "safetensors model and convert it again"
            )
        other = next((multiplier for multiplier in multipliers.values() if multiplier != -1.0), None)
        if other is not None:
            raise CheckpointError(not_a_sign(what, other, self.tensor_type))
        columns = [*multipliers]
        return self.write(rows, columns, self.read(rows, columns) ^ np.uint8(8))

    def _bytes(self, field: Field, places: np.ndarray) -> np.ndarray:
        return places // self.block_size * self.block_bytes + np.array(field.byte)[places % self.block_size]


@dataclass(frozen=True)
class PlainNumbers:
    """Rows of floating point numbers, of which each can be replaced alone."""

    tensor_type: GGMLQuantizationType
    item: int

    def byte_places(self, columns: Columns) -> np.ndarray:
        """The bytes of a row, ascending, that hold `columns`."""
        return np.sort((np.asarray(columns)[:, None] * self.item + np.arange(self.item)).ravel())

    def values(self, rows: np.ndarray, columns: Columns) -> np.ndarray:
        """The weights in `columns`, float64 (n_rows, n_columns), exact."""
        if self.item == 4:
            numbers = rows.view("<f4")[:, columns]
        elif self.tensor_type is GGMLQuantizationType.F16:
            numbers = rows.view("<f2")[:, columns]
        else:
            numbers = (rows.view("<u2")[:, columns].astype("<u4") << np.uint32(16)).view("<f4")
        if not np.isfinite(numbers).all():
            raise NumericalError("a weight is NaN or infinite: use an intact file")
        return numbers.astype(np.float64)

    def write(self, rows: np.ndarray, columns: Columns, values: np.ndarray) -> np.ndarray:
        """A copy of `rows` with `columns` set to the numbers nearest to `values`; raises NumericalError on overflow."""
        rows = rows.copy()
        with np.errstate(over="ignore", under="ignore"):  # Overflow is reported below.
            if self.item == 4:
                rows.view("<f4")[:, columns] = values.astype("<f4")
            elif self.tensor_type is GGMLQuantizationType.F16:
                rows.view("<f2")[:, columns] = values.astype("<f2")
            else:
                rows.view("<u2")[:, columns] = to_bfloat16(values)
        self.values(rows, columns)
        return rows

    def scale(self, rows: np.ndarray, multipliers: Mapping[int, float], what: str) -> np.ndarray:
        """A copy of `rows` in which each column of `multipliers` is multiplied; raises as `scale_bytes` does."""
        rows = rows.copy()
        numbers = rows.view(f"<u{self.item}")
        for column, multiplier in multipliers.items():
            scaled = scale_bytes(numbers[:, column].tobytes(), self.tensor_type.name, multiplier)
            numbers[:, column] = np.frombuffer(scaled.raw, numbers.dtype)
        return rows


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Doubles rounded once to the nearest bfloat16 (ties to even), as bits, uint16."""
    single = values.astype("<f4")
    # Rounding to odd on the way keeps the second rounding from being misled by the first.
    inexact = (single != values) & (single.view("<u4") & 1 == 0) & np.isfinite(single)
    towards = np.where(values > single, np.float32(np.inf), np.float32(-np.inf))
    bits = np.where(inexact, np.nextafter(single, towards), single).view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def _half(blocks: np.ndarray, offset: int) -> np.ndarray:
    """A half-precision number of each block, (..., 1)."""
    with np.errstate(invalid="ignore"):  # NaN is reported by the caller.
        return np.ascontiguousarray(blocks[..., offset : offset + 2]).view("<f2").astype(np.float64)


def _no_offset(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scale, np.zeros_like(scale)


def _one_scale(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _no_offset(_half(blocks, 0))


def _scale_and_minimum(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _half(blocks, 0), _half(blocks, 2)


def _q2_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    packed = blocks[..., :16]
    return _half(blocks, 80) * (packed & 0x0F), -_half(blocks, 82) * (packed >> 4)


def _q3_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    packed = blocks[..., 96:108]
    low = np.concatenate([packed[..., :8] & 0x0F, packed[..., :8] >> 4], axis=-1)
    high = np.concatenate([packed[..., 8:] >> np.uint8(shift) & 0x03 for shift in (0, 2, 4, 6)], axis=-1)
    return _no_offset(_half(blocks, 108) * ((low | high << 4).astype(np.float64) - 32))


def _q4_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high, mixed = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scale = np.concatenate([low & 0x3F, (mixed & 0x0F) | (low >> 2 & 0x30)], axis=-1)
    minimum = np.concatenate([high & 0x3F, (mixed >> 4) | (high >> 2 & 0x30)], axis=-1)
    return _half(blocks, 0) * scale, -_half(blocks, 2) * minimum


def _q6_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _no_offset(_half(blocks, 208) * np.ascontiguousarray(blocks[..., 192:208]).view(np.int8))


def _iq4_xs(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low = np.repeat(blocks[..., 4:8], 2, axis=-1) >> np.array([0, 4] * 4, np.uint8) & 0x0F
    high = np.repeat(blocks[..., 2:4], 4, axis=-1) >> np.array([0, 2, 4, 6] * 2, np.uint8) & 0x03
    return _no_offset(_half(blocks, 0) * ((low | high << 4).astype(np.float64) - 32))


def _exponent(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E8M0: a bare power of two; levels are twice what the codes stand for."""
    return _no_offset(2.0 ** (blocks[..., :1].astype(np.float64) - 128))


def _nvfp4(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 without a sign, four numbers; levels are twice what the codes stand for."""
    packed = blocks[..., :4]
    exponent, mantissa = (packed >> 3 & 0x0F).astype(np.float64), (packed & 0x07) / 8.0
    scale = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7)) / 2
    return _no_offset(np.where(packed == 0x7F, 0.0, scale))


def _packed(size: int, offset: int, width: int, run: int, place: int = 0) -> Field:
    """Parts of `width` bits: `run` bytes hold those of `run` weights lowest, above them those of the next `run`, ….

    When these bytes are full, the next ones follow.
    """
    runs = 8 // width
    weights = range(size)
    return Field(
        tuple(offset + weight // (runs * run) * run + weight % run for weight in weights),
        tuple(width * (weight // run % runs) for weight in weights),
        width,
        place,
    )


def _single_bits(size: int, offset: int, place: int) -> Field:
    """One bit of each code, eight to a byte, in the order of the weights."""
    return Field(tuple(offset + n // 8 for n in range(size)), tuple(n % 8 for n in range(size)), 1, place)


_T = GGMLQuantizationType
_PLAIN = {_T.F32: 4, _T.F16: 2, _T.BF16: 2}  # Bytes of a number.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _range(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1))


# Offsets are those of the C structures of ggml.
CODES: Mapping[GGMLQuantizationType, BlockCodes | PlainNumbers] = {
    row.tensor_type: row
    for row in (
        *(PlainNumbers(kind, item) for kind, item in _PLAIN.items()),
        BlockCodes(_T.Q4_0, (_packed(32, 2, 4, 16),), _range(-8, 7), _one_scale),
        BlockCodes(_T.Q4_1, (_packed(32, 4, 4, 16),), _range(0, 15), _scale_and_minimum),
        BlockCodes(_T.Q5_0, (_packed(32, 6, 4, 16), _single_bits(32, 2, 4)), _range(-16, 15), _one_scale),
        BlockCodes(_T.Q5_1, (_packed(32, 8, 4, 16), _single_bits(32, 4, 4)), _range(0, 31), _scale_and_minimum),
        # ggml itself never writes −128, whose negation is no 8-bit number.
        BlockCodes(_T.Q8_0, (_packed(32, 2, 8, 32),), (*_range(0, 127), *_range(-128, -1)), _one_scale, (-127, 127)),
        BlockCodes(_T.Q2_K, (_packed(256, 16, 2, 32),), _range(0, 3), _q2_k),
        BlockCodes(_T.Q3_K, (_packed(256, 32, 2, 32), _packed(256, 0, 1, 32, 2)), _range(-4, 3), _q3_k),
        BlockCodes(_T.Q4_K, (_packed(256, 16, 4, 32),), _range(0, 15), _q4_k),
        BlockCodes(_T.Q5_K, (_packed(256, 48, 4, 32), _packed(256, 16, 1, 32, 4)), _range(0, 31), _q4_k),
        BlockCodes(_T.Q6_K, (_packed(256, 0, 4, 64), _packed(256, 128, 2, 32, 4)), _range(-32, 31), _q6_k),
        BlockCodes(_T.IQ4_NL, (_packed(32, 2, 4, 16),), _IQ4, _one_scale),
        BlockCodes(_T.IQ4_XS, (_packed(256, 8, 4, 16),), _IQ4, _iq4_xs),
        BlockCodes(_T.MXFP4, (_packed(32, 1, 4, 16),), _E2M1, _exponent),
        BlockCodes(_T.NVFP4, (_packed(64, 4, 4, 8),), _E2M1, _nvfp4),
    )
}

_GRID = "one code stands for several weights at once"
# Why a type that exists is not in the table; the reason becomes part of the error message.
REFUSED: Mapping[GGMLQuantizationType, str] = {
    **dict.fromkeys((_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S), _GRID),
    _T.TQ1_0: "five weights share one byte",
    _T.TQ2_0: "its three values are too coarse",
}


def codes_of(tensor_type: GGMLQuantizationType, tensor: str) -> BlockCodes | PlainNumbers:
    """The row of `tensor_type`; raises CheckpointError that names the type, the reason and the remedy."""
    if tensor_type not in CODES:
        reason = REFUSED.get(tensor_type, "it is not a type of weights")
        raise CheckpointError(
            f"tensor {tensor} is {tensor_type.name}, whose weights cannot be chosen one by one because {reason}: "
            "store it in a wider type with --tensor-type (in Python: tensor_type)"
        )
    return CODES[tensor_type]
