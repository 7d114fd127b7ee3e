"""The parts of a GGUF file that an edit changes: rows of `ffn_up`, and columns of `ffn_down`.

A piece knows its bytes before and after the edit, and how the one follows from the other. Files are only ever patched
with them, so that size, order, metadata and padding stay what they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amnesia.domain import Cell
from amnesia.edits import DirectionEdit, Place
from amnesia.errors import CheckpointError, NumericalError
from amnesia.files.disk import read_exactly, read_range
from amnesia.files.streams import RangeHash, Strided
from amnesia.weights.gguf.blocks import scale_row, scales_of
from amnesia.weights.gguf.codes import BlockCodes, PlainNumbers, codes_of
from amnesia.weights.gguf.container import GgufFile, GgufTensor
from amnesia.weights.gguf.rounding import Metric, choose_codes
from amnesia.weights.manifest import BaseFile, TensorEdit
from amnesia.weights.safetensors import NewTensor

# Numbers of a matrix that are worked on at a time; several arrays of doubles of this size are in memory.
_CHUNK = 2**23


@dataclass(frozen=True)
class UpRow:
    """One row of `ffn_up`: its tensor and file, the cell it belongs to, and the index of its layer's neuron 0 there."""

    file: GgufFile
    tensor: GgufTensor
    cell: Cell
    first: int

    @property
    def index(self) -> int:
        """The row's place in the tensor."""
        return self.first + self.cell.neuron

    @property
    def offset(self) -> int:
        """Where the row starts, in bytes from the start of the file."""
        return self.tensor.offset + self.index * self.tensor.row_bytes

    def read(self) -> bytes:
        """The row's bytes as they are on disk."""
        return read_range(self.file.path, self.tensor.row_bytes, self.offset)

    def scale(self, content: bytes, multiplier: float) -> bytes:
        """`content`, bytes of this row, multiplied; raises as `scale_row` does."""
        what = f"row {self.index} of {self.tensor.name} in {self.file.path.name}"
        return scale_row(scales_of(self.tensor.tensor_type, self.tensor.name), content, multiplier, what)

    def edit(self, multiplier: float) -> RowEdit:
        """The row multiplied; raises as `scale`."""
        before = self.read()
        return RowEdit(self, multiplier, before, self.scale(before, multiplier))


@dataclass(frozen=True)
class RowEdit:
    """A row, what multiplies it, and its bytes before and after."""

    row: UpRow
    multiplier: float
    before: bytes
    after: bytes

    @property
    def file(self) -> GgufFile:
        return self.row.file

    @property
    def tensor(self) -> GgufTensor:
        return self.row.tensor

    def originals(self) -> list[Strided]:
        """The bytes before the edit."""
        return [Strided(self.row.offset, len(self.before), len(self.before), self.before)]

    def changes(self) -> list[Strided]:
        """The bytes after it."""
        return [Strided(self.row.offset, len(self.after), len(self.after), self.after)]


@dataclass(frozen=True)
class TensorBytes:
    """Bytes of a tensor: in each row those at `places`, ascending; `content` is uint8 (n_rows, n_places)."""

    places: np.ndarray
    content: np.ndarray

    def put(self, rows: np.ndarray, first: int) -> None:
        """Overwrite these bytes of `rows`, uint8 (n, row_bytes), which start with row `first` of the tensor."""
        rows[:, self.places] = self.content[first : first + len(rows)]

    def under(self, later: TensorBytes | None) -> TensorBytes:
        """These and the bytes of `later` together; where both have one, it is that of these."""
        if later is None:
            return self
        places = np.union1d(self.places, later.places)
        content = np.empty((len(self.content), len(places)), np.uint8)
        for part in (later, self):
            content[:, np.searchsorted(places, part.places)] = part.content
        return TensorBytes(places, content)


