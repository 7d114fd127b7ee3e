"""Directions in the tiny models of `support.tiny`, and outputs with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from amnesia.domain import Cell
from amnesia.edits import ColumnEdit, Edit
from amnesia.weights.checkpoint import write_edited
from amnesia.weights.manifest import Manifest
from support.checkpoints import write_output
from support.tiny import D_MLP, tiny_direction

ONE = (tiny_direction(0), tiny_direction(2, range(D_MLP), multiplier=0.25, seed=1))
# Two that share columns, a scaled cell that both of them change too, and one that neither does.
SEVERAL = (*ONE, tiny_direction(2, (0, 5, 6, 47), seed=2), ColumnEdit(Cell(2, 5)), ColumnEdit(Cell(1, 7)))


def edit(
    source: Path,
    output: Path,
    edits: Sequence[Edit] = SEVERAL,
    writer: Callable[..., Manifest] = write_edited,
    **options: object,
) -> Manifest:
    """A complete output; `options` as of `write_output`."""
    return write_output(source, output, edits, writer, **options)
