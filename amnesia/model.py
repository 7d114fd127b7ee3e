"""The one module that touches live models: batches, hooks, activations, log-probabilities, generation.

It knows nothing of recipes, files or scores.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from amnesia.domain import ColumnEdit, check_edits
from amnesia.encoding import Continuation, Placed, continuations, encode
from amnesia.errors import InputError, LayoutError, NumericalError
from amnesia.layouts import MlpShape, no_hooks, shape_from_config
from amnesia.packing import LABEL, forests, visible

MAX_BATCH_TOKENS = 1024
"""Padded tokens per forward pass: large enough for full matrix products on a CPU, small in memory."""

MAX_BATCH_ROWS = 512
"""Rows per forward pass, for memory: rows that share most of their tokens are many in few tokens."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class LiveModel:
    """A causal language model in memory, its fast tokenizer, and where its MLPs are. `name` is for messages."""

    model: nn.Module
    tokenizer: Any
    shape: MlpShape
    name: str

    @property
    def device(self) -> torch.device:
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.is_meta:  # Left on disk by accelerate, whose hook fetches it to where it runs.
            return torch.device(embeddings._hf_hook.execution_device)
        return embeddings.weight.device

    def out_proj(self, layer: int) -> nn.Module:
        """The output projection of layer `layer`; its input is the layer's activations.

        Raises LayoutError for a layer with a mixture of experts, which transformers fuses in one parameter.
        """
        if self.shape.experts_in(layer) is not None:
            raise LayoutError(no_hooks(self.name))
        return self.model.get_submodule(self.shape.layout.out_proj_path(layer))

    def attention_out_proj(self, layer: int) -> nn.Module:
        """The output projection of the attention of layer `layer`."""
        return self.model.get_submodule(self.shape.layout.attention_path(layer))


@dataclass(frozen=True)
class AnswerLogprob:
    """Log-probability (nats) of an answer after a prompt: whole, first token, and that token's rank (0 is best)."""

    total: float
    first: float
    rank: int


def wrap(model: nn.Module, tokenizer: Any | None, name: str | None = None) -> LiveModel:
    """A LiveModel from a model and tokenizer that are already in memory; edits alone need no tokenizer.

    Raises LayoutError for architectures outside the table and InputError for tokenizers without offset mapping.
    """
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (tokenizer.json)"
        )
    shape = shape_from_config(model.config.to_dict())
    live = LiveModel(model, tokenizer, shape, name or getattr(model.config, "name_or_path", "") or "the model")
    last = shape.n_layers - 1
    try:
        if shape.experts_in(last) is None:
            live.out_proj(last)
        else:
            model.get_parameter(shape.layout.fused_path(last))
    except AttributeError as error:
        raise LayoutError(
            f"{live.name} has no module {shape.layout.out_proj_path(last)}: "
            "expected a plain causal language model of its architecture; load it with AutoModelForCausalLM"
        ) from error
    return live


