"""Rows of tokens as inputs of forward passes: left-padded batches, and trees that compute shared beginnings once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from amnesia.errors import InputError, clipped
from amnesia.live.model import LiveModel, weight_of
from amnesia.live.tokens import encode
from amnesia.live.trees import LABEL, TREE_TOKENS, Tree, forests, trees, visible
from amnesia.sources.parts import AbsentError

MAX_BATCH_ROWS = 512
"""Rows per forward pass, for memory: rows that share most of their tokens are many in few tokens."""

_MIN_SHARED = 64
"""Tokens that a batch must save before its rows are read as trees, in a pass of their own. Set by hand."""

_KEPT_BYTES = 2**28
"""Keys and values of a batch that is written on. Set by hand: about a hundred rows of the demo model."""

_LOGIT_BYTES = 2**26
"""Float32 predictions of one token for each row of such a batch, of which drawing needs six times as much. Set by hand:
more rows of the demo model than have room otherwise, and fewer of a model with a large vocabulary."""

PROBES = ("The story of a river", "The story of Paris and the sea", "Once upon")
"""Texts on which it is tried what a model does with a mask, and after its head. Two of them begin alike."""

# The root mean square of a difference, as a share of that of the values.
_TOLERANCE = 1e-3
_TOLERANCE_16 = 0.05

# What configurations call the number of tokens that a layer sees, where that is less than all.
_WINDOWS = ("sliding_window", "attention_chunk_size")

# Whether a model gives each row of a tree what it gives the row alone.
_TAKES_TREES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


# Bytes of keys and values for one token of a model.
_KEPT_FOR_A_TOKEN: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts: `indices` into the caller's list, model inputs, and the number of padding tokens per row."""

    indices: tuple[int, ...]
    inputs: dict[str, Tensor]
    padding: Tensor  # (batch,)


Around = Callable[[Batch], contextlib.AbstractContextManager[None]]


def batches(live: LiveModel, rows: Sequence[Sequence[int]], max_tokens: int | None = None) -> Iterator[Batch]:
    """Group token rows of similar length so that no batch holds more than `max_tokens` padded tokens, or as many as the
    model takes.

    Left padding lets every row end at the same position; position ids count from each row's own first token.
    """
    most = max_tokens or live.max_tokens
    return _grouped(live, rows, lambda width, n_rows: width * n_rows <= most)


