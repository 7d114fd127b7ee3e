"""Rows of tokens as inputs of forward passes: left-padded batches, and trees that compute shared beginnings once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amnesia.errors import InputError, clipped
from amnesia.live.model import LiveModel, weight_of
from amnesia.live.trees import LABEL, forests, visible

MAX_BATCH_TOKENS = 1024
"""Padded tokens per forward pass: large enough for full matrix products on a CPU, small in memory."""

MAX_BATCH_ROWS = 512
"""Rows per forward pass, for memory: rows that share most of their tokens are many in few tokens."""


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
    check_ids(live, rows)
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    group: list[int] = []
    for index in order:
        if group and len(rows[index]) * (len(group) + 1) > max_tokens:
            yield collate(live, rows, group)
            group = []
        group.append(index)
    if group:
        yield collate(live, rows, group)


def check_ids(live: LiveModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise InputError for a token that the model has no embedding of; tokens may carry a `trees.LABEL`."""
    n_tokens = weight_of(live.model.get_input_embeddings()).shape[0]
    last = max((token % LABEL for row in rows for token in row), default=0)
    if last >= n_tokens:
        token = clipped(repr(live.tokenizer.convert_ids_to_tokens([last])[0]))
        raise InputError(
            f"token {token} of the tokenizer has number {last}, but {live.name} has {n_tokens} embeddings: "
            "give the tokenizer that belongs to this model"
        )


def collate(live: LiveModel, rows: Sequence[Sequence[int]], indices: Sequence[int]) -> Batch:
    """One left-padded batch of the rows at `indices`."""
    width = max(len(rows[index]) for index in indices)
    padding = torch.tensor([width - len(rows[index]) for index in indices], device=live.device)
    ids = torch.tensor([[0] * (width - len(rows[i])) + list(rows[i]) for i in indices], device=live.device)
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

    Tokens may carry a `trees.LABEL`. Where the attention of a model takes no mask of ours, the passes are plain
    left-padded batches. With `single`, the inputs of each pass have one line.
    """
    check_ids(live, rows)
    if not takes_trees(live, max(map(len, rows), default=0)):
        plain = [[token % LABEL for token in row] for row in rows]
        for batch in batches(live, plain, 1 if single else max_tokens):
            yield plain_pass(batch, rows)
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


def plain_pass(batch: Batch, rows: Sequence[Sequence[int]]) -> Pass:
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
    whole = not isinstance(window, int) or longest <= window
    return live.model.config._attn_implementation in ("sdpa", "eager") and whole
