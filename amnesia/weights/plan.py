"""What an edit means for the stored matrices of a model: which columns of which tensors change, and into what.

It reads no files: what it must know of a model, a folder or a repository on the Hub tells by `Weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from amnesia.architectures import MlpShape
from amnesia.edit_checks import check_edits
from amnesia.edits import DirectionEdit, EditSpec, EntityEdits, MatrixEdit, by_projection
from amnesia.errors import LayoutError, NumericalError
from amnesia.weights.manifest import Manifest, check_earlier
from amnesia.weights.safetensors import TensorInfo, WeightFiles, check_matrix
from amnesia.weights.scaling import Term, add_to_bytes, check_dtype, factor_of, scale_bytes


class Weights(Protocol):
    """What an edit must know of a model, wherever its files are: sizes, headers, columns, and an earlier edit."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> MlpShape: ...

    @property
    def weights(self) -> WeightFiles: ...

    @property
    def manifest(self) -> Manifest | None: ...

    def read_columns(self, plan: TensorPlan) -> dict[int, bytes]:
        """The columns that a plan edits, as they are."""

    def check_unchanged(self) -> None:
        """Raises CheckpointError when what was looked over is not what is there now."""


@dataclass(frozen=True)
class TensorPlan(MatrixEdit):
    """The edit of one stored matrix, whose indices lie along `axis`.

    `expert` says whose matrix it is in a layer with a mixture of experts.
    """

    layer: int
    file: str
    tensor: TensorInfo
    axis: int
    expert: int | None = None


SourceT = TypeVar("SourceT", bound=Weights)


@dataclass(frozen=True)
class Plan(Generic[SourceT]):
    """An edit of a model, checked once: which columns of which stored matrices change, by layers and experts."""

    source: SourceT
    spec: EditSpec
    tensors: tuple[TensorPlan, ...]

    @classmethod
    def of(cls, source: SourceT, spec: EditSpec) -> Plan[SourceT]:
        """The plan of an edit; raises what `plan_edits` raises."""
        return cls(source, spec, plan_edits(source, spec.groups, allow_overlap=spec.allow_overlap))


def plan_edits(
    source: Weights, groups: Sequence[EntityEdits], *, allow_overlap: bool = False
) -> tuple[TensorPlan, ...]:
    """Which indices of which stored tensors change, in the order of layers and experts.

    Raises InputError for cells and directions that do not fit the model, and for cells that two entities share or that
    an earlier edit of this checkpoint has scaled (unless `allow_overlap`); LayoutError when a tensor is missing or has
    another shape than the configuration says; CheckpointError for types that cannot be edited.
    """
    shape = source.shape
    for group in groups:
        check_edits(group.edits, shape.n_layers, shape.d_model, shape.width, source.name, shape.experts_in)
    changes = by_projection(groups, allow_overlap=allow_overlap)
    if source.manifest is not None:
        check_earlier(source.manifest, groups, "safetensors", allow_overlap=allow_overlap)
    return tuple(_plan_matrix(source, *place, change) for place, change in changes.items())


def _plan_matrix(
    source: Weights,
    layer: int,
    expert: int | None,
    change: MatrixEdit,
) -> TensorPlan:
    name, axis = source.shape.tensor(layer, expert)
    found = source.weights.find(name)
    if found is None:
        raise LayoutError(
            f"{source.name} has no matrix {name}: expected a tensor of whole bytes; convert it to bfloat16"
        )
    file, tensor = found
    check_dtype(tensor.dtype, tensor.name)
    check_matrix(tensor, axis, change.indices)
    return TensorPlan(layer, file, tensor, axis, expert, **vars(change))


def edited_vectors(
    vectors: Mapping[int, bytes],
    tensor: TensorInfo,
    multipliers: Mapping[int, float],
    directions: Sequence[DirectionEdit] = (),
) -> dict[int, bytes]:
    """Columns after the edit: scaled, then the directions added; raises NumericalError that names tensor and index."""
    terms: dict[int, list[Term]] = {}
    for edit in directions:
        factor = direction_factor(edit, tensor)
        for index, u in zip(edit.columns, edit.read.array.tolist(), strict=True):
            terms.setdefault(index, []).append((factor, u))
    edited = {}
    for index, raw in vectors.items():
        try:
            if index in terms:
                edited[index] = add_to_bytes(raw, tensor.dtype, multipliers[index], terms[index])
            else:
                edited[index] = scale_bytes(raw, tensor.dtype, multipliers[index]).raw
        except NumericalError as error:
            raise NumericalError(f"tensor {tensor.name}, neuron {index}: {error}") from None
    return edited


def direction_factor(edit: DirectionEdit, tensor: TensorInfo) -> np.ndarray:
    """`scaling.factor_of` for a direction (d_model,); raises NumericalError that names the tensor."""
    try:
        return factor_of(edit.write.array, edit.multiplier, tensor.dtype)
    except NumericalError as error:
        raise NumericalError(f"tensor {tensor.name}: {error}") from None