def batches_to_write(live: LiveModel, rows: Sequence[Sequence[int]], n_tokens: int) -> Iterator[Batch]:
    """As `batches`, of rows that `n_tokens` will follow, with more rows where there is room for what they need.

    With each token that is written all weights are read once for a batch, so that it should have many rows. What is
    read at once, before, `from_shared` limits by itself.
    """
    longest = max(map(len, rows), default=0)
    if longest * len(rows) <= live.max_tokens or not takes_trees(live, longest + n_tokens):
        return batches(live, rows)
    n_kept = _KEPT_BYTES // max(1, _kept_for_a_token(live))
    most = min(MAX_BATCH_ROWS, _LOGIT_BYTES // (4 * weight_of(live.model.get_input_embeddings()).shape[0]))

    def fits(width: int, n_rows: int) -> bool:
        return width * n_rows <= live.max_tokens or ((width + n_tokens) * n_rows <= n_kept and n_rows <= most)

    return _grouped(live, rows, fits)


def _kept_for_a_token(live: LiveModel) -> int:
    """Bytes of keys and values."""
    if live.model not in _KEPT_FOR_A_TOKEN:
        kept = live.model.base_model(input_ids=torch.tensor([[0]], device=live.device), use_cache=True).cache
        both = [getattr(layer, name, None) for layer in kept.layers for name in ("keys", "values")]
        _KEPT_FOR_A_TOKEN[live.model] = sum(values.nbytes for values in both if isinstance(values, Tensor))
    return _KEPT_FOR_A_TOKEN[live.model]


def _grouped(live: LiveModel, rows: Sequence[Sequence[int]], fits: Callable[[int, int], bool]) -> Iterator[Batch]:
    """Batches of which each `fits`, by the tokens of its longest row and its number of rows."""
    check_ids(live, rows)
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    group: list[int] = []
    for index in order:
        if group and not fits(len(rows[index]), len(group) + 1):
            yield collate(live, rows, group)
            group = []
        group.append(index)
    if group:
        yield collate(live, rows, group)


def check_ids(live: LiveModel, rows: Sequence[Sequence[int]], n_more: int = 0) -> None:
    """Raise InputError for a text that with `n_more` tokens is longer than the model's context, and for a token that it
    has no embedding of.

    Tokens may carry a `trees.LABEL`.
    """
    if rows and live.n_positions is not None and len(longest := max(rows, key=len)) + n_more > live.n_positions:
        text = live.tokenizer.batch_decode([[token % LABEL for token in longest]], skip_special_tokens=True)[0]
        raise too_long(live, f"text {clipped(repr(text))}", len(longest), bool(n_more))
    n_tokens = weight_of(live.model.get_input_embeddings()).shape[0]
    last = max((token % LABEL for row in rows for token in row), default=0)
    if last >= n_tokens:
        token = clipped(repr(live.tokenizer.convert_ids_to_tokens([last])[0]))
        raise InputError(
            f"token {token} of the tokenizer has number {last}, but {live.name} has {n_tokens} embeddings: "
            "give the tokenizer that belongs to this model"
        )


def too_long(live: LiveModel, what: str, n_tokens: int, to_answer: bool = False) -> InputError:
    """The error of a text, called `what`, that the model has no positions for, or none for an answer to it."""
    and_answer = " and leaves no room for an answer" if to_answer else ""
    return InputError(
        f"{what} has {n_tokens} tokens{and_answer}, {live.name} takes {live.n_positions}: shorten it, or take a model "
        "with a longer context"
    )


def collate(live: LiveModel, rows: Sequence[Sequence[int]], indices: Sequence[int]) -> Batch:
    """One left-padded batch of the rows at `indices`."""
    width = max(len(rows[index]) for index in indices)
    padding = torch.tensor([width - len(rows[index]) for index in indices], device=live.device)
    ids = torch.tensor([[0] * (width - len(rows[i])) + list(rows[i]) for i in indices], device=live.device)
    mask = (torch.arange(width, device=live.device)[None] >= padding[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(tuple(indices), {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, padding)


def with_room(live: LiveModel, rows: Sequence[Sequence[int]], batch: Batch, n_tokens: int) -> list[Batch]:
    """A batch, or where some row has no room for `n_tokens` more, each row alone: how long one gets is its own matter.

    Raises InputError for a row that has no room at all.
    """
    if live.n_positions is None or batch.inputs["input_ids"].shape[1] + n_tokens <= live.n_positions:
        return [batch]
    check_ids(live, [rows[index] for index in batch.indices], n_more=1)
    return [collate(live, rows, [index]) for index in batch.indices]


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
    live: LiveModel, rows: Sequence[Sequence[int]], max_tokens: int | None = None, *, single: bool = False
) -> Iterator[Pass]:
    """Forward passes over all rows of tokens, in which what rows share at their beginning is computed once.

    Tokens may carry a `trees.LABEL`. Where the attention of a model takes no mask of ours, the passes are plain
    left-padded batches. With `single`, the inputs of each pass have one line.
    """
    check_ids(live, rows)
    max_tokens = max_tokens or live.max_tokens
    if takes_trees(live, max(map(len, rows), default=0)):
        yield from _tree_passes(live, rows, max_tokens, 1 if single else max_tokens)
        return
    plain = [[token % LABEL for token in row] for row in rows]
    for batch in batches(live, plain, 1 if single else max_tokens):
        yield plain_pass(batch, rows)


def one_pass(live: LiveModel, rows: Sequence[Sequence[int]]) -> Pass:
    """All rows of tokens, few enough for that, in a single forward pass: as `passes`, without any padding in a tree."""
    check_ids(live, rows)
    if takes_trees(live, max(map(len, rows))):
        return _tree_pass(live, tuple(trees(rows, sum(map(len, rows)), len(rows))))
    return plain_pass(collate(live, rows, range(len(rows))), rows)


def _tree_passes(live: LiveModel, rows: Sequence[Sequence[int]], max_tokens: int, max_trees: int) -> Iterator[Pass]:
    for forest in forests(rows, max_tokens, MAX_BATCH_ROWS, max_trees):
        yield _tree_pass(live, forest)


def _tree_pass(live: LiveModel, forest: Sequence[Tree]) -> Pass:
    dtype, width = live.model.dtype, max(len(tree.ids) for tree in forest)
    # Of floats: eager attention adds it, so that one of booleans would hide nothing.
    mask = torch.zeros(len(forest), 1, width, width, dtype=dtype)
    mask.masked_fill_(~visible(forest, width)[:, None], torch.finfo(dtype).min)
    inputs = {
        "input_ids": torch.tensor([[*tree.ids, *[0] * (width - len(tree.ids))] for tree in forest]),
        "position_ids": torch.tensor([[*tree.positions, *[0] * (width - len(tree.ids))] for tree in forest]),
        "attention_mask": mask,
    }
    return Pass(
        tuple(index for tree in forest for index in tree.rows),
        {name: tensor.to(live.device) for name, tensor in inputs.items()},
        tuple(line for line, tree in enumerate(forest) for _ in tree.rows),
        tuple(slots for tree in forest for slots in tree.slots),
    )


def plain_pass(batch: Batch, rows: Sequence[Sequence[int]]) -> Pass:
    """A left-padded batch of some of the rows, as a pass."""
    starts = batch.padding.tolist()
    slots = tuple(range(start, start + len(rows[i])) for start, i in zip(starts, batch.indices, strict=True))
    return Pass(batch.indices, batch.inputs, tuple(range(len(slots))), slots)


def takes_trees(live: LiveModel, longest: int) -> bool:
    """Whether the model can run rows of up to `longest` tokens as trees.

    It must use the attention mask as given, which fused kernels do not, and see whole rows: in a tree, the distance
    of two places is not that of their tokens, so a sliding or chunked window would cut off the wrong ones. Whether it
    does is tried, once for each model: a tree against its rows alone.
    """
    if live.text_config._attn_implementation not in ("sdpa", "eager") or longest > _window(live):
        return False
    if live.model not in _TAKES_TREES:
        # In 16 bits what recurrent layers mix up may drown in the noise of a trial.
        _TAKES_TREES[live.model] = not live.is_recurrent and _tree_agrees(live)
    return _TAKES_TREES[live.model]


def _window(live: LiveModel) -> int:
    """How many tokens every layer sees."""
    found = (getattr(live.text_config, name, None) for name in _WINDOWS)
    return min((window for window in found if isinstance(window, int) and window), default=sys.maxsize)


def from_shared(live: LiveModel, rows: Sequence[Sequence[int]], n_tokens: int) -> dict[str, Any]:
    """Inputs of `generate` in which what rows share at their beginning is computed once; none if that is little.

    Chat templates begin all messages alike, and several answers are drawn to one prompt. All but the last token of each
    row is read in trees, from which every row takes its own keys and values.
    """
    width = max(map(len, rows)) - 1
    read = [row[:-1] for row in rows]
    # A layer with a window keeps one token less than it sees.
    n_at_once = live.max_tokens if _window(live) > TREE_TOKENS else _window(live) - 1
    n_places = sum(len(tree.ids) for tree in trees(read, min(TREE_TOKENS, n_at_once), MAX_BATCH_ROWS))
    if width * len(rows) - n_places < _MIN_SHARED or not takes_trees(live, width + 1 + n_tokens):
        return {}
    kept: dict[int, tuple[Tensor, ...]] = {}
    for one in _tree_passes(live, read, n_at_once, n_at_once):
        if not one.inputs["input_ids"].shape[1]:
            continue  # Rows of one token.
        found = live.model.base_model(**one.inputs, use_cache=True).cache
        if not _take(found, one, kept, (len(rows), width)):
            return {}
    cache = DynamicCache(config=live.text_config)
    for number, (keys, values) in kept.items():
        cache.update(keys, values, number)
    batch = collate(live, rows, range(len(rows)))
    return {name: batch.inputs[name] for name in ("input_ids", "attention_mask")} | {"cache": cache}


def _take(found: Cache, one: Pass, kept: dict[int, tuple[Tensor, ...]], size: tuple[int, int]) -> bool:
    """Put keys and values of each row, left-padded, into those of all rows, by layer; False where a model keeps others.

    `size` is the number of rows and the width of these.
    """
    (n_rows, width), n_places = size, one.inputs["input_ids"].shape[1]
    lines = torch.tensor(one.lines)[:, None]
    # What stands in for padding is hidden by the mask.
    places = torch.tensor([[0] * (width - len(slots)) + list(slots) for slots in one.slots])
    for number, layer in enumerate(found.layers):
        both = [getattr(layer, name, 0) for name in ("keys", "values")]
        if all(values is None for values in both):  # It reads what another layer keeps.
            continue
        own = [values for values in both if isinstance(values, Tensor)]
        if [values.shape[2:-1] for values in own] != [(n_places,)] * 2:
            return False
        if number not in kept:
            kept[number] = tuple(values.new_zeros(n_rows, values.shape[1], width, values.shape[3]) for values in own)
        for whole, values in zip(kept[number], own, strict=True):
            whole[list(one.indices)] = values.movedim(2, 1)[lines, places].movedim(1, 2)
    return True


@torch.inference_mode()
def _tree_agrees(live: LiveModel) -> bool:
    """Whether the predictions for a few texts in one tree are those for each text alone."""
    rows = [item.ids for item in encode(live.tokenizer, PROBES)]
    (one,) = _tree_passes(live, rows, sum(map(len, rows)), 1)
    try:
        found = _predictions(live, one.inputs)
        for index, line, slots in zip(one.indices, one.lines, one.slots, strict=True):
            alone = _predictions(live, collate(live, rows, [index]).inputs)[0]
            if not agree(live, found[line, list(slots)], alone):
                return False
    except (RuntimeError, ValueError, TypeError, IndexError):  # A model with a mask of its own may not run at all.
        return False
    return True


def _predictions(live: LiveModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or of the first layers alone what they leave in the residual stream, each token's at one size."""
    if live.n_held is None:
        return live.model(**inputs, use_cache=False).logits
    seen: list[Tensor] = []

    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handle = live.model.get_submodule(live.shape.layer_path(live.n_held - 1)).register_forward_hook(hook)
    try:
        with contextlib.suppress(AbsentError):
            live.model.base_model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return nn.functional.rms_norm(seen[0], seen[0].shape[-1:])


def agree(live: LiveModel, found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same up to what the order of additions explains in the type of the model."""
    tolerance = _TOLERANCE if torch.finfo(live.model.dtype).bits >= 32 else _TOLERANCE_16
    found, expected = found.float(), expected.float()
    return bool((found - expected).square().mean().sqrt() <= tolerance * expected.square().mean().sqrt())
