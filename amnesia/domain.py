"""The vocabulary of the package: frozen value types, without torch and without input or output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Literal

from amnesia.errors import InputError
from amnesia.vector import Vector

Role = Literal["target", "control"]
ROLES: tuple[Role, ...] = ("target", "control")
Split = Literal["search", "held_out"]
SPLITS: tuple[Split, ...] = ("search", "held_out")
Reply = Literal["answer", "empty", "refusal"]
Level = Literal["damage", "warning", "info", "good"]
Neighborhood = Literal["shared_name", "related", "same_relation", "same_type", "unrelated"]
NEIGHBORHOODS: tuple[Neighborhood, ...] = ("shared_name", "related", "same_relation", "same_type", "unrelated")
Format = Literal["safetensors", "adapter", "gguf"]
FORMATS: tuple[Format, ...] = ("safetensors", "adapter", "gguf")
# Types in which a GGUF can store the tensors that get a direction, if not in their own.
WIDER_TYPES: tuple[str, ...] = ("f16", "bf16", "f32", "q8_0")


_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    """A model as its user calls it: a Hub id, a path or a built-in name, and the revision (branch, tag or commit).

    Only models on the Hub have revisions.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read `name` or `name@revision`; a path is a name as a whole, whatever it contains."""
        name, _, revision = text.partition("@")
        ref = cls(name, revision or None)
        return ref if ref.may_be_on_hub else cls(text)

    @property
    def may_be_on_hub(self) -> bool:
        """Whether the name has the form of a Hub id."""
        return _HUB_NAME.fullmatch(self.name) is not None and not self.name.startswith(".")

    def to_json(self) -> dict[str, str | None]:
        """The two keys by which reports and manifests name a model."""
        return {"id": self.name, "revision": self.revision}


@dataclass(frozen=True)
class Loading:
    """How a model comes into memory: a torch dtype's name or "auto" (as stored), and a torch device.

    Without a device it is cuda where there is one. With device "auto" accelerate spreads the layers over all devices,
    and over memory and disk when these are too small.
    """

    dtype: str = "float32"
    device: str | None = None


DEFAULT_LOADING = Loading()


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
class DirectionEdit:
    """Turn what layer `layer` writes about an entity, its atom, by `multiplier` (1 changes nothing, 0 takes it away).

    The output projection W (d_model, d_mlp) becomes W − (1 − multiplier)·v·uᵀ, in which only `columns` change. `read`
    is u on these n columns (uᵀk = 1 at the entity's key k, near 0 at everything else), `write` is v = W(k − n)
    (d_model,), what the layer writes about the entity beyond what it writes about any name. `key` is k on the columns,
    and `spread` the root mean square of the activations there over everything that must stay: with them a writer of
    few bits chooses what to round up and what down. `token` counts from the name's last token (0) backwards.
    """

    layer: int
    token: int
    multiplier: float
    columns: tuple[int, ...]
    read: Vector
    write: Vector
    key: Vector
    spread: Vector

    def __str__(self) -> str:
        return f"{self.layer}:token −{self.token}×{self.multiplier:g} on {len(self.columns)} columns"


Edit = ColumnEdit | DirectionEdit


def columns_of(edits: Sequence[Edit]) -> tuple[ColumnEdit, ...]:
    """The scaled columns among edits of either form."""
    return tuple(edit for edit in edits if isinstance(edit, ColumnEdit))


def directions_of(edits: Sequence[Edit]) -> tuple[DirectionEdit, ...]:
    """The directions among edits of either form."""
    return tuple(edit for edit in edits if isinstance(edit, DirectionEdit))


def weakened(edit: Edit, strength: float) -> Edit:
    """The edit with `strength` times its change: 1 is the edit itself, 0 changes nothing, above 1 goes beyond it."""
    return replace(edit, multiplier=1.0 + strength * (edit.multiplier - 1.0))


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

    def pair(self, entity: str | None = None) -> tuple[str, str]:
        """The prompt about `entity` (default: the fact's own) and the answer whose log-probability counts."""
        return self.text(entity), self.answer

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All answers that count as right when the model writes freely."""
        return self.answer, *self.answer_aliases


@dataclass(frozen=True)
class Answer:
    """What one model makes of a fact.

    `logprob` is the natural logarithm of the probability of the whole answer after the prompt, `logprob_first` that of
    its first token (nats), `rank` the place of that token among all tokens (0 is best). `generated` is the greedy
    continuation of the prompt, `exact_match` whether it contains a right answer, `reply` what kind of reply it is;
    these are None where nothing was generated.
    """

    logprob: float
    logprob_first: float
    rank: int
    generated: str | None = None
    exact_match: bool | None = None
    reply: Reply | None = None


@dataclass(frozen=True)
class PromptScore:
    """What one fact was worth before and after the edit.

    `logprob_unknown` (nats) is that of the answer for an unknown entity, in the original model. `knowledge_score` is
    (after − unknown) / (before − unknown): 1 as before, 0 like an unknown entity; `knowledge_score_first` is the same
    for the answer's first token alone. `kl` (nats per token) is how far the edited model departs from the original
    along the original's own continuation, where that was measured. `excluded` is the reason why the fact is not
    scored, or None; such facts have no generated texts either.
    """

    role: Role
    split: Split
    entity: str
    prompt: str
    answer: str
    before: Answer
    after: Answer
    logprob_unknown: float | None
    knowledge_score: float | None
    knowledge_score_first: float | None
    excluded: str | None = None
    answer_aliases: tuple[str, ...] = ()
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
class AnswerSummary:
    """One model's answers to scored prompts: share of exact matches, median rank, empty replies and refusals.

    What depends on generated text is None where none was generated.
    """

    exact_match: Estimate | None
    rank: float
    n_empty: int | None
    n_refused: int | None


@dataclass(frozen=True)
class Aggregate:
    """The scored prompts of one role and split, or of one group of them, taken together.

    `group` is "all", "neighborhood:…", "popularity:…" or "relation:…". `n_excluded` counts prompts of the group that
    were not scored. `exact_match_change` is the mean change of a prompt, with the interval of the pairs. What was not
    measured is None.
    """

    role: Role
    split: Split
    group: str
    n: int
    n_excluded: int
    knowledge_score: Estimate
    knowledge_score_first: Estimate | None
    before: AnswerSummary
    after: AnswerSummary
    exact_match_change: Estimate | None


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


def no_experts(layer: int) -> None:
    """What a model without a mixture of experts has in any layer."""


def check_edits(
    edits: Sequence[Edit],
    n_layers: int,
    d_model: int,
    d_mlp: int,
    model: str,
    experts_in: Callable[[int], tuple[int, int] | None] = no_experts,
) -> tuple[Edit, ...]:
    """Sorted edits, cells first, after checking that each fits the model and that no cell appears twice.

    `experts_in` gives the number of experts in a layer and the neurons of each, or None for a layer without experts,
    which has `d_mlp` neurons. Raises InputError naming the first cell or direction that is out of range, repeated, or
    left unchanged by its multiplier.
    """
    if not edits:
        raise InputError("nothing to edit: give at least one LAYER:NEURON")
    seen: set[Cell] = set()
    for edit in edits:
        layer = edit.cell.layer if isinstance(edit, ColumnEdit) else edit.layer
        if not 0 <= layer < n_layers:
            raise InputError(
                f"layer {layer} is out of range: {model} has layers 0–{n_layers - 1}; "
                "run `amnesia localize` on this model to find its cells"
            )
        if not abs(edit.multiplier) < float("inf") or edit.multiplier == 1.0:
            what = f"cell {edit.cell}" if isinstance(edit, ColumnEdit) else f"a direction of layer {layer}"
            raise InputError(f"multiplier {edit.multiplier} of {what} changes nothing or is not finite: use -1")
        if isinstance(edit, DirectionEdit):
            _check_direction(edit, d_model, d_mlp, model, experts_in(layer))
            continue
        if edit.cell in seen:
            raise InputError(f"cell {edit.cell} is listed twice: give each cell once")
        seen.add(edit.cell)
        _check_cell(edit.cell, d_mlp, model, experts_in(layer))
    return (*sorted(columns_of(edits)), *sorted(directions_of(edits), key=lambda edit: edit.layer))


def _check_direction(
    edit: DirectionEdit, d_model: int, d_mlp: int, model: str, experts: tuple[int, int] | None
) -> None:
    if experts is not None:
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
    n_neurons = d_mlp if experts is None else experts[1]
    _check_expert(cell, experts, model)
    if not 0 <= cell.neuron < n_neurons:
        find = "run `amnesia localize` on this model to find its cells" if experts is None else "give one of these"
        owner = f"layer {cell.layer}" if experts is None else f"each expert of layer {cell.layer}"
        raise InputError(
            f"neuron {cell.neuron} is out of range: {owner} of {model} has neurons 0–{n_neurons - 1}; {find}"
        )


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
