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
Reply = Literal["answer", "empty", "refusal"]
Level = Literal["damage", "warning", "info", "good"]
Neighborhood = Literal["shared_name", "related", "same_relation", "same_type", "unrelated"]
NEIGHBORHOODS: tuple[Neighborhood, ...] = ("shared_name", "related", "same_relation", "same_type", "unrelated")
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

    `prompt` contains `{entity}`; `split` says whether the search may see the fact. `answer_aliases` are other answers
    that count as right when the model writes freely; log-probabilities are those of `answer` alone. `neighborhood` is
    how close a control is to the target, where its author has said so.
    """

    entity: str
    prompt: str
    answer: str
    split: Split = "search"
    answer_aliases: tuple[str, ...] = ()
    neighborhood: Neighborhood | None = None

    def text(self, entity: str | None = None) -> str:
        """The prompt with `entity` (default: the fact's own) filled in."""
        return self.prompt.replace("{entity}", entity or self.entity)


@dataclass(frozen=True)
class PromptScore:
    """What one fact was worth before and after the edit.

    Log-probabilities are natural logarithms, summed over the tokens of the answer. `rank_*` are those of the answer's
    first token among all tokens (0 is best). `knowledge_score` is (after − unknown) / (before − unknown): 1 as before,
    0 like an unknown entity; `knowledge_score_first` is the same for the answer's first token alone. `exact_match_*`
    say whether the text generated contains the answer or one of `answer_aliases`, `reply_*` whether it is empty or a
    refusal; all of these are None where nothing was generated, as for facts that are not scored. `kl` (nats per token)
    is how far the edited model departs from the original along the original's own continuation, where that was
    measured. `excluded` is the reason why the fact is not scored, or None.
    """

    kind: FactKind
    entity: str
    prompt: str
    answer: str
    rank_before: int
    rank_after: int
    logprob_before: float
    logprob_after: float
    logprob_unknown: float | None
    knowledge_score: float | None
    knowledge_score_first: float | None
    generated_before: str | None = None
    generated_after: str | None = None
    excluded: str | None = None
    answer_aliases: tuple[str, ...] = ()
    exact_match_before: bool | None = None
    exact_match_after: bool | None = None
    reply_before: Reply | None = None
    reply_after: Reply | None = None
    neighborhood: Neighborhood | None = None
    relation: str | None = None
    popularity: str | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregate:
    """The scored prompts of one kind, or of one group of that kind, taken together.

    `group` is "all", "neighborhood:…", "popularity:…" or "relation:…". `n_excluded` counts prompts of the group that
    were not scored. Exact matches are shares of the scored prompts, and `exact_match_change` is the mean change of a
    prompt, with the interval of the pairs; ranks are medians. What was not measured is None.
    """

    kind: FactKind
    group: str
    n: int
    n_excluded: int
    knowledge_score: Estimate
    knowledge_score_first: Estimate | None
    exact_match_before: Estimate | None
    exact_match_after: Estimate | None
    exact_match_change: Estimate | None
    rank_before: float
    rank_after: float
    n_empty_before: int | None
    n_empty_after: int | None
    n_refused_before: int | None
    n_refused_after: int | None


@dataclass(frozen=True)
class TextScore:
    """Neutral text of one register: perplexity per word of each model, and the divergence between them.

    `kl` is the mean of KL(original || edited) over the tokens, in nats; None where there is no second model, or where
    the two do not share their tokens. `n_tokens` are the scored ones of the original model, `n_words` the words.
    """

    register: str
    language: str
    n_tokens: int
    n_words: int
    perplexity_before: float
    perplexity_after: float
    kl: float | None


@dataclass(frozen=True)
class Damage:
    """What an edit does to texts that have nothing to do with its target.

    Perplexities are per word, over all neutral text; `kl_controls` is the mean over control prompts of their `kl`.
    """

    perplexity_before: float
    perplexity_after: float
    texts: tuple[TextScore, ...]
    kl_controls: Estimate | None


@dataclass(frozen=True)
class Finding:
    """One plain sentence about the result, and how serious it is."""

    level: Level
    text: str


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


@dataclass(frozen=True)
class JointExtraction:
    """What was found for several entities: for each `alone`, and `together`, with the scores of the whole edit."""

    alone: tuple[Extraction, ...]
    together: tuple[Extraction, ...]


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
