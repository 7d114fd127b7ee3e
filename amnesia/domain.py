"""The vocabulary of the package: frozen value types, without torch and without input or output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal

from amnesia.errors import InputError

FactKind = Literal["target", "held_out_target", "control", "held_out_control", "neutral"]
Verdict = Literal["strong", "weak", "none"]
Split = Literal["search", "held_out"]
Format = Literal["safetensors", "adapter", "gguf"]
FORMATS: tuple[Format, ...] = ("safetensors", "adapter", "gguf")


@total_ordering
@dataclass(frozen=True)
class Cell:
    """One MLP neuron: an index into the input of layer `layer`'s output projection.

    In a layer with a mixture of experts each expert has an output projection of its own; `expert` says which. Cells
    sort by layer, expert and neuron.
    """

    layer: int
    neuron: int
    expert: int | None = None

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"{self.expert}:"
        return f"{self.layer}:{expert}{self.neuron}"

    def __lt__(self, other: Cell) -> bool:
        return self._place() < other._place()

    def _place(self) -> tuple[int, int, int]:
        return self.layer, -1 if self.expert is None else self.expert, self.neuron

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read `layer:neuron` or `layer:expert:neuron`; raises InputError for anything else."""
        match = re.fullmatch(r"([0-9]{1,18}):(?:([0-9]{1,18}):)?([0-9]{1,18})", text.strip())
        if match is None:
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise InputError(
                f"cell {shown!r} is malformed: expected LAYER:NEURON, for example 2:10941, or LAYER:EXPERT:NEURON in a "
                "mixture of experts"
            )
        return cls(int(match[1]), int(match[3]), None if match[2] is None else int(match[2]))


@dataclass(frozen=True, order=True)
class ColumnEdit:
    """Multiply the column of the output projection that belongs to `cell` by `multiplier` (1 changes nothing)."""

    cell: Cell
    multiplier: float = -1.0

    def __str__(self) -> str:
        return f"{self.cell}×{self.multiplier:g}"


@dataclass(frozen=True)
class CellScore:
    """A ranked cell: stability score with the sign of the mean, mean and standard deviation of its z-scores."""

    cell: Cell
    score: float
    mean_z: float
    std_z: float


@dataclass(frozen=True)
class EntityCells:
    """The cells of one entity, best first."""

    entity: str
    cells: tuple[CellScore, ...]


@dataclass(frozen=True)
class Localization:
    """Result of ranking cells: for each entity the best cells, and over what they were computed.

    `n_prompts` counts entity prompts that were used, `n_skipped` those in which the entity could not be placed.
    """

    model: str
    baseline: str
    n_prompts: int
    n_skipped: int
    layers: tuple[int, ...]
    entities: tuple[EntityCells, ...]


@dataclass(frozen=True)
class Fact:
    """A prompt about an entity and the answer that the model is expected to give.

    `prompt` contains `{entity}`; `split` says whether the search may see the fact.
    """

    entity: str
    prompt: str
    answer: str
    split: Split = "search"

    def text(self, entity: str | None = None) -> str:
        """The prompt with `entity` (default: the fact's own) filled in."""
        return self.prompt.replace("{entity}", entity or self.entity)


@dataclass(frozen=True)
class PromptScore:
    """What one fact was worth before and after the edit.

    Log-probabilities are natural logarithms, summed over the tokens of the answer. `knowledge_score` is
    (after − unknown) / (before − unknown): 1 as before, 0 like an unknown entity. `*_first` are the same for the
    answer's first token alone. `excluded` is the reason why the fact is not scored, or None.
    """

    kind: FactKind
    entity: str
    prompt: str
    answer: str
    rank_before: int
    rank_after: int
    logprob_before: float
    logprob_after: float
    logprob_unknown: float
    knowledge_score: float | None
    knowledge_score_first: float | None
    generated_before: str | None = None
    generated_after: str | None = None
    excluded: str | None = None


@dataclass(frozen=True)
class Aggregate:
    """Mean of a knowledge score over the scored prompts of one kind, with a 95 % bootstrap interval."""

    kind: FactKind
    n: int
    n_excluded: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Extraction:
    """The edit chosen for one entity and the knowledge scores that it reached on the search facts.

    `target` and `control` are mean knowledge scores; `candidates_tried` counts the cells that were considered.
    """

    entity: str
    verdict: Verdict
    edits: tuple[ColumnEdit, ...]
    target: float
    control: float
    candidates_tried: int


def no_experts(layer: int) -> None:
    """What a model without a mixture of experts has in any layer."""


def check_edits(
    edits: Sequence[ColumnEdit],
    n_layers: int,
    d_mlp: int,
    model: str,
    experts_in: Callable[[int], tuple[int, int] | None] = no_experts,
) -> tuple[ColumnEdit, ...]:
    """Sorted edits, after checking that each cell exists in the model and appears once.

    `experts_in` gives the number of experts in a layer and the neurons of each, or None for a layer without experts,
    which has `d_mlp` neurons. Raises InputError naming the first cell that is out of range, repeated, or left unchanged
    by its multiplier.
    """
    if not edits:
        raise InputError("no cells to edit: give at least one LAYER:NEURON")
    seen: set[Cell] = set()
    for edit in edits:
        layer, neuron = edit.cell.layer, edit.cell.neuron
        if not 0 <= layer < n_layers:
            raise InputError(
                f"layer {layer} is out of range: {model} has layers 0–{n_layers - 1}; "
                "run `amnesia localize` on this model to find its cells"
            )
        experts = experts_in(layer)
        n_neurons = d_mlp if experts is None else experts[1]
        _check_expert(edit.cell, experts, model)
        if not 0 <= neuron < n_neurons:
            find = "run `amnesia localize` on this model to find its cells" if experts is None else "give one of these"
            owner = f"layer {layer}" if experts is None else f"each expert of layer {layer}"
            raise InputError(
                f"neuron {neuron} is out of range: {owner} of {model} has neurons 0–{n_neurons - 1}; {find}"
            )
        if edit.cell in seen:
            raise InputError(f"cell {edit.cell} is listed twice: give each cell once")
        if not abs(edit.multiplier) < float("inf") or edit.multiplier == 1.0:
            raise InputError(
                f"multiplier {edit.multiplier} of cell {edit.cell} changes nothing or is not finite: use -1"
            )
        seen.add(edit.cell)
    return tuple(sorted(edits))


def _check_expert(cell: Cell, experts: tuple[int, int] | None, model: str) -> None:
    if experts is None:
        if cell.expert is not None:
            raise InputError(
                f"cell {cell} names an expert: layer {cell.layer} of {model} has none; write it as "
                f"{Cell(cell.layer, cell.neuron)}"
            )
        return
    known = f"layer {cell.layer} of {model} has experts 0–{experts[0] - 1}"
    if cell.expert is None:
        raise InputError(f"cell {cell} names no expert: {known}; write it as LAYER:EXPERT:NEURON")
    if not 0 <= cell.expert < experts[0]:
        raise InputError(f"expert {cell.expert} is out of range: {known}; give one of these")
