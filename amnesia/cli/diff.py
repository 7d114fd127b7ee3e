"""The command `diff`: which tensors of two checkpoints differ, and how."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from amnesia.cli.options import MODEL, as_json
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.numbers import share, short

if TYPE_CHECKING:
    from amnesia.outputs.diff import ModelDifference
    from amnesia.weights.difference import MatrixDifference

EXIT_DIFFERENT = 1
_N_SHOWN = 8


@click.command()
@click.argument("model", type=MODEL)
@click.argument("other", type=MODEL)
@as_json
def diff(model: str, other: str, json_output: bool) -> None:
    """Say which tensors differ between any two checkpoints. Edits of cells and of directions are recognized, except
    where tensors were also stored in another type.

    For each tensor: the share of numbers that differ, the largest change if it is finite (1 is the root mean square of
    the tensor in MODEL), the columns or rows that differ, by which number they were multiplied if they were, and the
    rank of the difference beyond rounding. Of tensors with scales beside them, as quantized ones have, numbers are not
    compared. Two .gguf files are compared as they are.

    Exits as `diff` does: 0 when all tensors are the same, 1 when some differ, 2 when they cannot be compared.
    """
    from amnesia.outputs.diff import diff as differences

    found = differences(model, other, Terminal())
    if json_output:
        print_json({"same": found.same, **dataclasses.asdict(found)})
    else:
        echo(_shown(found), lines=True)
    if not found.same:
        sys.exit(EXIT_DIFFERENT)


def _shown(found: ModelDifference) -> str:
    lines = [_row(row) for row in found.tensors]
    for names, what in ((found.only_first, "only in MODEL"), (found.only_second, "only in OTHER")):
        lines += [f"{name}: {what}" for name in names]
    lines += [f"{name}: of another shape" for name in found.reshaped]
    n_apart = len(found.only_first) + len(found.only_second) + len(found.reshaped)
    some = f", {n_apart} of them by name or shape" if n_apart else ""
    lines.append(f"{n_apart + len(found.tensors)} of {n_apart + found.n_compared} tensors differ{some}")
    if found.edit is not None:
        cells = _several([f"{cell} × {short(by, 4)}" for cell, by in found.edit.cells])
        parts = [f"cells {cells}"] if found.edit.cells else []
        parts += [
            f"{row.rank} direction{'s' * (row.rank > 1)} of layer {row.layer} on {len(row.columns)} columns"
            for row in found.edit.directions
        ]
        lines.append(f"an edit as amnesia makes it: {'; '.join(parts)}")
    return "\n".join(lines)


def _row(row: MatrixDifference) -> str:
    types = row.dtypes[0] if row.dtypes[0] == row.dtypes[1] else " → ".join(row.dtypes)
    if row.share is None:
        scaled = "" if row.scales is None else f", to be multiplied by {row.scales}: its numbers are not compared"
        return f"{row.name} ({types}): {'other bytes' if row.dtypes[0] == row.dtypes[1] else 'of another type'}{scaled}"
    parts = [f"{share(row.share, 3)} of the numbers"]
    if row.largest is not None:
        parts.append(f"by at most {row.largest:.3g}")
    if row.axis is not None:
        what = "columns" if row.axis else "rows"
        differ = f"{len(row.indices)} of {row.shape[row.axis]} {what}"
        if row.scaled:
            some = "" if len(row.scaled) == len(row.indices) else f", {len(row.scaled)} of these"
            differ += f"{some} multiplied ({_several([f'{n} × {short(by, 4)}' for n, by in row.scaled.items()])})"
        parts.append(differ)
    if row.rank is not None:
        parts.append(f"rank {row.rank}")
    return f"{row.name} ({types}): {', '.join(parts)}"


def _several(items: Sequence[str]) -> str:
    more = len(items) - _N_SHOWN
    return ", ".join(items[:_N_SHOWN]) + (f" and {more} more" if more > 0 else "")