def freeze(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with `requires_grad` off: gradients are only ever taken of multipliers."""
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts: `indices` into the caller's list, model inputs, and the number of padding tokens per row."""

    indices: tuple[int, ...]
    inputs: dict[str, Tensor]
    padding: Tensor  # (batch,)


Around = Callable[[Batch], contextlib.AbstractContextManager[None]]


def batches(live: LiveModel, rows: Sequence[Sequence[int]], max_tokens: int = MAX_BATCH_TOKENS) -> Iterator[Batch]:
    """Group token rows of similar length so that no batch holds more than `max_tokens` padded tokens.

    Left padding lets every row end at the same position; position ids count from each row's own first token.
    """
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    group: list[int] = []
    for index in order:
        if group and len(rows[index]) * (len(group) + 1) > max_tokens:
            yield collate(live, rows, group)
            group = []
        group.append(index)
    if group:
        yield collate(live, rows, group)


def collate(live: LiveModel, rows: Sequence[Sequence[int]], indices: Sequence[int]) -> Batch:
    """One left-padded batch of the rows at `indices`."""
    width = max(len(rows[index]) for index in indices)
    pad_id = live.tokenizer.pad_token_id or 0
    padding = torch.tensor([width - len(rows[index]) for index in indices], device=live.device)
    ids = torch.tensor([[pad_id] * (width - len(rows[i])) + list(rows[i]) for i in indices], device=live.device)
    mask = (torch.arange(width, device=live.device)[None] >= padding[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(tuple(indices), {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, padding)


@dataclass(frozen=True)
class Pass:
    """One forward pass over several rows of tokens.

    `indices` are the rows in the caller's list; token t of row `indices[i]` is at `slots[i][t]` of line `lines[i]` of
    the inputs. Rows that begin alike may have their first tokens in the same places.
    """

    indices: tuple[int, ...]
    inputs: dict[str, Tensor]
    lines: tuple[int, ...]
    slots: tuple[Sequence[int], ...]

    def places(self, wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Index tensors (line, place) of one token of each row, given by its number in the row (or from the end)."""
        places = [slots[token] for slots, token in zip(self.slots, wanted, strict=True)]
        return torch.tensor(self.lines), torch.tensor(places)


def passes(
    live: LiveModel, rows: Sequence[Sequence[int]], max_tokens: int = MAX_BATCH_TOKENS, *, single: bool = False
) -> Iterator[Pass]:
    """Forward passes over all rows of tokens, in which what rows share at their beginning is computed once.

    Tokens may carry a `packing.LABEL`. Where the attention of a model takes no mask of ours, the passes are plain
    left-padded batches. With `single`, the inputs of each pass have one line.
    """
    if not takes_trees(live, max(map(len, rows), default=0)):
        plain = [[token % LABEL for token in row] for row in rows]
        for batch in batches(live, plain, 1 if single else max_tokens):
            yield _plain_pass(batch, rows)
        return
    dtype, device = live.model.dtype, live.device
    for forest in forests(rows, max_tokens, MAX_BATCH_ROWS, 1 if single else max_tokens):
        width = max(len(tree.ids) for tree in forest)
        mask = torch.zeros(len(forest), 1, width, width, dtype=dtype)
        mask.masked_fill_(~visible(forest, width)[:, None], torch.finfo(dtype).min)
        inputs = {
            "input_ids": torch.tensor([[*tree.ids, *[0] * (width - len(tree.ids))] for tree in forest]),
            "position_ids": torch.tensor([[*tree.positions, *[0] * (width - len(tree.ids))] for tree in forest]),
            "attention_mask": mask,
        }
        yield Pass(
            tuple(index for tree in forest for index in tree.rows),
            {name: tensor.to(device) for name, tensor in inputs.items()},
            tuple(line for line, tree in enumerate(forest) for _ in tree.rows),
            tuple(slots for tree in forest for slots in tree.slots),
        )


def _plain_pass(batch: Batch, rows: Sequence[Sequence[int]]) -> Pass:
    """A left-padded batch of some of the rows, as a pass."""
    starts = batch.padding.tolist()
    slots = tuple(range(start, start + len(rows[i])) for start, i in zip(starts, batch.indices, strict=True))
    return Pass(batch.indices, batch.inputs, tuple(range(len(slots))), slots)


def takes_trees(live: LiveModel, longest: int) -> bool:
    """Whether the model can run rows of up to `longest` tokens as trees.

    It must use the attention mask as given, which fused kernels do not, and see whole rows: in a tree, the distance
    of two places is not that of their tokens, so a sliding window would cut off the wrong ones.
    """
    window = getattr(live.model.config, "sliding_window", None)
    return live.model.config._attn_implementation in ("sdpa", "eager") and (window is None or longest <= window)


@contextlib.contextmanager
def at_head(live: LiveModel, lines: Tensor | None, places: Tensor) -> Iterator[None]:
    """Let the language-model head see only the given places (n,) of the given lines (n,), or of every line.

    Logits are then (1, n, vocabulary), or (batch, n, vocabulary).
    """

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_picked(args[0], lines, places), *args[1:])

    handle = live.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def at_last_mlp(live: LiveModel, lines: Tensor | None, places: Tensor) -> Iterator[None]:
    """Let the MLP of the last layer see only given places, as `at_head`, and write nothing at the others.

    Nothing else reads what it writes. Hooks on its activations would see these places alone.
    """
    module = live.model.get_submodule(live.shape.layout.mlp_path(live.shape.n_layers - 1))
    shapes: list[torch.Size] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (_picked(args[0], lines, places), *args[1:])

    def after(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        whole = output.new_zeros(shapes.pop())
        at = places.to(output.device)
        if lines is None:
            whole[:, at] = output
        else:
            whole[lines.to(output.device), at] = output[0]
        return whole

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _picked(values: Tensor, lines: Tensor | None, places: Tensor) -> Tensor:
    at = places.to(values.device)
    return values[:, at] if lines is None else values[lines.to(values.device), at][None]


class _StopForwardError(Exception):
    """Raised by a hook once everything that was asked for has been seen."""


@dataclass(frozen=True)
class Readout:
    """The language-model head of a model, which turns final states into log-probabilities without the rest of it."""

    head: nn.Module
    softcap: float | None
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def logprobs(self, states: Tensor) -> Tensor:
        """Float32 log-probabilities (n, vocabulary) of the next token, from states (n, d_model)."""
        logits = self.head(states.to(self.device, self.dtype))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.float().log_softmax(-1)


def readout(live: LiveModel) -> Readout:
    """The head of a model; while it is kept, the rest of the model may leave the memory."""
    softcap = getattr(live.model.config, "final_logit_softcapping", None)
    return Readout(live.model.get_output_embeddings(), softcap, live.device, live.model.dtype)


@torch.inference_mode()
def final_states(live: LiveModel, rows: Sequence[Continuation], progress: Progress | None = None) -> list[Tensor]:
    """What the head is given where it predicts the answer's tokens: (n_answer, d_model) of each row, on the CPU."""
    results: list[Tensor | None] = [None] * len(rows)
    for batch in batches(live, [row.ids[:-1] for row in rows]):
        seen: list[Tensor] = []

        def hook(_module: nn.Module, args: tuple[Any, ...], seen: list[Tensor] = seen) -> None:
            seen.append(args[0])
            raise _StopForwardError

        handle = live.model.get_output_embeddings().register_forward_pre_hook(hook)
        try:
            with contextlib.suppress(_StopForwardError):
                live.model(**batch.inputs, use_cache=False)
        finally:
            handle.remove()
        for line, index in enumerate(batch.indices):
            # A copy, because a view would keep the whole batch.
            results[index] = seen[0][line, -rows[index].n_answer :].cpu().clone()
        if progress:
            progress(len(batch.indices))
    return [result for result in results if result is not None]


@contextlib.contextmanager
def hooks(live: LiveModel, by_layer: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Call a function on the activations (batch, tokens, d_mlp) of given layers; a returned tensor replaces them."""

    def hook_of(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            replaced = function(args[0])
            return None if replaced is None else (replaced, *args[1:])

        return hook

    handles = []
    try:
        for layer, function in by_layer.items():
            handles.append(live.out_proj(layer).register_forward_pre_hook(hook_of(function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def scaled_by(live: LiveModel, multipliers: Mapping[int, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Multiply the activations of each given layer, at every token, by a vector (d_mlp,) or (batch, 1, d_mlp).

    Multiplying activation j equals multiplying column j of the output projection's weight.
    """

    def multiply(vector: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda activations: activations * vector.to(activations)

    return hooks(live, {layer: multiply(vector) for layer, vector in multipliers.items()})


@contextlib.contextmanager
def edited(live: LiveModel, edits: Sequence[ColumnEdit]) -> Iterator[None]:
    """Act as if the edits had been written into the weights while the block runs; the weights do not change."""
    vectors: dict[int, Tensor] = {}
    if edits:
        for edit in _checked(live, edits):
            if edit.cell.expert is not None:
                raise LayoutError(no_hooks(live.name))
            vector = vectors.setdefault(edit.cell.layer, torch.ones(live.shape.d_mlp, device=live.device))
            vector[edit.cell.neuron] = edit.multiplier
    with scaled_by(live, vectors):
        yield


def _checked(live: LiveModel, edits: Sequence[ColumnEdit]) -> tuple[ColumnEdit, ...]:
    return check_edits(edits, live.shape.n_layers, live.shape.d_mlp, live.name, live.shape.experts_in)


@torch.no_grad()
def apply_edits(live: LiveModel, edits: Sequence[ColumnEdit]) -> None:
    """Multiply the columns of the output projections in memory, permanently.

    Raises InputError, before anything changes, when a cell is out of range.
    """
    for edit in _checked(live, edits):
        if edit.cell.expert is None:
            weight = live.out_proj(edit.cell.layer).weight
        else:
            weight = live.model.get_parameter(live.shape.layout.fused_path(edit.cell.layer))[edit.cell.expert]
        weight.select(live.shape.layout.neuron_axis, edit.cell.neuron).mul_(edit.multiplier)


@torch.inference_mode()
def activations(
    live: LiveModel,
    rows: Sequence[Placed],
    layers: Sequence[int],
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Activations at one token of each row, batch by batch: (indices of the rows, float32 (batch, n_layers, d_mlp)).

    The forward pass ends at the last requested layer, and the language-model head never runs.
    """
    layers = sorted(layers)
    # What follows the token cannot change it.
    cut = [row.ids[: row.token + 1] for row in rows]
    for one in passes(live, cut):
        lines, places = one.places([-1] * len(one.indices))
        seen: dict[int, Tensor] = {}

        def record(layer: int, lines: Tensor = lines, places: Tensor = places, seen: dict[int, Tensor] = seen):
            def function(values: Tensor) -> None:
                seen[layer] = values[lines.to(values.device), places.to(values.device)].float().to(live.device)
                if layer == layers[-1]:
                    raise _StopForwardError

            return function

        with hooks(live, {layer: record(layer) for layer in layers}), contextlib.suppress(_StopForwardError):
            live.model.base_model(**one.inputs, use_cache=False)
        yield one.indices, torch.stack([seen[layer] for layer in layers], dim=1)
        if progress:
            progress(len(one.indices))


def mlp_outputs(
    live: LiveModel, rows: Sequence[Placed], layers: Sequence[int], progress: Progress | None = None
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """What each layer's MLP writes at one token of each row, as `activations`: float32 (batch, n_layers, d_model)."""
    layers = sorted(layers)
    for indices, batch in activations(live, rows, layers, progress):
        outputs = [live.out_proj(layer)(batch[:, n].to(live.model.dtype)) for n, layer in enumerate(layers)]
        yield indices, torch.stack([output.float().to(live.device) for output in outputs], dim=1)


def answer_logits(live: LiveModel, rows: Sequence[Continuation], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits over the answers of one batch.

    Returns logits (batch, width, vocabulary) that predict the last `width` tokens, those tokens (batch, width), and
    a mask (batch, width) of the ones that belong to the answer; `width` is the longest answer's length. Of each
    row's inputs the last token is fed too, for the caller's padding to stay simple; its own prediction is dropped.
    """
    width = max(rows[index].n_answer for index in batch.indices)
    logits = live.model(**batch.inputs, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()
    tokens = batch.inputs["input_ids"][:, -width:]
    lengths = torch.tensor([rows[index].n_answer for index in batch.indices], device=tokens.device)
    mask = torch.arange(width, 0, -1, device=tokens.device)[None] <= lengths[:, None]
    return logits, tokens, mask


@torch.inference_mode()
def answer_logprobs(
    live: LiveModel,
    pairs: Sequence[tuple[str, str]],
    progress: Progress | None = None,
    around: Around | None = None,
) -> list[AnswerLogprob]:
    """Log-probability of each answer after its prompt, in the order of `pairs`; `around` is entered for each batch.

    Raises NumericalError when the model's output is NaN or infinite.
    """
    rows = continuations(live.tokenizer, pairs)
    results: list[AnswerLogprob | None] = [None] * len(rows)
    # An answer's last token predicts nothing that is asked for.
    for one, context in _passes_within(live, [row.ids[:-1] for row in rows], around):
        spots: dict[tuple[int, int], int] = {}  # Where the head is needed, once even if several rows share the place.
        heads = [
            [spots.setdefault((line, slot), len(spots)) for slot in slots[-rows[index].n_answer :]]
            for index, line, slots in zip(one.indices, one.lines, one.slots, strict=True)
        ]
        lines, places = (torch.tensor(column) for column in zip(*spots, strict=True))
        with context, at_head(live, lines, places):
            logits = live.model(**one.inputs, use_cache=False).logits[0].float()  # (n_spots, vocabulary)
        wanted = [token for index in one.indices for token in rows[index].ids[-rows[index].n_answer :]]
        at = torch.tensor([spot for spots_of_row in heads for spot in spots_of_row], device=logits.device)
        chosen = logits[at, torch.tensor(wanted, device=logits.device)]
        logprobs = (chosen - logits.logsumexp(1)[at]).tolist()
        start = 0
        for index, spots_of_row in zip(one.indices, heads, strict=True):
            own = logprobs[start : start + len(spots_of_row)]
            if not math.isfinite(sum(own)):
                raise NumericalError(f"{live.name} gives NaN or infinite log-probabilities: its weights are damaged")
            rank = int((logits[spots_of_row[0]] > chosen[start]).sum())
            results[index] = AnswerLogprob(sum(own), own[0], rank)
            start += len(own)
        if progress:
            progress(len(one.indices))
    return [result for result in results if result is not None]


def _passes_within(
    live: LiveModel, rows: Sequence[Sequence[int]], around: Around | None
) -> Iterator[tuple[Pass, contextlib.AbstractContextManager[None]]]:
    """Forward passes over all rows with the context to run each in; one that needs a batch gets plain ones."""
    if around is None:
        for one in passes(live, rows):
            yield one, contextlib.nullcontext()
    else:
        for batch in batches(live, rows):
            yield _plain_pass(batch, rows), around(batch)


@torch.inference_mode()
def generate(
    live: LiveModel,
    prompts: Sequence[str],
    max_new_tokens: int = 12,
    progress: Progress | None = None,
    around: Around | None = None,
) -> list[str]:
    """Greedy continuation of each prompt, decoded without special tokens; `around` is entered for each batch."""
    results = [""] * len(prompts)
    rows = [item.ids for item in encode(live.tokenizer, prompts)]
    for batch, new in _greedy(live, rows, max_new_tokens, live.model.generation_config.eos_token_id, around):
        for index, text in zip(batch.indices, live.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            results[index] = text
        if progress:
            progress(len(batch.indices))
    return results


@torch.inference_mode()
def continued(live: LiveModel, prompts: Sequence[str], n_tokens: int) -> list[list[int]]:
    """Token ids of each prompt with the `n_tokens` that the model finds likeliest, one after the other."""
    rows = [list(item.ids) for item in encode(live.tokenizer, prompts)]
    for batch, new in _greedy(live, rows, n_tokens, None):
        for index, ids in zip(batch.indices, new.tolist(), strict=True):
            rows[index] += ids
    return rows


def _greedy(
    live: LiveModel,
    rows: Sequence[Sequence[int]],
    n_tokens: int,
    stop: int | list[int] | None,
    around: Around | None = None,
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of rows with the tokens that follow them, (batch, at most n_tokens); `stop` ends a row early."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=n_tokens,
        pad_token_id=live.tokenizer.pad_token_id or 0,
        eos_token_id=stop,
    )
    for batch in batches(live, rows):
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        with around(batch) if around else contextlib.nullcontext():
            output = live.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        yield batch, output[:, ids.shape[1] :]
