"""What the saved factors of an adapter come to, told by their numbers: no model is built, and PEFT is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from amnesia.errors import VerificationError
from amnesia.weights.adapter import DTYPES, KEY_PREFIX, WEIGHTS_NAME, module_path
from amnesia.weights.plan import Plan, TensorPlan, edited_vectors
from amnesia.weights.safetensors import read_header
from amnesia.weights.scaling import number_type, sum_dtype

_A, _B = ".lora_A.weight", ".lora_B.weight"
_N_SUMS = 4
"""How many roundings of the type of sums one number may have gone through."""


def saved_factors(adapter: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each matrix, by the path of its module, A (rank, d_mlp) and B (d_model, rank) of an adapter of this package.

    Raises VerificationError for tensors that are no such pair, and what `read_header` raises.
    """
    path = adapter / WEIGHTS_NAME
    header = read_header(path)
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in header.tensors.items():
        if not name.startswith(KEY_PREFIX) or not name.endswith((_A, _B)) or tensor.dtype not in DTYPES:
            raise VerificationError(
                f"{path} has a tensor {name} that is no factor of amnesia's: make the adapter again"
            )
        numbers = np.fromfile(path, number_type(tensor.dtype), tensor.size // number_type(tensor.dtype).itemsize,
                              offset=tensor.offset)  # fmt: skip
        arrays[name.removeprefix(KEY_PREFIX)] = numbers.reshape(tensor.shape)
    stems = {name.removesuffix(_A).removesuffix(_B) for name in arrays}
    found = {stem: (arrays.get(stem + _A), arrays.get(stem + _B)) for stem in sorted(stems)}
    pairs = {stem: (a, b) for stem, (a, b) in found.items() if a is not None and b is not None}
    if len(pairs) != len(found) or any(a.shape[0] != b.shape[1] for a, b in pairs.values()):
        raise VerificationError(f"{path} has factors that do not fit each other: make the adapter again")
    return pairs


def n_rounded(plan: Plan[Any], adapter: Path) -> int:
    """How many numbers of the merged matrices differ from those of the planned edit, each by no more than roundings.

    Merged is W + B·A, summed and rounded as PEFT does it for these types. Raises VerificationError that names the
    matrix where a number differs by more, or where factors are missing, left over, or change other columns.
    """
    factors = saved_factors(adapter)
    expected = {module_path(plan.source, row): row for row in plan.tensors}
    if different := sorted(factors.keys() ^ expected.keys()):
        raise VerificationError(f"{adapter} and its edit disagree on the matrix {different[0]}: make the adapter again")
    return sum(_n_rounded(plan, row, *factors[path]) for path, row in expected.items())


def _n_rounded(plan: Plan[Any], row: TensorPlan, a: np.ndarray, b: np.ndarray) -> int:
    stored, wide = number_type(row.tensor.dtype), number_type(sum_dtype(row.tensor.dtype))
    original = plan.source.read_columns(row)
    declared = edited_vectors(original, row.tensor, row.multipliers, row.directions)
    indices = list(original)

    def numbers(columns: dict[int, bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(columns[index] for index in indices), stored).reshape(len(indices), -1)

    a, b, base = a.astype(wide), b.astype(wide), numbers(original).astype(wide)
    # (columns, d_model)
    merged, edited = (base + (b @ a[:, indices]).T).astype(stored), numbers(declared)
    difference = np.abs(merged.astype(np.float64) - edited.astype(np.float64))
    size = np.abs(edited.astype(np.float64))
    terms = size + np.abs(base) + (np.abs(b) @ np.abs(a[:, indices])).T
    bound = float(ml_dtypes.finfo(stored).eps) * size + _N_SUMS * float(np.finfo(wide).eps) * terms
    others = np.delete(a, indices, axis=1)
    if others.any() or not (difference <= bound).all():  # Neither where a number is NaN.
        raise VerificationError(
            f"the factors of {row.tensor.name} do not give the declared edit: make the adapter again"
        )
    return int(np.count_nonzero(difference))
