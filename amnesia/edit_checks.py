"""Whether edits fit a model: its layers, neurons, experts and widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amnesia.domain import MAX_MULTIPLIER, Cell
from amnesia.edits import ColumnEdit, DirectionEdit, Edit, columns_of, directions_of, nothing_to_edit
from amnesia.errors import InputError


def no_experts(layer: int) -> None:
    """What a model without a mixture of experts has in any layer."""


def check_edits(
    edits: Sequence[Edit],
    n_layers: int,
    d_model: int,
    d_mlp: int | Callable[[int], int],
    model: str,
    experts_in: Callable[[int], tuple[int, int] | None] = no_experts,
) -> tuple[Edit, ...]:
    """Sorted edits, cells first, after checking that each fits the model and that no cell appears twice.

    `d_mlp` is the number of neurons of every layer, or gives that of each: 0 for a layer that has nothing but a mixture
    of experts. `experts_in` gives the number of experts in a layer and the neurons of each, or None without
    any. Raises InputError for the first cell or direction out of range, repeated, or left unchanged by its multiplier.
    """
    if not edits:
        raise nothing_to_edit()
    seen: set[Cell] = set()
    for edit in edits:
        layer = edit.layer
        if not 0 <= layer < n_layers:
            raise InputError(
                f"layer {layer} is out of range: {model} has layers 0–{n_layers - 1}; "
                "run `amnesia localize` on this model to find its cells"
            )
        if not abs(edit.multiplier) <= MAX_MULTIPLIER or edit.multiplier == 1.0:
            what = f"cell {edit.cell}" if isinstance(edit, ColumnEdit) else f"a direction of layer {layer}"
            bound = f"changes nothing or is beyond ±{MAX_MULTIPLIER:g}"
            raise InputError(f"multiplier {edit.multiplier:g} of {what} {bound}: use -1")
        width = d_mlp if isinstance(d_mlp, int) else d_mlp(layer)
        if isinstance(edit, DirectionEdit):
            _check_direction(edit, d_model, width, model)
            continue
        if edit.cell in seen:
            raise InputError(f"cell {edit.cell} is listed twice: give each cell once")
        seen.add(edit.cell)
        _check_cell(edit.cell, width, model, experts_in(layer))
    return (*sorted(columns_of(edits)), *sorted(directions_of(edits), key=lambda edit: edit.layer))


def _check_direction(edit: DirectionEdit, d_model: int, d_mlp: int, model: str) -> None:
    if not d_mlp:
        raise InputError(
            f"layer {edit.layer} of {model} has a mixture of experts: directions need a layer without; edit its cells"
        )
    if not edit.columns or list(edit.columns) != sorted(set(edit.columns)) or edit.columns[0] < 0:
        raise InputError(f"a direction of layer {edit.layer} has malformed columns: expected ascending numbers")
    if edit.columns[-1] >= d_mlp or edit.write.size != d_model:
        raise InputError(
            f"a direction of layer {edit.layer} has column {edit.columns[-1]} and writes {edit.write.size} numbers: "
            f"{model} has {d_mlp} columns of {d_model}; use the model that the edit was made for"
        )
    for name in ("read", "key", "spread"):
        if getattr(edit, name).size != len(edit.columns):
            raise InputError(
                f"a direction of layer {edit.layer} has {getattr(edit, name).size} numbers as `{name}` for "
                f"{len(edit.columns)} columns: make the edit again"
            )
    for name in ("read", "write", "key", "spread"):
        if not getattr(edit, name).is_finite:
            raise InputError(
                f"`{name}` of a direction of layer {edit.layer} holds NaN or infinity: make the edit again"
            )


def _check_cell(cell: Cell, d_mlp: int, model: str, experts: tuple[int, int] | None) -> None:
    if cell.expert is not None or not d_mlp:
        _check_expert(cell, experts, model)
    routed = cell.expert is not None and experts is not None
    n_neurons = experts[1] if routed else d_mlp
    if not 0 <= cell.neuron < n_neurons:
        find = "give one of these" if routed else "run `amnesia localize` on this model to find its cells"
        owner = f"each expert of layer {cell.layer}" if routed else f"layer {cell.layer}"
        raise InputError(
            f"neuron {cell.neuron} is out of range: {owner} of {model} has neurons 0–{n_neurons - 1}; {find}"
        )


def _check_expert(cell: Cell, experts: tuple[int, int] | None, model: str) -> None:
    if experts is None:
        if cell.expert is not None:
            raise InputError(
                f"cell {cell} names an expert: layer {cell.layer} of {model} has none that can be edited; write it as "
                f"{Cell(cell.layer, cell.neuron)}"
            )
        return
    known = f"layer {cell.layer} of {model} has experts 0–{experts[0] - 1}"
    if cell.expert is None:
        raise InputError(f"cell {cell} names no expert: {known}; write it as LAYER:EXPERT:NEURON")
    if not 0 <= cell.expert < experts[0]:
        raise InputError(f"expert {cell.expert} is out of range: {known}; give one of these")