@dataclass(frozen=True)
class Down:
    """The matrix `ffn_down` at `place`, a layer or one of its experts, and what an edit makes of it.

    Its columns are multiplied by `cells`, then `directions` are added. `scaled` are the multipliers of all rows of
    `ffn_up` in this layer that are scaled: as these multiply what the columns receive, what is written into a column
    must be divided by them.
    """

    file: GgufFile
    tensor: GgufTensor
    directions: tuple[DirectionEdit, ...]
    scaled: Mapping[int, float]
    place: Place
    cells: Mapping[int, float]

    @property
    def columns(self) -> tuple[int, ...]:
        """All columns that change, ascending."""
        return tuple(sorted({*self.cells, *self._turned}))

    @property
    def _turned(self) -> tuple[int, ...]:
        """The columns to which a direction is added, ascending."""
        return tuple(sorted({column for edit in self.directions for column in edit.columns}))

    @property
    def multipliers(self) -> dict[int, float]:
        """The multiplier of each column that changes, 1 where only a direction changes it."""
        return {column: self.cells.get(column, 1.0) for column in self.columns}

    @property
    def places(self) -> np.ndarray:
        """The bytes of a row to keep: those of the columns, or all where that is about the same."""
        found = codes_of(self.tensor.tensor_type, self.tensor.name).byte_places(self.columns)
        return np.arange(self.tensor.row_bytes) if 2 * len(found) > self.tensor.row_bytes else found

    def rows(self, overlays: Sequence[TensorBytes] = ()) -> Iterator[tuple[int, np.ndarray]]:
        """The matrix as it is on disk with `overlays` put in, some rows at a time: the first, and uint8 (n, bytes)."""
        n_rows, size = self.tensor.shape[0], self.tensor.row_bytes
        step = max(1, _CHUNK // self.tensor.shape[1])
        with self.file.path.open("rb") as stream:
            for first in range(0, n_rows, step):
                count = min(step, n_rows - first)
                offset = self.tensor.offset + first * size
                content = read_exactly(stream.fileno(), count * size, offset, str(self.file.path))
                rows = np.frombuffer(bytearray(content), np.uint8).reshape(count, size)
                for overlay in overlays:
                    overlay.put(rows, first)
                yield first, rows

    def read(self, overlays: Sequence[TensorBytes] = ()) -> TensorBytes:
        """The bytes at `places`."""
        return TensorBytes(self.places, np.concatenate([rows[:, self.places] for _, rows in self.rows(overlays)]))

    def edit(self, overlays: Sequence[TensorBytes] = ()) -> DownEdit:
        """Multiply columns of the matrix as it is with `overlays`, and add the directions.

        Raises CheckpointError for types whose weights cannot be chosen or multiplied singly, and for a column whose row
        of `ffn_up` is multiplied by zero, NumericalError for numbers that are not finite.
        """
        layout = codes_of(self.tensor.tensor_type, self.tensor.name)
        columns = np.array(self._turned, np.intp)
        factor = self._factors(self._turned)
        metric = self._metric(columns, factor)
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        reached, wanted = np.zeros(len(self.directions)), np.zeros(len(self.directions))
        for first, rows in self.rows(overlays):
            try:
                changed, effect, intended = self._edit_rows(layout, first, rows, columns, factor, metric)
            except NumericalError as error:
                raise NumericalError(f"{self.tensor.name} in {self.file.path.name}: {error}") from None
            before.append(rows[:, self.places])
            after.append(changed[:, self.places])
            reached += (effect * intended).sum(axis=0)
            wanted += (intended * intended).sum(axis=0)
        return DownEdit(
            self,
            TensorBytes(self.places, np.concatenate(before)),
            TensorBytes(self.places, np.concatenate(after)),
            _furthest(reached, wanted),
        )

    def _edit_rows(
        self,
        layout: BlockCodes | PlainNumbers,
        first: int,
        rows: np.ndarray,
        columns: np.ndarray,
        factor: np.ndarray,
        metric: Metric,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The new rows, and what the keys get of the change that was made and of the one that was to be made."""
        if self.cells:
            rows = layout.scale(rows, self.cells, f"{self.tensor.name} in {self.file.path.name}")
        if not self.directions:
            nothing = np.zeros((len(rows), 0))
            return rows, nothing, nothing
        # Sums have a fixed order, without a library of linear algebra, so that every machine gets the same bytes.
        present = layout.values(rows, columns)
        target = present.copy()
        for edit in self.directions:
            where = np.searchsorted(columns, edit.columns)
            target[:, where] += _change(edit, factor[where], first, len(rows))
        if isinstance(layout, BlockCodes):
            scale, offset = layout.scales(rows, columns)
            codes = choose_codes(layout, target, scale, offset, layout.read(rows, columns), metric)
            changed = layout.write(rows, columns, codes)
        else:
            changed = layout.write(rows, columns, target)
        # These do not become bytes, so that the order of their sums is free.
        return changed, (layout.values(changed, columns) - present) @ metric.keys, (target - present) @ metric.keys

    def share(self, before: np.ndarray, target: np.ndarray, after: np.ndarray) -> float | None:
        """`share` of DownEdit for a matrix `before` that should become `target` and became `after`, float64."""
        columns = np.array(self._turned, np.intp)
        keys = self._metric(columns, self._factors(self._turned)).keys
        effect, intended = ((matrix[:, columns] - before[:, columns]) @ keys for matrix in (after, target))
        return _furthest((effect * intended).sum(axis=0), (intended * intended).sum(axis=0))

    def multiply(self, matrix: np.ndarray) -> np.ndarray:
        """All of the matrix as float64, with its columns multiplied in place."""
        for column, multiplier in self.cells.items():
            matrix[:, column] *= multiplier
        return matrix

    def add(self, matrix: np.ndarray) -> np.ndarray:
        """All of the matrix as float64, with the directions added in place; raises CheckpointError as `edit` does."""
        for edit in self.directions:
            change = _change(edit, self._factors(edit.columns), 0, len(matrix))
            matrix[:, np.array(edit.columns)] += change
        return matrix

    def entry(self, before: str, after: str, share: float | None = None) -> TensorEdit:
        """What the manifest says, with the sha256 of the matrix before and after; for `share` see DownEdit."""
        return TensorEdit(
            name=self.tensor.name,
            file=self.file.path.name,
            axis=1,
            place=self.place,
            multipliers=self.multipliers,
            before=before,
            after=after,
            directions=self.directions,
            share=None if share is None else round(share, 4),
        )

    def _factors(self, columns: Sequence[int]) -> np.ndarray:
        """What multiplies the rows of `ffn_up` that belong to the columns."""
        factors = np.array([self.scaled.get(column, 1.0) for column in columns])
        if not factors.all():
            dead = np.array(columns)[factors == 0][0]
            raise CheckpointError(
                f"{self.tensor.name} cannot get a direction in column {dead}, whose row of ffn_up is multiplied by 0: "
                "leave this column out, or edit the floating point model"
            )
        return factors

    def _metric(self, columns: np.ndarray, factor: np.ndarray) -> Metric:
        keys = np.zeros((len(columns), len(self.directions)))
        spread = np.zeros(len(columns))
        for number, edit in enumerate(self.directions):
            where = np.searchsorted(columns, edit.columns)
            keys[where, number] = edit.key.array
            spread[where] = np.maximum(spread[where], np.abs(edit.spread.array))
        return Metric(keys * factor[:, None], spread * np.abs(factor))


def _furthest(reached: np.ndarray, wanted: np.ndarray) -> float | None:
    """The share furthest from 1, of directions that were to change something; both arrays (n_directions,)."""
    shares = (reached[wanted > 0] / wanted[wanted > 0]).tolist()
    return max(shares, key=lambda share: abs(share - 1.0)) if shares else None


def _change(edit: DirectionEdit, factors: np.ndarray, first: int, n_rows: int) -> np.ndarray:
    """What a direction adds to its columns in rows from `first`, float64 (n_rows, n_columns)."""
    read = (edit.multiplier - 1.0) * edit.read.array.astype(np.float64) / factors
    return edit.write.array[first : first + n_rows].astype(np.float64)[:, None] * read


@dataclass(frozen=True)
class DownEdit:
    """A matrix `ffn_down` in which columns were changed, and its bytes before and after.

    `share` is how much of the change at a direction's key the chosen codes make, the furthest from 1 of all directions,
    or None where that is not known.
    """

    down: Down
    before: TensorBytes
    after: TensorBytes
    share: float | None = None

    @property
    def file(self) -> GgufFile:
        return self.down.file

    @property
    def tensor(self) -> GgufTensor:
        return self.down.tensor

    def originals(self) -> list[Strided]:
        """The bytes before the edit."""
        return self._patches(self.before)

    def changes(self) -> list[Strided]:
        """The bytes after it."""
        return self._patches(self.after)

    def _patches(self, content: TensorBytes) -> list[Strided]:
        row_bytes = self.tensor.row_bytes
        patches = []
        ends = np.flatnonzero(np.diff(content.places) != 1) + 1
        for start, end in itertools.pairwise([0, *ends.tolist(), len(content.places)]):
            run = np.ascontiguousarray(content.content[:, start:end]).tobytes()
            patches.append(Strided(self.tensor.offset + int(content.places[start]), row_bytes, end - start, run))
        return patches

    def saved(self) -> NewTensor:
        """The original bytes, for the undo file."""
        return NewTensor(self.tensor.name, "U8", self.before.content.shape, (self.before.content.tobytes(),))


Piece = RowEdit | DownEdit


def originals(pieces: Sequence[Piece], file_name: str) -> list[Strided]:
    """The original bytes of the pieces of one file."""
    return [patch for piece in pieces if piece.file.path.name == file_name for patch in piece.originals()]


def changes(pieces: Sequence[Piece]) -> list[Strided]:
    """The new bytes of pieces."""
    return [patch for piece in pieces for patch in piece.changes()]


class PieceHashes:
    """What a manifest says about a file and the tensors of its pieces, hashed while a stream reads it."""

    def __init__(self, file: GgufFile, pieces: Sequence[Piece]) -> None:
        self._file = file
        groups = itertools.groupby(pieces, key=lambda piece: piece.tensor)
        self._pieces = [list(group) for _, group in groups]
        self._whole = RangeHash(0, file.size)
        places = [(group[0].tensor.offset, group[0].tensor.n_bytes) for group in self._pieces]
        self._before = [RangeHash(*place) for place in places]
        self._after = [RangeHash(*place, patched=True) for place in places]

    def ranges(self) -> list[RangeHash]:
        """What the stream has to fill in."""
        return [self._whole, *self._before, *self._after]

    def base_file(self) -> BaseFile:
        """The file before the edit."""
        return BaseFile(self._file.path.name, self._file.size, self._whole.hexdigest())

    def entries(self) -> list[TensorEdit]:
        """The tensors before and after it."""
        return [
            _entry(group, before.hexdigest(), after.hexdigest())
            for group, before, after in zip(self._pieces, self._before, self._after, strict=True)
        ]


def _entry(pieces: Sequence[Piece], before: str, after: str) -> TensorEdit:
    first = pieces[0]
    if isinstance(first, DownEdit):
        # The last digits may differ between machines, which no manifest should show.
        return first.down.entry(before, after, first.share)
    rows = [piece for piece in pieces if isinstance(piece, RowEdit)]
    return TensorEdit(
        name=first.tensor.name,
        file=first.file.path.name,
        axis=0,
        place=Place(first.row.cell.layer, first.row.cell.expert, "cells", first.row.first),
        multipliers={row.row.index: row.multiplier for row in rows},
        before=before,
        after=after,
    )
