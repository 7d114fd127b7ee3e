"""The vocabulary of the package: frozen value types, without torch and without input or output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from amnesia.errors import InputError

FactKind = Literal["target", "held_out_target", "control", "held_out_control", "neutral"]
Verdict = Literal["strong", "weak", "none"]
Split = Literal["search", "held_out"]


@dataclass(frozen=True, order=True)
class Cell:
    """One MLP neuron: an index into the input of layer `layer`'s output projection."""

    layer: int
    neuron: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.neuron}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read `layer:neuron`; raises InputError for anything else."""
        match = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if match is None:
            raise InputError(f"cell {text!r} is malformed: expected LAYER:NEURON, for example 2:10941")
        return cls(int(match[1]), int(match[2]))


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


def check_edits(edits: Sequence[ColumnEdit], n_layers: int, d_mlp: int, model: str) -> tuple[ColumnEdit, ...]:
    """Sorted edits, after checking that each cell exists in the model and appears once.

    Raises InputError naming the first cell that is out of range, repeated, or left unchanged by its multiplier.
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
        if not 0 <= neuron < d_mlp:
            raise InputError(
                f"neuron {neuron} is out of range: layer {layer} of {model} has neurons 0–{d_mlp - 1}; "
                "run `amnesia localize` on this model to find its cells"
            )
        if edit.cell in seen:
            raise InputError(f"cell {edit.cell} is listed twice: give each cell once")
        if not abs(edit.multiplier) < float("inf") or edit.multiplier == 1.0:
            raise InputError(
                f"multiplier {edit.multiplier} of cell {edit.cell} changes nothing or is not finite: use -1"
            )
        seen.add(edit.cell)
    return tuple(sorted(edits))
