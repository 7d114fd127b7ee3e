"""The originals of columns to which directions were added, as the few bits by which a way back misses them.

A sum that was rounded has no inverse, but subtracting what was added gives most numbers back as they were, and the rest
but for their last bits. What is left, compressed, takes a tenth to a fiftieth of the bytes of the columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from amnesia.edits import DirectionEdit, weakened
from amnesia.errors import NumericalError, VerificationError
from amnesia.weights.plan import edited_vectors
from amnesia.weights.safetensors import TensorInfo
from amnesia.weights.scaling import inverse_multiplier, scale_bytes


def residue_key(tensor: str) -> str:
    """Name under which the residue of a tensor is kept in the undo file."""
    return f"{tensor}:directions"


def added_to(directions: Sequence[DirectionEdit]) -> tuple[int, ...]:
    """The columns that any of the directions changes, ascending."""
    return tuple(sorted({column for edit in directions for column in edit.columns}))


def residue(
    tensor: TensorInfo,
    multipliers: Mapping[int, float],
    directions: Sequence[DirectionEdit],
    before: Mapping[int, bytes],
    after: Mapping[int, bytes],
) -> bytes:
    """What `restored` needs, beside the edit, to make the columns `before` out of those `after` it."""
    guesses = _guesses(tensor, multipliers, directions, after)
    return zlib.compress(_differing_bits(b"".join(guesses.values()), b"".join(before[index] for index in guesses)))


def restored(
    tensor: TensorInfo,
    multipliers: Mapping[int, float],
    directions: Sequence[DirectionEdit],
    after: Mapping[int, bytes],
    content: bytes,
) -> dict[int, bytes]:
    """The columns before the edit to which directions were added; raises VerificationError for a damaged residue."""
    guesses = _guesses(tensor, multipliers, directions, after)
    joined = b"".join(guesses.values())
    unpacker = zlib.decompressobj()
    try:
        bits = unpacker.decompress(content, len(joined) + 1)
    except zlib.error:
        bits = b""
    if len(bits) != len(joined) or not unpacker.eof or unpacker.unused_data:
        raise VerificationError(
            f"the saved originals of tensor {tensor.name} are damaged: make the output again, or fetch the base again"
        )
    original = _differing_bits(joined, bits)
    length = len(joined) // len(guesses)
    return {index: original[place * length : (place + 1) * length] for place, index in enumerate(guesses)}


def _guesses(
    tensor: TensorInfo,
    multipliers: Mapping[int, float],
    directions: Sequence[DirectionEdit],
    after: Mapping[int, bytes],
) -> dict[int, bytes]:
    """The columns before the edit but for rounding; any others would do, but leave more bits to keep."""
    edited = {index: after[index] for index in added_to(directions)}
    opposite = [weakened(edit, -1.0) for edit in directions]
    try:
        guesses = edited_vectors(edited, tensor, dict.fromkeys(edited, 1.0), opposite)
        for index in edited:
            inverse = inverse_multiplier(multipliers[index])
            if inverse not in (None, 1.0):
                guesses[index] = scale_bytes(guesses[index], tensor.dtype, inverse).raw
    except NumericalError:  # On the way back, the largest numbers may be rounded to infinity.
        return edited
    return guesses


def _differing_bits(one: bytes, other: bytes) -> bytes:
    return (np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes()
